/* SPDX-License-Identifier: MIT */
/*
 * The inside of the VHDX driver:
 *
 *   header.c     headers, region tables, metadata: what an image is
 *   locator.c    the parent's name and identity
 *   log.c        the log: what it would change, as a layer over the file; making it so
 *   journal.c    writing the log
 *   metadata.c   changes of metadata and of the region table
 *   bat.c        what entries of the block allocation table mean; the sector bitmaps
 *   options.c, create.c
 *   open.c       the state of an open image; closing; requests
 *   resize.c, backing.c
 *   info.c, check.c, inspect.c, vhdx.c
 *
 * VHDX-nn are the rules of format-spec/vhdx.md.
 */
#ifndef VHDX_H
#define VHDX_H

#include <pthread.h>

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

/* More than a writer changes the header from its opening to its end; nobody gets near it by writing. */
#define VHDX_SESSION_HEADERS (UINT64_C(1) << 32)

struct vhdx_header {
	uint8_t file_write[16], data_write[16], log_guid[16];
	struct vhdx_range log;
	uint64_t sequence;
	unsigned which;	   /* of the two copies: the one that counts */
	bool bad_copy;	   /* the other one does not hold */
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

/* What the parent locator says. */
struct vhdx_parent {
	/* As this host writes them, in the order in which they are to be tried; "": no more. */
	char name[1 + BACKING_OTHERS][VHDX_PATH_MAX];
	uint8_t linkage[16], linkage2[16]; /* the parent's data write GUID is one of them; linkage2 zero: none */
	bool committing;		   /* a commit into the parent began and has not ended: ours, see backing.c */
};

/* The log, for a writer. One caller at a time: the engine's flush, or whoever stopped the engine. */
struct vhdx_journal {
	bool active;		/* the header says that the log counts */
	bool applied;		/* what the last entry says stands in its place, but is not known to be durable there */
	struct vhdx_range ring; /* of the file */
	uint8_t guid[16];
	uint64_t at;		/* of the ring: where the next entry goes */
	uint64_t sequence;	/* of the next entry */
	uint64_t durable_bytes; /* of the file: it is at least that long after a crash */
	uint64_t end;		/* all structures end here */
};

struct vhdx_state {
	struct node *node;
	bool writable, check_only, bulk;
	bool solid; /* the file has no holes, and gets none: Windows opens no sparse one */

	pthread_mutex_t header_lock;
	struct vhdx_header h; /* header_lock, for a writer */
	bool touched;	      /* header_lock: file_write is this handle's */

