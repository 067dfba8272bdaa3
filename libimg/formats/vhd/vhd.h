/* SPDX-License-Identifier: MIT */
/*
 * The inside of the VHD driver:
 *
 *   footer.c     the footer and its copy: loading, choosing, writing
 *   header.c     the dynamic disk header
 *   locator.c    the parent's name
 *   options.c    what images are created with; create.c, measure.c
 *   open.c       the state of an open image; closing
 *   io.c         requests; fixed disks, and what the block engine asks of this format
 *   resize.c, backing.c, restructure.c
 *   info.c, check.c, inspect.c
 *
 * VHD-nn are the invariants of format-spec/vhd.md.
 */
#ifndef VHD_H
#define VHD_H

#include <pthread.h>
#include <stdatomic.h>

#include "blockmap.h"
#include "checked.h"
#include "error.h"
#include "foreign_name.h"
#include "node.h"
#include "vhd_disk.h"

#define LAYER "vhd"

/* ---- footer.c ---- */

enum vhd_copy {
	VHD_ABSENT, /* no cookie */
	VHD_STALE,  /* the checksum does not hold */
	VHD_GOOD,
};

struct vhd_footers {
	struct disk_vhd_footer f; /* the one that counts */
	enum vhd_copy head, tail;
	uint64_t tail_off;   /* where the footer begins; the file's end where there is none */
	uint32_t tail_bytes; /* 512, 511, or 0 */
	bool differ;	     /* both are good, and say different things */
	bool stale;	     /* f's checksum does not hold: for reading alone */
};

/*
 * Reads both and chooses; f is checked, the disk's size included. IMG_E_FORMAT: no VHD; IMG_E_CORRUPT; IMG_E_REFUSED:
 * head and tail are two images; IMG_E_UNSUPPORTED.
 */
int vhd_footers_load(struct node *file, struct vhd_footers *out, struct img_error *err);
/* See footer.c; for a file that shows none at either end. */
int vhd_find_lost_footer(struct node *file, struct disk_vhd_footer *f, bool *found, struct img_error *err);
enum vhd_type vhd_footer_type(const struct disk_vhd_footer *f);
/* What the guest sees, and where that number comes from. */
uint64_t vhd_footer_size(const struct disk_vhd_footer *f);
bool vhd_size_from_geometry(const struct disk_vhd_footer *f);
uint64_t vhd_geometry_bytes(const struct disk_vhd_footer *f);
/* A footer of our own: everything but type, data_off and uuid. */
void vhd_footer_init(struct disk_vhd_footer *f, uint64_t size_bytes);
/* Every reader takes current_bytes for the size then. */
void vhd_footer_set_size(struct disk_vhd_footer *f, uint64_t size_bytes);
void vhd_footer_seal(struct disk_vhd_footer *f); /* the checksum */
uint32_t vhd_timestamp(int64_t unix_seconds);	 /* 0 where it cannot be said */
int vhd_random_uuid(uint8_t uuid[16], struct img_error *err);

/* ~ the sum of all bytes but the four of the checksum. */
uint32_t vhd_checksum(const void *p, size_t bytes, size_t field_off);

/* ---- header.c ---- */

struct vhd_header {
	struct disk_vhd_header disk;
	uint64_t off; /* in the file */
	uint64_t table_off;
	uint32_t max_entries, block_bytes;
};

/* At the footer's data_off; checks everything that is needed to find blocks of a disk of disk_bytes. */
int vhd_header_load(struct node *file, const struct vhd_footers *foot, struct vhd_header *out, struct img_error *err);
void vhd_header_init(struct vhd_header *h, uint64_t table_off, uint32_t max_entries, uint32_t block_bytes);
void vhd_header_seal(struct vhd_header *h); /* disk's fields from the others, and the checksum */
uint32_t vhd_bitmap_bytes(uint32_t block_bytes);
/* Bytes of a table as it is written, whole sectors. */
uint64_t vhd_table_bytes(uint64_t entries);

/* ---- locator.c ---- */

#define VHD_LOCATOR_ROOM_BYTES 2048u /* of each that we write; holds the longest name */
#define VHD_LOCATORS_BYTES     (2 * VHD_LOCATOR_ROOM_BYTES)

#define VHD_PATHS_MAX (1 + BACKING_OTHERS)
/* Paths of a parent in the order in which they are tried, each once; "" from the first that is not used. */
struct vhd_paths {
	char at[VHD_PATHS_MAX][NAME_PATH_MAX];
};
/* By the locators and the name in the header. Damage is not told: see check.c. */
int vhd_parent_paths(struct node *file, const struct disk_vhd_header *h, struct vhd_paths *out, struct img_error *err);
/* Text of locator i, as bytes. *nr: how many of its bytes fit into room; 0 where it lies outside the file. */
int vhd_locator_text(struct node *file, const struct disk_vhd_header *h, unsigned i, uint8_t *out, size_t room,
		     size_t *nr, struct img_error *err);
/*
 * Makes h name ref (NULL: no parent), with texts in room of VHD_LOCATORS_BYTES that is going to stand at off.
 * IMG_E_INVALID: a name that cannot be written so; IMG_E_UNSUPPORTED: the parent is no VHD.
 */
