/* SPDX-License-Identifier: MIT */
/*
 * The Parallels driver. An expandable image (.hds, .hdd) is a header, a table of 32 bit entries and clusters, which are
 * the engine's (blockmap.h):
 *
 *   header.c    the header, on disk and in memory
 *   options.c   creation options
 *   create.c    new images, measure
 *   open.c      opening, closing, entries, the mark of an open image
 *   ext.c       the Format Extension: dirty bitmaps that other programs keep
 *   resize.c    growing (clusters may have to make room for the table) and shrinking
 *   check.c     findings and repair
 *   inspect.c   what a stranger's header says
 *   info.c      details
 *   md5.c       of the extension
 *
 * A bundle is a folder of such images, and of raw ones (prl_bundle.h):
 *
 *   descriptor.c   what DiskDescriptor.xml says
 *   layer.c        its images as nodes, each on the one below it
 *   bundle.c       opening, snapshots, what is told of it
 *   bundle_make.c  new ones
 *   bundle_check.c its images, one after the other
 *
 * Crash consistency: every change of the header is one write within one sector. The mark that a writer has the image
 * open is durable before the first change, and goes when the last one is (PRL-4); in between the image is whole at any
 * time, but for clusters that are nobody's yet.
 */
#ifndef PRL_H
#define PRL_H

#include <pthread.h>

#include "blockmap.h"
#include "checked.h"
#include "error.h"
#include "prl_disk.h"

#undef LAYER
#define LAYER "parallels"

struct prl_header {
	bool v2; /* entries count clusters, not sectors */
	uint32_t heads, cylinders, nr_entries, in_use, flags;
	uint32_t cluster_bytes;
	uint64_t nr_sectors;
	uint64_t data_off; /* bytes, 0 resolved */
	uint64_t ext_off;  /* bytes, 0: none */
	bool high_sectors; /* V1: the high half of the size holds something, which is ignored */
};

/* One expandable image; the (beginning of the) state of its node. */
struct prl_image {
	struct node *node;
	struct node *file; /* node->file, unless set before node is opened: a part of a bundle */
	struct blockmap *bm;
	bool writable, bulk, check_only;
	bool marked; /* the mark on disk is ours */
	/* h.in_use, flags, ext_off, marked, and writes of the header; the rest changes while no request is under way. */
	pthread_mutex_t header_lock;
	struct prl_header h;
};

#define PRL_SPLIT_MIN 65536u

enum prl_subformat { PRL_EXPANDABLE, PRL_BUNDLE, PRL_PLAIN };

struct prl_options {
	uint32_t cluster_bytes;
	bool v1;
	enum prl_subformat subformat;
	uint64_t split_bytes; /* of a bundle's storages; 0: there is one */
};

#define PRL_OPTIONS_HELP                                                                                                                             \
	"subformat=TYPE    expandable (default: one file), bundle (NAME.hdd/DiskDescriptor.xml and .hds files beside it) or plain (the same, raw)\n" \
	"split_size=SIZE    of each file of a bundle, 64K or more (default: one file)\n"                                                             \
	"cluster_size=SIZE    512 to 1G, a multiple of 512 (default 1M)\n"                                                                           \
	"version=N    2 (default) or 1, which older programs read: the disk and the file are less than 2 TiB\n"

/* ---- header.c ---- */

struct prl_image *prl_image_of(const struct node *node);
/* Loads and checks the header: everything but what its table leads to. IMG_E_CORRUPT, IMG_E_UNSUPPORTED. */
int prl_header_load(struct node *file, struct prl_header *out, struct img_error *err);
/* The header in the file becomes h, in one write; not yet durable. */
int prl_header_store(struct node *file, const struct prl_header *h, struct img_error *err);
uint64_t prl_disk_bytes(const struct prl_header *h);
/* The size, the count of entries and a geometry for it. data_off stays. IMG_E_LIMIT. */
int prl_header_set_size(struct prl_header *h, uint64_t disk_bytes, struct img_error *err);
uint64_t prl_table_end(const struct prl_header *h);
/* What an entry counts, in bytes. */
uint64_t prl_unit_bytes(const struct prl_header *h);
/* The first place at or behind off (PRL-7). */
uint64_t prl_place_at(const struct prl_header *h, uint64_t off);

