/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of a running machine, and back. What makes one: RAM goes into the image's working state while the guest
 * runs, round by round, until what is left is little; then the guest stands still while the rest, the processors and
 * the devices are written and the other disks are snapshotted. One commit of the first image takes its disk and the
 * state together; until it nothing of the snapshot exists. While it waits for the host's disk the guest computes
 * already, and only what it asks of its disks waits too.
 *
 * Going back: everything about the saved machine is checked before the disk changes; then disk, RAM (mapped), devices
 * and processors follow.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fail.h"
#include "machine.h"

#define MAX_ROUNDS 6u		       /* while the guest runs */
#define FEW_BYTES  (UINT64_C(1) << 20) /* so little is left for when it stands still */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- one machine a snapshot -------------------------------------------------------------------------------------- */

/*
 * Two machines that go on from the same state are one machine twice: the same keys, the same random numbers, the same
 * addresses. A lock on a byte of a file beside the control sockets, at a place that the snapshot's uuid says, tells
 * that one runs. The file is opened at the start: later the sandbox lets nothing be opened.
 */
static int take_clone_lock(struct machine *m, const uint8_t uuid[16], struct img_error *err)
{
	struct flock lock = { .l_type = m->allow_clone ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
	uint64_t off = 0;

	for (unsigned i = 0; i < 8; i++)
		off = off << 8 | (uint64_t)(uuid[i] ^ uuid[i + 8]);
	off &= INT64_MAX >> 1;
	if (m->clone_fd < 0 || off == m->clone_off)
		return 0;
	lock.l_start = (off_t)off;
	if (fcntl(m->clone_fd, F_OFD_SETLK, &lock) != 0 && !m->allow_clone)
		return fail(err, IMG_E_REFUSED,
			    "a machine already runs from this snapshot: two of them share keys and random numbers; "
			    "--allow-clone accepts that");
	if (m->clone_off != UINT64_MAX) {
		lock.l_type = F_UNLCK;
		lock.l_start = (off_t)m->clone_off;
		fcntl(m->clone_fd, F_OFD_SETLK, &lock);
	}
	m->clone_off = off;
	return 0;
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

static int save_devices(struct machine *m, struct img_error *err)
{
	uint8_t *buf = malloc(STATE_AREA_BYTES);
	struct state_writer out;
	size_t bytes = 0;
	int ret;

	if (!buf)
		return fail(err, IMG_E_NOMEM, "out of memory");
	state_start(&out, buf, STATE_AREA_BYTES);
	machine_shape_save(m, &out);
	for (unsigned i = 0; i < m->bus.nr_devices; i++)
		if (m->bus.device[i]->ops->save)
			m->bus.device[i]->ops->save(m->bus.device[i], &out);
	ret = vm_save(m->vm, &out, err);
	if (ret == 0)
		ret = state_finish(&out, &bytes, err);
	if (ret == 0)
		ret = img_vmstate_write(m->disk[0].img, buf, bytes, 0, err);
	m->saver.state_bytes = bytes;
	free(buf);
	return ret;
}

/* Disks but the first. On failure those that were made are gone again. */
static int snapshot_others(struct machine *m, const char *name, struct img_error *err)
{
	struct img_snapshot snap;
	int ret = 0;

	for (unsigned i = 1; ret == 0 && i < m->nr_disks; i++) {
		struct disk *d = &m->disk[i];

		if (d->read_only)
			continue;
		ret = img_snapshot_create(d->img, name, 0, err);
		if (ret != 0)
			break;
		d->saved_with_machine = true;
		ret = disk_find_snapshot(d, name, &snap, err);
		if (ret == 0)
			memcpy(d->snapshot_uuid, snap.uuid, sizeof(d->snapshot_uuid));
	}
	return ret;
}

static void settle_others(struct machine *m, const char *name, bool keep)
{
	for (unsigned i = 1; i < m->nr_disks; i++) {
		struct disk *d = &m->disk[i];

		if (d->saved_with_machine && !keep)
			img_snapshot_delete(d->img, name, NULL);
		d->saved_with_machine = false;
	}
}

/* What would fail at the end is found before anything is written. */
static int check_can_snapshot(struct machine *m, const char *name, bool disk_only, struct img_error *err)
{
	if (m->disk[0].read_only)
		return fail(err, IMG_E_READONLY, "the machine's disk is read-only");
	if (!disk_only && !m->disk[0].holds_machine)
		return fail(
			err, IMG_E_UNSUPPORTED,
			"an image of the format %s holds no machine: --disk-only keeps the disk alone, or convert it to "
			"limg",
			img_format(m->disk[0].img));
	for (unsigned i = 0; i < m->nr_disks; i++) {
		struct img_snapshot snap;

		if (m->disk[i].read_only)
			continue;
		if (!(img_caps(m->disk[i].img) & IMG_CAP_SNAPSHOTS))
			return fail(err, IMG_E_UNSUPPORTED, "%.120s: the format %s has no snapshots", m->disk[i].path,
				    img_format(m->disk[i].img));
		if (disk_find_snapshot(&m->disk[i], name, &snap, NULL) == 0)
			return fail(err, IMG_E_EXISTS, "%.120s has a snapshot %.64s already", m->disk[i].path, name);
	}
	return 0;
}

/* While the guest runs: as long as it pays. Ends with what was written on its way to the disk, so that the commit need
 * not wait for it. */
static int save_running(struct machine *m, struct snapshot_result *out, struct img_error *err)
{
	uint64_t bytes, before = UINT64_MAX;
	int ret = saver_begin(&m->saver, err);

	for (unsigned i = 0; ret == 0 && m->running && i < MAX_ROUNDS; i++) {
		ret = saver_collect(&m->saver, &bytes, err);
		if (ret == 0)
			ret = saver_write(&m->saver, true, err);
		out->ram_bytes += bytes;
		/* a guest that writes faster than we do will not get better */
		if (bytes <= FEW_BYTES || bytes > before - before / 4)
			break;
		before = bytes;
	}
	if (ret == 0 && m->running)
		ret = img_flush(m->disk[0].img, 0, err);
	if (ret != 0)
		saver_abandon(&m->saver);
	return ret;
}

static int save_paused(struct machine *m, const char *name, struct snapshot_result *out, struct img_error *err)
{
	int ret = saver_collect(&m->saver, &out->paused_bytes, err);

	if (ret == 0)
		ret = saver_write(&m->saver, false, err);
	out->ram_bytes += out->paused_bytes;
	if (ret == 0)
		ret = snapshot_others(m, name, err);
	if (ret == 0)
		ret = save_devices(m, err);
	out->state_bytes = m->saver.state_bytes;
	return ret;
}

/* The disks stand still, the processors need not: what the commit waits for is the host's disk. */
static int commit(struct machine *m, const char *name, bool disk_only, struct img_error *err)
{
	int ret = img_snapshot_create(m->disk[0].img, name, disk_only ? 0 : IMG_SNAPSHOT_VMSTATE, err);

	if (ret == 0 && !disk_only)
		saver_commit(&m->saver);
	return ret;
}

int machine_snapshot(struct machine *m, const char *name, bool disk_only, struct snapshot_result *out,
		     struct img_error *err)
{
	bool was_running = m->running;
	uint64_t begun = now_ns(), paused;
	int ret = check_can_snapshot(m, name, disk_only, err);

	*out = (struct snapshot_result){ .disk_only = disk_only };
	if (ret == 0 && !disk_only)
		ret = save_running(m, out, err);
	if (ret != 0)
		return ret;
	paused = now_ns();
	machine_pause(m);
	ret = disk_only ? snapshot_others(m, name, err) : save_paused(m, name, out, err);
	if (was_running)
		machine_resume_but_disks(m);
	out->pause_ns = was_running ? now_ns() - paused : 0;
	if (ret == 0)
		ret = commit(m, name, disk_only, err);
	if (ret != 0 && !disk_only)
		saver_abandon(&m->saver);
	settle_others(m, name, ret == 0);
	if (was_running)
		machine_resume_disks(m);
	out->total_ns = now_ns() - begun;
	if (ret == 0)
		snprintf(m->base, sizeof(m->base), "%s", name);
	return ret;
}

/* ---- restoring --------------------------------------------------------------------------------------------------- */

/* The state's sections into devices and processors. Paused; after a failure the machine cannot run. */
static int load_devices(struct machine *m, struct state *state, struct img_error *err)
{
	int ret = 0;

	for (unsigned i = 0; ret == 0 && i < m->bus.nr_devices; i++) {
		struct device *dev = m->bus.device[i];
		struct state_reader in;

		if (!dev->ops->load)
			continue;
		ret = state_open(state, dev->tag, dev->instance, dev->version, &in, err);
		if (ret == 0)
			ret = dev->ops->load(dev, &in, err);
		if (ret == 0)
			ret = state_done(&in, dev->ops->name, err);
	}
	if (ret == 0)
		ret = vm_load(m->vm, state, err);
	return ret ? ret : state_all_taken(state, err);
}

/* The other disks stand where the saved machine left them. */
static int check_others(struct machine *m, const struct machine_shape *shape, struct img_error *err)
{
	for (unsigned i = 1; i < m->nr_disks; i++) {
		const struct disk *d = &m->disk[i];

		if (shape->disk[i].has_snapshot &&
		    memcmp(shape->disk[i].snapshot_uuid, d->snapshot_uuid, sizeof(d->snapshot_uuid)) != 0)
			return fail(err, IMG_E_CHANGED,
				    "disk %u, %.120s, is not at the snapshot that was made with the machine's: name it "
				    "with @ and its name",
				    i + 1, d->path);
	}
	return 0;
}

int machine_restore(struct machine *m, struct img_error *err)
{
	struct disk *d = &m->disk[0];
	struct machine_shape shape;
	struct state state;
	uint8_t *buf;
	int ret = take_clone_lock(m, d->snapshot_uuid, err);

	if (ret != 0)
		return ret;
	ret = machine_state_read(disk_machine_image(d), d->snapshot, &buf, &state, err);
	if (ret != 0)
		return ret;
	ret = machine_shape_parse(&state, &shape, err);
	if (ret == 0)
		ret = machine_shape_check(m, &shape, err);
	if (ret == 0)
		ret = check_others(m, &shape, err);
	if (ret == 0)
		ret = saver_load(&m->saver, disk_machine_image(d), d->snapshot, !d->transient && !d->read_only, err);
	if (ret == 0)
		ret = load_devices(m, &state, err);
	free(buf);
	if (ret == 0)
		strcpy(m->base, d->snapshot);
	return ret;
}

/* ---- going back -------------------------------------------------------------------------------------------------- */

/* The names, by uuid, of the snapshots that the other disks go back to. "" where one does not. */
struct way_back {
	char name[DISKS_MAX][IMG_SNAPSHOT_NAME_MAX + 1];
	uint8_t uuid[DISKS_MAX][16];
};

static int find_way_back(struct machine *m, const char *name, const struct machine_shape *shape, struct way_back *way,
			 struct img_error *err)
{
	struct img_snapshot snap;
	int ret = 0;

	for (unsigned i = 1; ret == 0 && i < m->nr_disks; i++) {
		if (m->disk[i].read_only || (shape && !shape->disk[i].has_snapshot))
			continue;
		ret = shape ? disk_find_snapshot_uuid(&m->disk[i], shape->disk[i].snapshot_uuid, &snap, err) :
			      disk_find_snapshot(&m->disk[i], name, &snap, err);
		if (ret == 0) {
			strcpy(way->name[i], snap.name);
			memcpy(way->uuid[i], snap.uuid, sizeof(way->uuid[i]));
		}
	}
	return ret;
}

/* The first disk last: as long as it has not gone back, doing it all again gets there. */
static int revert_disks(struct machine *m, const char *name, const struct way_back *way, struct img_error *err)
{
	int ret = 0;

	for (unsigned i = m->nr_disks; ret == 0 && i-- > 0;) {
		if (i > 0 && !way->name[i][0])
			continue;
		ret = img_snapshot_revert(m->disk[i].img, i > 0 ? way->name[i] : name, err);
		if (ret == 0 && i > 0)
			memcpy(m->disk[i].snapshot_uuid, way->uuid[i], sizeof(way->uuid[i]));
		if (ret == 0)
			virtio_blk_changed(m->blk[i]);
	}
	return ret;
}

static int revert_paused(struct machine *m, const char *name, const struct way_back *way, struct state *state,
			 struct img_error *err)
{
	int ret = revert_disks(m, name, way, err);

	if (ret != 0)
		return ret;
	if (!state) {
		ret = saver_forget(&m->saver, err);
		return ret ? ret : machine_reset(m, err);
	}
	ret = saver_load(&m->saver, m->disk[0].img, NULL, true, err);
	return ret ? ret : load_devices(m, state, err);
}

/* Everything that can be known before the machine is touched. state is empty where the snapshot holds none. */
static int prepare_revert(struct machine *m, const struct img_snapshot *snap, uint8_t **buf, struct state *state,
			  struct way_back *way, struct img_error *err)
{
	struct machine_shape shape;
	int ret;

	if (m->disk[0].read_only)
		return fail(err, IMG_E_READONLY, "the machine's disk is read-only");
	if (!m->disk[0].holds_machine || snap->vmstate_bytes == 0) {
		if (!m->boot)
			return fail(
				err, IMG_E_UNSUPPORTED,
				"the snapshot holds no machine, and this one was resumed without its kernel: it cannot be "
				"started again");
		return find_way_back(m, snap->name, NULL, way, err);
	}
	ret = machine_state_read(m->disk[0].img, snap->name, buf, state, err);
	if (ret == 0)
		ret = machine_shape_parse(state, &shape, err);
	if (ret == 0)
		ret = machine_shape_check(m, &shape, err);
	if (ret == 0)
		ret = vm_check(m->vm, state, err);
	if (ret == 0)
		ret = find_way_back(m, snap->name, &shape, way, err);
	return ret ? ret : take_clone_lock(m, snap->uuid, err);
}

int machine_revert(struct machine *m, const char *name, struct img_error *err)
{
	bool was_running = m->running;
	struct way_back *way = calloc(1, sizeof(*way));
	struct img_snapshot snap;
	struct state state = { 0 };
	uint8_t *buf = NULL;
	int ret = way ? disk_find_snapshot(&m->disk[0], name, &snap, err) : fail(err, IMG_E_NOMEM, "out of memory");

	if (ret == 0)
		ret = prepare_revert(m, &snap, &buf, &state, way, err);
	if (ret == 0) {
		machine_pause(m);
		ret = revert_paused(m, name, way, buf ? &state : NULL, err);
		if (ret == 0)
			snprintf(m->base, sizeof(m->base), "%s", name);
		if (ret == 0 && was_running)
			machine_resume(m);
	}
	free(buf);
	free(way);
	return ret;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

/* On every disk that has it; the first disk decides what is said. */
int machine_snapshot_delete(struct machine *m, const char *name, struct img_error *err)
{
	int ret = img_snapshot_delete(m->disk[0].img, name, err);

	for (unsigned i = 1; ret == 0 && i < m->nr_disks; i++)
		if (!m->disk[i].read_only)
			img_snapshot_delete(m->disk[i].img, name, NULL);
	return ret;
}

int machine_snapshot_rename(struct machine *m, const char *name, const char *new_name, struct img_error *err)
{
	int ret = img_snapshot_rename(m->disk[0].img, name, new_name, err);

	for (unsigned i = 1; ret == 0 && i < m->nr_disks; i++)
		if (!m->disk[i].read_only)
			img_snapshot_rename(m->disk[i].img, name, new_name, NULL);
	if (ret == 0 && strcmp(m->base, name) == 0)
		snprintf(m->base, sizeof(m->base), "%s", new_name);
	return ret;
}

int machine_verify_step(struct machine *m, struct img_error *err)
{
	return saver_verify_step(&m->saver, err);
}
