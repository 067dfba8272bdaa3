/* SPDX-License-Identifier: MIT */
/*
 * What a saved machine is made of: section MACH of its state. Whoever resumes it builds a machine of this shape first;
 * the rest of the state then fits, or is refused by the part that it belongs to.
 *
 * Disks are named by the uuid of their image, and all but the first, which holds the state, also by the uuid of the
 * snapshot that was made with it: never by a path.
 */
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "machine.h"

#define SHAPE_TAG     STATE_TAG('M', 'A', 'C', 'H')
#define SHAPE_VERSION 1u

enum shape_flags { SHAPE_LINUX = 1u << 0 };
enum shape_disk_flags { SHAPE_DISK_READ_ONLY = 1u << 0, SHAPE_DISK_SNAPSHOT = 1u << 1 };

void machine_shape_save(const struct machine *m, struct state_writer *out)
{
	static const uint8_t none[16];

	state_begin(out, SHAPE_TAG, 0, SHAPE_VERSION);
	state_put64(out, m->mem.ram_bytes);
	state_put32(out, m->nr_vcpus);
	state_put32(out, m->linux_boot ? SHAPE_LINUX : 0);
	state_put32(out, m->nr_disks);
	for (unsigned i = 0; i < m->nr_disks; i++) {
		const struct disk *d = &m->disk[i];

		state_put32(out, (d->read_only ? (uint32_t)SHAPE_DISK_READ_ONLY : 0) |
					 (d->saved_with_machine ? (uint32_t)SHAPE_DISK_SNAPSHOT : 0));
		state_put64(out, img_size(d->img));
		state_put(out, d->uuid, sizeof(d->uuid));
		state_put(out, d->saved_with_machine ? d->snapshot_uuid : none, sizeof(none));
	}
	state_end(out);
}

int machine_shape_parse(struct state *state, struct machine_shape *shape, struct img_error *err)
{
	struct state_reader in;
	uint32_t flags, disk_flags = 0;
	int ret = state_open(state, SHAPE_TAG, 0, SHAPE_VERSION, &in, err);

	if (ret != 0)
		return ret;
	*shape = (struct machine_shape){ .ram_bytes = state_get64(&in), .nr_vcpus = 0 };
	shape->nr_vcpus = state_get32(&in);
	flags = state_get32(&in);
	shape->linux_boot = flags & SHAPE_LINUX;
	shape->nr_disks = state_get32(&in);
	for (unsigned i = 0; i < shape->nr_disks && i < DISKS_MAX; i++) {
		struct machine_shape_disk *d = &shape->disk[i];
		uint32_t f = state_get32(&in);

		disk_flags |= f;
		d->read_only = f & SHAPE_DISK_READ_ONLY;
		d->has_snapshot = f & SHAPE_DISK_SNAPSHOT;
		d->size_bytes = state_get64(&in);
		state_get(&in, d->uuid, sizeof(d->uuid));
		state_get(&in, d->snapshot_uuid, sizeof(d->snapshot_uuid));
	}
	ret = state_done(&in, "the machine's shape", err);
	if (ret != 0)
		return ret;
	if (flags & ~(uint32_t)SHAPE_LINUX || disk_flags & ~(uint32_t)(SHAPE_DISK_READ_ONLY | SHAPE_DISK_SNAPSHOT) ||
	    shape->nr_disks < 1 || shape->nr_disks > DISKS_MAX || shape->nr_vcpus < 1 ||
	    shape->nr_vcpus > VM_MAX_VCPUS || shape->ram_bytes % MEMORY_PAGE || shape->ram_bytes < MEMORY_MIN_BYTES ||
	    shape->ram_bytes > MEMORY_MAX_BYTES)
		return fail(err, IMG_E_CORRUPT, "machine state: no machine can have this shape");
	return 0;
}

static int check_disk(const struct machine *m, unsigned i, const struct machine_shape_disk *saved,
		      struct img_error *err)
{
	const struct disk *d = &m->disk[i];

	if (d->read_only != saved->read_only)
		return fail(err, IMG_E_UNSUPPORTED, "disk %u was %s in the saved machine", i + 1,
			    saved->read_only ? "read-only" : "writable");
	if (i > 0 && memcmp(saved->uuid, d->uuid, sizeof(saved->uuid)) != 0)
		return fail(err, IMG_E_CHANGED, "disk %u, %.150s, is not the image that the saved machine had", i + 1,
			    d->path);
	return 0;
}

int machine_shape_check(const struct machine *m, const struct machine_shape *shape, struct img_error *err)
{
	int ret = 0;

	if (shape->ram_bytes != m->mem.ram_bytes || shape->nr_vcpus != m->nr_vcpus || shape->nr_disks != m->nr_disks ||
	    shape->linux_boot != m->linux_boot)
		return fail(err, IMG_E_UNSUPPORTED,
			    "the saved machine has %llu MiB, %u processors, %u disks and %s: this one differs",
			    (unsigned long long)(shape->ram_bytes >> 20), shape->nr_vcpus, shape->nr_disks,
			    shape->linux_boot ? "a kernel of its own" : "firmware");
	for (unsigned i = 0; ret == 0 && i < m->nr_disks; i++)
		ret = check_disk(m, i, &shape->disk[i], err);
	return ret;
}

int machine_state_read(struct img *img, const char *snapshot, uint8_t **buf, struct state *state, struct img_error *err)
{
	uint8_t header[STATE_HEADER_BYTES];
	uint64_t volume_bytes;
	size_t bytes;
	int ret = img_vmstate_size(img, snapshot, &volume_bytes, err);

	*buf = NULL;
	if (ret != 0)
		return ret;
	if (volume_bytes < STATE_AREA_BYTES)
		return fail(err, IMG_E_FORMAT, "the snapshot holds no machine of this program");
	ret = img_vmstate_read(img, snapshot, header, sizeof(header), 0, err);
	if (ret == 0)
		ret = state_length(header, &bytes, err);
	if (ret != 0)
		return ret;
	*buf = malloc(bytes);
	if (!*buf)
		return fail(err, IMG_E_NOMEM, "out of memory");
	ret = img_vmstate_read(img, snapshot, *buf, bytes, 0, err);
	if (ret == 0)
		ret = state_parse(state, *buf, bytes, err);
	if (ret != 0) {
		free(*buf);
		*buf = NULL;
	}
	return ret;
}
