/* SPDX-License-Identifier: MIT */
/* See disks.h. */
#include "disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

/* Metadata in memory: a fleet of machines has one each, and a guest keeps its own cache of the disk. */
#define CACHE_BYTES (UINT64_C(1) << 20)

/* ---- what the image is ------------------------------------------------------------------------------------------- */

/* uuid where it is there, else name. */
static bool is_wanted(const struct img_snapshot *s, const char *name, const uint8_t *uuid)
{
	if (uuid)
		return memcmp(s->uuid, uuid, sizeof(s->uuid)) == 0;
	return name && strcmp(s->name, name) == 0;
}

/* The snapshot of that name, or with that uuid; NOENT if there is none. */
static int find_snapshot(struct img *img, const char *name, const uint8_t *uuid, struct img_snapshot *out,
			 struct img_error *err)
{
	struct img_snapshot *all = NULL;
	size_t cap = 0, nr = 0;
	int ret = img_snapshot_list(img, NULL, 0, &nr, err);

	while (ret == 0 && nr > cap) {
		free(all);
		cap = nr;
		all = calloc(cap, sizeof(*all));
		ret = all ? img_snapshot_list(img, all, cap, &nr, err) : fail(err, IMG_E_NOMEM, "out of memory");
	}
	for (size_t i = 0; ret == 0 && i < nr; i++) {
		if (is_wanted(&all[i], name, uuid)) {
			*out = all[i];
			free(all);
			return 0;
		}
	}
	free(all);
	return ret ? ret :
		     fail(err, IMG_E_NOENT, "%.100s has no snapshot %.64s", img_path(img),
			  uuid ? "of that uuid: it was made with the machine's and is gone" : name);
}

int disk_find_snapshot(struct disk *disk, const char *name, struct img_snapshot *out, struct img_error *err)
{
	return find_snapshot(disk->img, name, NULL, out, err);
}

int disk_find_snapshot_uuid(struct disk *disk, const uint8_t uuid[16], struct img_snapshot *out, struct img_error *err)
{
	return find_snapshot(disk->img, NULL, uuid, out, err);
}

