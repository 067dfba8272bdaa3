/* SPDX-License-Identifier: MIT */
/*
 * The inside of the VHDX driver:
 *
 *   header.c    headers, region tables, metadata: what an image is
 *   locator.c   the parent's name and identity
 *   log.c       the log: what it would change, as a layer over the file
 *   bat.c       what entries of the block allocation table mean; the sector bitmaps
 *   open.c      the state of an open image
 *   inspect.c, vhdx.c
 *
 * VHDX-nn are the rules of format-spec/vhdx.md. Images are only read.
 */
#ifndef VHDX_H
#define VHDX_H

#include "blockmap.h"
#include "checked.h"
#include "error.h"
#include "node.h"
#include "vhdx_disk.h"

#define LAYER		"vhdx"
#define VHDX_PATH_MAX	1024u /* of a parent, as struct backing_ref has it */
#define VHDX_GUID_BYTES 16u

struct vhdx_range {
	uint64_t off, bytes;
};

struct vhdx_header {
	uint8_t file_write[16], data_write[16], log_guid[16];
	struct vhdx_range log;
	bool needs_replay; /* log_guid is not zero */
};

/* What regions and metadata say, all of it judged. */
struct vhdx_meta {
	struct vhdx_range bat, metadata;
	uint64_t disk_bytes, block_bytes;
	uint32_t sector_bytes, physical_bytes;
	bool leave_blocks, has_parent;
	uint8_t page83[16];
	struct vhdx_range locator; /* of the file; bytes 0: none */
	uint64_t chunk_ratio;	   /* blocks that one block of the sector bitmap describes */
	uint64_t nr_blocks, nr_slots;
};

struct vhdx_state {
	struct node *node;
	struct vhdx_header h;
	struct vhdx_meta m;
	struct blockmap *bm;
	uint8_t linkage[16];	    /* of the parent */
	char parent[VHDX_PATH_MAX]; /* "" for none */
};

/* ---- header.c ---- */

/* Of regions and of items of metadata; in the order of their bytes on disk. */
extern const uint8_t vhdx_guid_bat[16], vhdx_guid_metadata[16];
extern const uint8_t vhdx_guid_parameters[16], vhdx_guid_size[16], vhdx_guid_logical[16], vhdx_guid_physical[16],
	vhdx_guid_page83[16], vhdx_guid_locator[16];

/* FORMAT, CORRUPT, UNSUPPORTED, IO. */
int vhdx_header_load(struct node *file, struct vhdx_header *out, struct img_error *err);
/* Through the log, if there is one: file is what vhdx_log_open() gave. */
int vhdx_meta_load(struct node *file, struct vhdx_meta *out, struct img_error *err);
void vhdx_guid_text(const uint8_t guid[16], char out[40]); /* "{01234567-89ab-...}" */

/* ---- locator.c ---- */

/* name: as this host writes it, "" where the locator has none that could be opened. CORRUPT, LIMIT, IO. */
int vhdx_locator_load(struct node *file, const struct vhdx_range *at, char name[VHDX_PATH_MAX], uint8_t linkage[16],
		      struct img_error *err);

/* ---- log.c ---- */

/*
 * *out: file with what the log holds laid over it, or file itself where it holds nothing. It owns file then, and is to
 * be closed in its place. On failure file is as before. CORRUPT: the file is shorter than the log says that it was.
 */
int vhdx_log_open(struct node *file, const struct vhdx_header *h, struct budget *budget, struct node **out,
		  struct img_error *err);

/* ---- bat.c ---- */

extern const struct blockmap_ops vhdx_bat_ops;
struct blockmap_shape vhdx_bat_shape(const struct vhdx_meta *m);
/* Bytes of blocks that entries lead to; bad: entries that make no sense. */
int vhdx_bat_sum(struct node *file, const struct vhdx_meta *m, uint64_t *mapped, uint64_t *bad, struct img_error *err);

/* ---- inspect.c ---- */

struct inspector;
int vhdx_inspect(struct node *file, struct inspector *in, struct img_error *err);

#endif