	struct vhdx_meta m; /* changes while the engine stands still */
	struct vhdx_parent parent;
	struct vhdx_journal log;
	struct blockmap *bm;
};

static inline struct vhdx_state *vhdx_state_of(const struct node *n)
{
	return n->state;
}

/* ---- header.c ---- */

/* Of regions and of items of metadata; in the order of their bytes on disk. */
extern const uint8_t vhdx_guid_bat[16], vhdx_guid_metadata[16];
extern const uint8_t vhdx_guid_parameters[16], vhdx_guid_size[16], vhdx_guid_logical[16], vhdx_guid_physical[16],
	vhdx_guid_page83[16], vhdx_guid_locator[16];

/* FORMAT, CORRUPT, UNSUPPORTED, IO. */
int vhdx_header_load(struct node *file, struct vhdx_header *out, struct img_error *err);
/*
 * Writes h over the copy that does not count, with the next number: it counts from then on. flush: durably, which is
 * left out only where nothing need survive. On failure h is as before, and so is what counts, or it is the new one.
 */
int vhdx_header_store(struct node *file, struct vhdx_header *h, bool flush, struct img_error *err);
bool vhdx_log_is_sane(const struct vhdx_header *h, uint64_t file_bytes);
/* The first copy of the region table that holds, into VHDX_TABLE_BYTES. good: which do, up to that one; may be NULL. */
int vhdx_regions_read(struct node *file, uint8_t *buf, bool good[2], struct img_error *err);
/* Through the log, if there is one: file is what vhdx_log_open() gave. */
int vhdx_meta_load(struct node *file, struct vhdx_meta *out, struct img_error *err);
/* chunk_ratio, nr_blocks and nr_slots from sizes and has_parent. */
void vhdx_count_slots(struct vhdx_meta *m);
void vhdx_guid_text(const uint8_t guid[16], char out[40]); /* "{01234567-89ab-...}" */
/* The bytes in the order of the text, and back. */
void vhdx_uuid_of_guid(const uint8_t guid[16], uint8_t out[16]);
int vhdx_guid_new(uint8_t guid[16], struct img_error *err);
/* CRC-32C of data whose field at offset 4 counts as zero. */
uint32_t vhdx_sum(uint8_t *data, size_t bytes);

/* ---- locator.c ---- */

#define VHDX_LOCATOR_OURS 8192u /* bytes: as long as the longest that we write */

/* CORRUPT, LIMIT, IO. */
int vhdx_locator_load(struct node *file, const struct vhdx_range *at, struct vhdx_parent *out, struct img_error *err);
/* The item that names p, *bytes of it. INVALID: a name that cannot be written so. */
int vhdx_locator_make(const struct vhdx_parent *p, uint8_t out[VHDX_LOCATOR_OURS], uint32_t *bytes,
		      struct img_error *err);
/* UNSUPPORTED: what a VHDX cannot stand on, for the image of m. */
int vhdx_parent_of(const struct backing_ref *ref, uint32_t sector_bytes, struct vhdx_parent *out,
		   struct img_error *err);

/* ---- log.c ---- */

/*
 * *out: file with what the log holds laid over it, or file itself where it holds nothing. It owns file then, and is to
 * be closed in its place. On failure file is as before. CORRUPT: the file is shorter than the log says that it was, or
 * the log would change what it must not.
 */
int vhdx_log_open(struct node *file, const struct vhdx_header *h, struct budget *budget, struct node **out,
		  struct img_error *err);
/*
 * Makes it so: *over, as vhdx_log_open() gave it, is written to the file, durably, and then the header says that there
 * is no log. *over is the file afterwards. Whatever stops it, doing it again gives the same. On failure *over stays.
 */
int vhdx_log_replay(struct node **over, struct vhdx_header *h, struct img_error *err);
uint64_t vhdx_log_descriptor_sectors(uint64_t nr);

/* ---- journal.c ---- */

/* Of whole sectors. data NULL: zeros. */
struct vhdx_change {
	uint64_t off, bytes;
	const uint8_t *data;
};
#define VHDX_ENTRY_SECTORS 64u /* of our entries */
#define VHDX_ENTRY_DATA	   (VHDX_ENTRY_SECTORS - 1)

/* All of it or nothing after a crash, durable when it returns: at most VHDX_ENTRY_DATA sectors of data and zeros. */
int vhdx_journal_write(struct vhdx_state *s, const struct vhdx_change *list, size_t nr, struct img_error *err);
/* The engine's ops of these names. */
int vhdx_journal_store(struct blockmap *bm, const struct blockmap_write *writes, size_t nr, struct img_error *err);
int vhdx_journal_sync(struct blockmap *bm, struct img_error *err);
/* Everything stands in its place, durably, and the header says so: the file may be cut then. */
int vhdx_journal_end(struct vhdx_state *s, struct img_error *err);

/* ---- metadata.c ---- */

struct vhdx_meta_change {
	uint64_t disk_bytes; /* 0: as it is */
	bool set_parent;
	const struct vhdx_parent *parent; /* with set_parent; NULL: none */
	bool empty;			  /* all entries of the table become "not present" in the same moment */
};
/* One entry of the log; s->m and s->parent say it then. The engine stands still, nothing is dirty. */
int vhdx_meta_store(struct vhdx_state *s, const struct vhdx_meta_change *c, struct img_error *err);
/* A table of blocks for nr_slots, with the present content, at another place. The same. */
int vhdx_move_bat(struct vhdx_state *s, uint64_t nr_slots, struct img_error *err);
/* Both copies of the region table say what the first good one says. *done: they did not. */
int vhdx_regions_repair(struct node *file, bool write, bool *done, struct img_error *err);
void vhdx_regions_seal(uint8_t *table);

/* ---- bat.c ---- */

extern const struct blockmap_ops vhdx_bat_ops;
struct blockmap_shape vhdx_bat_shape(const struct vhdx_meta *m);
struct vhdx_census {
	uint64_t mapped; /* bytes of blocks that entries lead to */
	uint64_t bad;	 /* entries that make no sense */
	uint64_t end;	 /* the first byte behind all that entries lead to; 0: nothing */
	uint64_t first_bad;
};
/* Walks the table on disk. */
int vhdx_bat_census(struct node *file, const struct vhdx_meta *m, struct vhdx_census *out, struct img_error *err);
/* Of a chunk's bitmap block. */
uint64_t vhdx_bitmap_slot(const struct vhdx_meta *m, uint64_t chunk);

/* ---- options.c, create.c ---- */

#define VHDX_OPTIONS_HELP                                                                          \
	"subformat=TYPE    dynamic (default) or fixed\n"                                           \
	"block_size=SIZE    1M to 256M, a power of two (default 32M, of an overlay 2M)\n"          \
	"logical_sector_size=SIZE    512 or 4096 (default 512, of an overlay the parent's)\n"      \
	"physical_sector_size=SIZE    512 or 4096 (default 4096)\n"                                \
	"log_size=SIZE    1M to 1G, whole MiB (default 1M)\n"                                      \
	"sparse=on|off    off: the file gets no holes, which Windows does not open (default on)\n" \
	"uuid=UUID    the disk's identity (default: a new one)\n"

struct vhdx_options {
	bool fixed, solid;
	uint64_t block_bytes, log_bytes;       /* block_bytes 0: the default */
	uint32_t sector_bytes, physical_bytes; /* sector_bytes 0: the default */
	bool has_uuid;
	uint8_t uuid[16];
};
int vhdx_options_parse(const char *text, struct vhdx_options *out, struct img_error *err);
int vhdx_create(struct node *file, const struct driver_create *args, struct img_error *err);
int vhdx_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);