static int look(struct disk *disk, struct img *img, const struct disk_options *opts, struct img_error *err)
{
	static const uint8_t none[16];
	struct img_snapshot snap;
	struct img_info info;
	int ret = img_info(img, &info, err);

	if (ret != 0)
		return ret;
	disk->has_uuid = info.has_uuid;
	memcpy(disk->uuid, info.uuid, sizeof(disk->uuid));
	if (!opts->snapshot)
		return 0;
	ret = find_snapshot(img, opts->snapshot, NULL, &snap, err);
	if (ret != 0)
		return ret;
	strcpy(disk->snapshot, snap.name);
	memcpy(disk->snapshot_uuid, snap.uuid, sizeof(disk->snapshot_uuid));
	disk->has_machine = disk->holds_machine && snap.vmstate_bytes > 0;
	disk->is_head = snap.is_head;
	if (disk->read_only || disk->transient || opts->revert)
		return 0;
	/* the logical root stands for the content: equal roots, equal disks. Formats without one do not know */
	if (memcmp(snap.hash, none, sizeof(none)) == 0)
		return fail(
			err, IMG_E_REFUSED,
			"the format %s does not say whether the disk has changed since the snapshot: --revert loses such "
			"changes; --transient leaves the image alone",
			info.format);
	if (memcmp(info.hash, snap.hash, sizeof(info.hash)) != 0 || img_size(img) != snap.size_bytes)
		return fail(err, IMG_E_REFUSED,
			    "the disk has changed since the snapshot %.64s: imgtool revert, or --revert, loses these "
			    "changes; --transient leaves the image alone",
			    opts->snapshot);
	return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Only limg says of a head whether it is a snapshot, keeps state beside the disk and lets it be mapped. */
static bool keeps_machines(struct img *img)
{
	return strcmp(img_format(img), "limg") == 0;
}

/* Who fills disk_options by hand may have left the limits out. */
static void apply_limits(const struct limits *limits, struct img_open_options *how)
{
	if (limits->budget.struct_size != 0)
		limits_apply(limits, how);
}

static int open_plain(struct disk *disk, const struct disk_options *opts, struct img_error *err)
{
	struct img_open_options how = {
		.struct_size = sizeof(how),
		.format = opts->format,
		.flags = opts->read_only ? 0 : IMG_OPEN_WRITE,
		.refs = opts->refs,
		.cache_bytes = CACHE_BYTES,
	};
	int ret;

	apply_limits(&opts->limits, &how);
	if (opts->read_only)
		how.snapshot = opts->snapshot;
	ret = img_open(opts->path, &how, &disk->img, err);
	if (ret != 0)
		return ret;
	disk->holds_machine = keeps_machines(disk->img);
	return look(disk, disk->img, opts, err);
}

/* The throw-away overlay has no name by the time the guest runs: whatever ends us, nothing stays. */
static int open_overlay(struct disk *disk, const struct disk_options *opts, struct img_error *err)
{
	const char *folder = opts->scratch ? opts->scratch : getenv("TMPDIR");
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.flags = IMG_CREATE_OVERWRITE | IMG_CREATE_VOLATILE,
		.backing = NULL,
		.backing_snapshot = opts->snapshot,
		.backing_format = img_format(disk->base),
		.refs = IMG_REFS_ANY,
	};
	struct img_open_options how = {
		.struct_size = sizeof(how),
		.format = "limg",
		.flags = IMG_OPEN_WRITE | IMG_OPEN_VOLATILE,
		.refs = IMG_REFS_ANY,
		.cache_bytes = CACHE_BYTES,
	};
	struct limits limits = opts->limits; /* the overlay is one layer more, with one reference */
	char name[4096];
	char *real;
	int fd, ret;

	if (!folder || !folder[0])
		folder = "/var/tmp";
	if ((size_t)snprintf(name, sizeof(name), "%s/imgvm-XXXXXX", folder) >= sizeof(name))
		return fail(err, IMG_E_LIMIT, "the folder for transient files has a name too long");
	real = realpath(opts->path, NULL);
	if (!real)
		return fail_errno(err, "%.180s", opts->path);
	fd = mkstemp(name);
	if (fd < 0) {
		ret = fail_errno(err, "a file for transient changes in %.150s", folder);
		free(real);
		return ret;
	}
	close(fd);
	limits.max_depth += limits.max_depth != 0;
	limits.budget.references += limits.budget.references != 0;
	apply_limits(&limits, &how);
	create.budget = how.budget;
	create.backing = real;
	ret = img_create(name, &create, err);
	if (ret == 0)
		ret = img_open(name, &how, &disk->img, err);
	unlink(name);
	free(real);
	return ret;
}

static int open_transient(struct disk *disk, const struct disk_options *opts, struct img_error *err)
{
	struct img_open_options how = {
		.struct_size = sizeof(how),
		.format = opts->format,
		.snapshot = opts->snapshot,
		.refs = opts->refs,
		.cache_bytes = CACHE_BYTES,
	};
	int ret;

	apply_limits(&opts->limits, &how);
	ret = img_open(opts->path, &how, &disk->base, err);
	if (ret != 0)
		return ret;
	disk->holds_machine = keeps_machines(disk->base);
	ret = look(disk, disk->base, opts, err);
	if (ret == 0)
		ret = open_overlay(disk, opts, err);
	disk->holds_machine = true; /* the overlay does; has_machine speaks of the base */
	return ret;
}

int disk_open(struct disk *disk, const struct disk_options *opts, struct img_error *err)
{
	int ret;

	*disk = (struct disk){ .read_only = opts->read_only, .transient = opts->transient };
	disk->path = strdup(opts->path);
	if (!disk->path)
		return fail(err, IMG_E_NOMEM, "out of memory");
	ret = opts->transient ? open_transient(disk, opts, err) : open_plain(disk, opts, err);
	if (ret != 0)
		disk_close(disk, NULL);
	return ret;
}

int disk_settle(struct disk *disk, struct img_error *err)
{
	int ret;

	/* also where only the machine state that the image works with is another */
	if (!disk->snapshot[0] || disk->read_only || disk->transient || disk->is_head)
		return 0;
	ret = img_snapshot_revert(disk->img, disk->snapshot, err);
	disk->is_head = ret == 0;
	return ret;
}

int disk_close(struct disk *disk, struct img_error *err)
{
	int ret = img_close(disk->img, err);

	img_close(disk->base, NULL);
	free(disk->path);
	*disk = (struct disk){ 0 };
	return ret;
}

struct img *disk_machine_image(struct disk *disk)
{
	return disk->base ? disk->base : disk->img;
}