/* ---- parallels.c ---- */
/* The driver's members for one expandable image. */
uint64_t prl_image_size(const struct node *n);
void prl_image_limits(const struct node *n, struct driver_limits *out);
int prl_image_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int prl_image_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		     struct img_error *err);
int prl_image_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int prl_image_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int prl_image_flush(struct node *n, unsigned flags, struct img_error *err);
int prl_image_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		     struct img_error *err);

/* ---- options.c ---- */
int prl_options_parse(const char *text, struct prl_options *out, struct img_error *err);

/* ---- create.c ---- */
/* One expandable image of size_bytes in file. */
int prl_image_make(struct node *file, const struct prl_options *o, uint64_t size_bytes, struct img_error *err);
/* What it takes without data. */
int prl_image_plan(const struct prl_options *o, uint64_t size_bytes, struct prl_header *h, struct img_error *err);
int prl_create(struct node *file, const struct driver_create *args, struct img_error *err);
int prl_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);
/* Entries [first, first + nr) of the table are free. */
int prl_write_free(struct node *file, uint64_t first, uint64_t nr, struct img_error *err);

/* ---- open.c ---- */
int prl_image_open(struct node *node, const struct driver_open *args, struct img_error *err);
int prl_image_close(struct node *node, struct img_error *err);
/* The header as it is at the moment. */
struct prl_header prl_header_now(struct prl_image *p);
/* What the engine has to know of the header; end_off is where places begin. */
struct blockmap_shape prl_shape(const struct prl_header *h);
/* The header becomes h, durably. alone. On failure the image is broken, as nobody knows which one the disk holds. */
int prl_replace_header(struct prl_image *p, const struct prl_header *h, struct img_error *err);

/* ---- ext.c ---- */

/* What an extension is found to be. */
struct prl_ext {
	bool whole;		 /* its checksum is right */
	uint64_t nr_bitmaps;	 /* dirty bitmaps */
	uint64_t nr_other;	 /* sections that nobody knows here */
	bool must_stay;		 /* one of these forbids changes, or is to be kept as it is */
	struct img_range *taken; /* its clusters in the file, ascending, without overlaps; to be freed */
	size_t nr_taken;
	char damage[160]; /* the first thing that is wrong; "" */
	uint64_t damage_off;
};
/* h->ext_off is set. What is wrong with it is no failure, but told in out. free(out->taken). */
int prl_ext_load(struct node *file, const struct prl_header *h, const char *path, struct budget *budget,
		 struct prl_ext *out, struct img_error *err);

/* ---- resize.c ---- */
int prl_image_resize(struct node *node, uint64_t size_bytes, struct img_error *err);
/*
 * Brings clusters in line (PRL-7), which may take room, fills the gaps between places with clusters from the end and
 * cuts the file off behind the last one. alone; no two entries lead to one place. After a failure the image is whole
 * and what was not done yet is leaked.
 */
int prl_compact(struct prl_image *p, struct img_error *err);

/* ---- check.c, inspect.c, info.c ---- */
int prl_image_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		    const struct img_progress *progress, struct img_check_result *out, struct img_error *err);
int prl_inspect(struct node *file, struct inspector *in, struct img_error *err);
int prl_image_info(struct node *node, struct img_info *out, struct img_error *err);
int prl_image_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err);

/* ---- md5.c ---- */
struct prl_md5 {
	uint32_t state[4];
	uint64_t bytes;
	uint8_t block[64];
};
void prl_md5_start(struct prl_md5 *m);
void prl_md5_add(struct prl_md5 *m, const void *data, size_t bytes);
void prl_md5_end(struct prl_md5 *m, uint8_t out[16]);

#endif