/* ---- open.c ---- */

int vhdx_open(struct node *node, const struct driver_open *args, struct img_error *err);
int vhdx_close(struct node *node, struct img_error *err);
/* Before anything is changed; data: of what the guest sees. */
int vhdx_touch(struct vhdx_state *s, bool data, struct img_error *err);
/* Where everything ends that log, regions and entries lead to, as they stand on disk. */
int vhdx_content_end(struct vhdx_state *s, uint64_t *end, struct img_error *err);
/* The same without entries. */
uint64_t vhdx_structures_end(const struct vhdx_state *s);
/* What is behind it goes. The engine stands still, nothing is dirty; the log ends with it. */
int vhdx_cut(struct vhdx_state *s, struct img_error *err);
/* The engine learns s->m. */
int vhdx_reshape(struct vhdx_state *s, uint64_t end, struct img_error *err);

/* ---- resize.c, backing.c, info.c, check.c, inspect.c ---- */

int vhdx_resize(struct node *n, uint64_t size_bytes, struct img_error *err);
bool vhdx_get_backing(struct node *n, struct backing_ref *out);
int vhdx_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err);
void vhdx_id(struct node *n, struct pin *out);
int vhdx_info(struct node *n, struct img_info *out, struct img_error *err);
int vhdx_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err);
int vhdx_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err);
struct inspector;
int vhdx_inspect(struct node *file, struct inspector *in, struct img_error *err);

#endif
