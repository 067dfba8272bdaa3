/* SPDX-License-Identifier: MIT */
/*
 * The images of a machine. The first is the one that the machine is named by, and in limg it holds the machine's state;
 * the others are snapshotted under the same name before it, so that a snapshot of the first that holds a machine never
 * speaks of one that is missing elsewhere.
 */
#ifndef IMGVM_DISKS_H
#define IMGVM_DISKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image_limits.h"
#include "libimg.h"

#define DISKS_MAX 8

struct disk_options {
	const char *path;
	const char *snapshot; /* NULL: the head */
	const char *format;   /* NULL: probe */
	bool read_only;
	bool transient; /* changes go to a file of our own that is gone afterwards */
	bool revert;	/* with snapshot: make the head this snapshot, whatever it holds */
	enum img_refs refs;
	struct limits limits; /* of each image's own chain. All zero: no budget of our own, the library's defaults */
	const char *scratch;  /* folder for transient files; NULL: TMPDIR or /var/tmp */
};

struct disk {
	char *path;
	struct img *img;  /* what the guest writes: the image, or the throw-away overlay */
	struct img *base; /* the image that the machine comes from, open read-only, where img is an overlay; else NULL */
	char snapshot[IMG_SNAPSHOT_NAME_MAX + 1]; /* "" for the head */
	bool read_only, transient;
	bool has_uuid;
	uint8_t uuid[16];	   /* of the image at path */
	uint8_t snapshot_uuid[16]; /* of `snapshot`, zero where there is none */
	bool holds_machine;	   /* the image can keep a machine's state (limg) */
	bool has_machine;	   /* `snapshot` holds one */
	bool is_head;		   /* `snapshot` is what the head was at opening: there is nothing to revert */
	bool saved_with_machine; /* while the state is written: snapshot_uuid is of the snapshot just made beside it */
};

/*
 * Opens it. Without transient a snapshot must be what the head is (as after imgtool revert), or `revert` must be given:
 * REFUSED else, saying so: the head's changes are not thrown away by the way.
 */
int disk_open(struct disk *disk, const struct disk_options *opts, struct img_error *err);
/* Makes the head what the snapshot is, when all that was asked for has been found possible: the only thing here that
 * changes an image. */
int disk_settle(struct disk *disk, struct img_error *err);
int disk_close(struct disk *disk, struct img_error *err);
/* A snapshot of the image that the guest writes. NOENT: none of that name. */
int disk_find_snapshot(struct disk *disk, const char *name, struct img_snapshot *out, struct img_error *err);
/* As disk_find_snapshot(), by uuid. */
int disk_find_snapshot_uuid(struct disk *disk, const uint8_t uuid[16], struct img_snapshot *out, struct img_error *err);
/* Where machine state of `snapshot` is read: base or img. NULL snapshot: the working state. */
struct img *disk_machine_image(struct disk *disk);

#endif
