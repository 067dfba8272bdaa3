/* SPDX-License-Identifier: MIT */
/*
 * The VDI driver: a header of one sector, a map of 32 bit entries, blocks, and UUIDs that say who stands on whom. The
 * blocks are the engine's (blockmap.h); here is what is VDI's own:
 *
 *   header.c    header and UUIDs, on disk and in memory
 *   options.c   creation options
 *   create.c    new images, measure
 *   open.c      opening, closing, entries, the modification UUID, the count of blocks
 *   backing.c   parents: by UUID, and by a name that the format has no field for
 *   amend.c     another UUID, another name of the parent
 *   resize.c    growing (the map may have to move) and shrinking
 *   check.c     findings and repair
 *   inspect.c   what a stranger's header says
 *   info.c      details
 *
 * Crash consistency: every change of the header is one write within one sector. The number of places that it tells is
 * raised before an entry leads to a new one, since other writers begin there (VDI-8).
 */
#ifndef VDI_H
#define VDI_H

#include "blockmap.h"
#include "checked.h"
#include "error.h"
#include "vdi_disk.h"

#undef LAYER
#define LAYER "vdi"

struct vdi_header {
	uint32_t version, header_bytes, type, flags;
	char comment[VDI_COMMENT_BYTES + 1];
	uint32_t map_off, data_off; /* bytes in the file */
	uint64_t disk_bytes;	    /* as recorded; guests see whole sectors of it */
	uint32_t block_bytes, extra_bytes;
	uint32_t nr_blocks;
	uint32_t nr_allocated; /* places: the next one to be given */
	uint8_t uuid[16], modification[16], parent[16], parent_modification[16];
};

struct vdi_state {
	struct node *node;
	struct blockmap *bm;
	bool writable, bulk, check_only;
	bool resizing; /* alone; places may be more than blocks, for the time that the map needs to move */
	/* h.modification, nr_allocated, and writes of the header; the rest changes while no request is under way. */
	pthread_mutex_t header_lock;
	struct vdi_header h;
};

struct vdi_options {
	uint32_t block_bytes, align_bytes;
	bool fixed;
	enum { VDI_PREALLOC_OFF, VDI_PREALLOC_FALLOC, VDI_PREALLOC_FULL } preallocation;
	bool has_uuid;
	uint8_t uuid[16]; /* as on disk */
};

#define VDI_OPTIONS_HELP                                                                                                     \
	"subformat=TYPE    dynamic (default: grows as it is written) or fixed (all blocks are there)\n"                      \
	"static=BOOL    on: the same as subformat=fixed\n"                                                                   \
	"preallocation=MODE    of a fixed one: off (a hole, the default), falloc (space reserved) or full (zeros written)\n" \
	"block_size=SIZE    512 to 1G, a power of two (default 1M; QEMU reads no other)\n"                                   \
	"align=SIZE    of block map and data in the file, 512 to 1M, a power of two (default 1M)\n"                          \
	"uuid=UUID    of the image (default: a new one; VirtualBox refuses two media with one UUID)\n"

/* ---- header.c ---- */

struct vdi_state *vdi_state_of(const struct node *node);
/*
 * Loads and checks the header: everything but what its map leads to. IMG_E_CORRUPT; IMG_E_UNSUPPORTED for what is none
 * of the known kinds, or (writable) cannot be written.
 */
int vdi_header_load(struct node *file, bool writable, struct vdi_header *out, struct img_error *err);
/* The header in the file becomes h, in one write; not yet durable. */
int vdi_header_store(struct node *file, const struct vdi_header *h, struct img_error *err);
/* A whole new header, with everything that h does not say. */
int vdi_header_create(struct node *file, const struct vdi_header *h, struct img_error *err);
uint64_t vdi_place_bytes(const struct vdi_header *h);
/* The disk as guests see it. */
uint64_t vdi_disk_bytes(const struct vdi_header *h);
/* How many blocks, and how many bytes of map, a disk takes. IMG_E_LIMIT. */
int vdi_blocks_for(uint64_t disk_bytes, uint32_t block_bytes, uint32_t *nr, struct img_error *err);

int vdi_uuid_new(uint8_t *out, struct img_error *err);
bool vdi_uuid_is_null(const uint8_t *uuid);
#define VDI_UUID_TEXT_BYTES 37
/* The text form has the first three fields most significant byte first, the disk has them little-endian. */
void vdi_uuid_text(const uint8_t *uuid, char *out);
bool vdi_uuid_parse(const char *text, uint8_t *out);
/* In the order of the text. */
void vdi_uuid_swap(const uint8_t *uuid, uint8_t *out);

/* ---- options.c ---- */
int vdi_options_parse(const char *text, struct vdi_options *out, struct img_error *err);

/* ---- create.c ---- */
int vdi_create(struct node *file, const struct driver_create *args, struct img_error *err);
int vdi_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);
/* Blocks [first, first + nr) of the map at map_off: the entries first_entry, first_entry + step, ... */
int vdi_write_entries(struct node *file, uint64_t map_off, uint64_t first, uint64_t nr, uint32_t first_entry,
		      uint32_t step, struct img_error *err);

/* ---- open.c ---- */
int vdi_open(struct node *node, const struct driver_open *args, struct img_error *err);
int vdi_close(struct node *node, struct img_error *err);
/* The header as it is at the moment. */
struct vdi_header vdi_header_now(struct vdi_state *v);
/* What the engine has to know of the header. */
struct blockmap_shape vdi_shape(const struct vdi_header *h);
/* Sets and stores the count of places, if it differs. */
int vdi_store_count(struct vdi_state *v, uint64_t nr, struct img_error *err);
/* The header becomes h, durably. alone. On failure the image is broken, as nobody knows which one the disk holds. */
int vdi_replace_header(struct vdi_state *v, const struct vdi_header *h, struct img_error *err);

/* ---- backing.c ---- */
bool vdi_get_backing(struct node *node, struct backing_ref *out);
int vdi_set_backing(struct node *node, const struct backing_ref *ref, enum backing_change how, struct img_error *err);
void vdi_id(struct node *node, struct pin *out);
/* As the driver's member, of a differencing image's header. */
void vdi_header_get_backing(const struct vdi_header *h, struct backing_ref *out);
/* ref NULL: none. For create and set_backing. */
int vdi_header_set_backing(struct vdi_header *h, const struct backing_ref *ref, struct img_error *err);
/* The parent's name as the comment has it, at most cap - 1 bytes; false: none. *off: where in the comment it begins. */
bool vdi_recorded_name(const char *comment, char *out, size_t cap, bool *committing, size_t *off);
/* Leaves what people wrote: our line about the parent is cut off. comment has VDI_COMMENT_BYTES + 1 bytes. */
void vdi_comment_of_people(char *comment);

/* ---- amend.c ---- */
int vdi_amend(struct node *node, const char *options, struct img_error *err);

/* ---- resize.c ---- */
int vdi_resize(struct node *node, uint64_t size_bytes, struct img_error *err);
/*
 * Fills the gaps between places with blocks from the end, cuts the file off behind the last one, and corrects the
 * count. alone; no two entries lead to one place.
 */
int vdi_compact(struct vdi_state *v, struct img_error *err);

/* ---- check.c, inspect.c, info.c ---- */
int vdi_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	      struct img_check_result *out, struct img_error *err);
int vdi_inspect(struct node *file, struct inspector *in, struct img_error *err);
int vdi_info(struct node *node, struct img_info *out, struct img_error *err);
int vdi_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err);

#endif