int vhd_set_parent(struct disk_vhd_header *h, const struct backing_ref *ref, uint8_t *room, uint64_t off,
		   struct img_error *err);

/* ---- options.c ---- */

#define VHD_OPTIONS_HELP                                                                    \
	"subformat=TYPE    dynamic (default) or fixed\n"                                    \
	"block_size=SIZE    of a dynamic disk: 4K to 256M, a power of two (default 2M)\n"   \
	"align=SIZE    round the disk's size up to a multiple, as Azure wants it with 1M\n" \
	"uuid=UUID    the disk's identity (default: a new one)\n"

struct vhd_options {
	bool fixed;
	uint32_t block_bytes;
	uint64_t align_bytes;
	bool has_uuid;
	uint8_t uuid[16];
};
int vhd_options_parse(const char *text, bool has_backing, struct vhd_options *out, struct img_error *err);
/* Of the disk that o makes of size_bytes. IMG_E_LIMIT. */
int vhd_options_size(const struct vhd_options *o, uint64_t size_bytes, uint64_t *out, struct img_error *err);

/* ---- the state of an open image ---- */

#define VHD_STRUCTURES_MAX (3u + VHD_LOCATORS) /* the footer's copy, header, table, texts */

struct vhd_state {
	pthread_mutex_t still; /* see vhd_stop(); taken before the engine's gate */
	struct vhd_footers foot;
	struct vhd_header head; /* not of fixed disks */
	struct blockmap *bm;	/* the same */
	bool writable;
	bool check_only;
	bool bulk;
	bool names_parent;
	struct vhd_paths parent;
	struct img_range structure[VHD_STRUCTURES_MAX]; /* what is no block's; ascending, merged */
	size_t nr_structures;
	bool structures_overlap;
	bool texts_outside;   /* of a disk that names a parent */
	uint64_t texts_limit; /* texts that reach over it were no part of the file, and are not now that it is longer */
	/* The last place that was given, and the end of all others; under the engine's map. */
	uint64_t last_place, end_before;
	_Atomic uint64_t disk_bytes;
	_Atomic bool dirty;  /* fixed: something changed that no flush has covered */
	_Atomic bool broken; /* fixed */
};

static inline struct vhd_state *vhd_state(const struct node *n)
{
	return n->state;
}
static inline bool vhd_is_fixed(const struct vhd_state *s)
{
	return vhd_footer_type(&s->foot.f) == VHD_FIXED;
}

int vhd_create(struct node *file, const struct driver_create *args, struct img_error *err);
int vhd_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);
int vhd_open(struct node *n, const struct driver_open *args, struct img_error *err);
int vhd_close(struct node *n, struct img_error *err);
/* Fills structure[] from head and texts_limit. */
void vhd_learn_structures(struct vhd_state *s);
/* What the engine is to know of the disk as it is described by foot and head. */
void vhd_shape(const struct vhd_state *s, struct blockmap_shape *out);
extern const struct blockmap_ops vhd_block_ops;
/* IMG_E_READONLY, IMG_E_POISONED. */
int vhd_may_change(struct node *n, struct img_error *err);
void vhd_break(struct vhd_state *s);
/*
 * Footers and geometry stay as they are until vhd_start(), but for what the caller does to them. Requests wait, but for
 * those to a fixed disk. A check needs that: a resize may run beside it.
 */
int vhd_stop(struct vhd_state *s, struct img_error *err);
void vhd_start(struct vhd_state *s);
/*
 * foot.f, sealed, is what both copies say afterwards, durably: the head first, which is the atomic point of every
 * change of a disk that has one, then the tail at `end`, which is the file's end then.
 */
int vhd_write_head(struct vhd_state *s, struct node *file, struct img_error *err);
int vhd_write_tail(struct vhd_state *s, struct node *file, uint64_t end, struct img_error *err);
int vhd_write_footers(struct vhd_state *s, struct node *file, uint64_t end, struct img_error *err);

/* The sector of h, sealed, that says where the table is and how long, durably; one write changes it. In resize.c. */
int vhd_write_header(struct node *n, const struct vhd_header *h, struct img_error *err);

/* The first byte behind all that is in use; the engine stands still. */
int vhd_content_end(struct vhd_state *s, uint64_t *out, struct img_error *err);
/* Does [off, off + bytes) meet [from, to)? No sum overflows. */
bool vhd_in_way(uint64_t off, uint64_t bytes, uint64_t from, uint64_t to);

int vhd_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int vhd_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int vhd_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int vhd_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int vhd_flush(struct node *n, unsigned flags, struct img_error *err);
int vhd_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
	       struct img_error *err);
int vhd_resize(struct node *n, uint64_t size_bytes, struct img_error *err);
bool vhd_get_backing(struct node *n, struct backing_ref *out);
int vhd_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err);
void vhd_id(struct node *n, struct pin *out);
int vhd_info(struct node *n, struct img_info *out, struct img_error *err);
int vhd_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err);
int vhd_amend(struct node *n, const char *options, struct img_error *err);
int vhd_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	      struct img_check_result *out, struct img_error *err);
int vhd_inspect(struct node *file, struct inspector *in, struct img_error *err);

#endif
