/* SPDX-License-Identifier: MIT */
/*
 * Extents whose grains are mapped by two levels of tables, on the block engine (blockmap.h). KDMV extents are read and
 * written (sparse.c, sparse_tables.c, sparse_check.c, sparse_mend.c), those of ESX are read (cowd.c, sesparse.c).
 */
#ifndef VMDK_SPARSE_H
#define VMDK_SPARSE_H

#include <pthread.h>

#include "blockmap.h"
#include "vmdk.h"

struct vmdk_tables {
	uint64_t nr;	      /* of grain tables */
	uint64_t table_bytes; /* of each */
	uint32_t *place,
		*copy_place; /* sectors, as in the directories; 0: none. copy_place NULL: there are no copies */
	uint64_t *order;     /* of a writer with copies: numbers of tables by place */
	uint64_t nr_order;
	uint8_t *fresh;		 /* of a writer: this table's entry in the directories is not on disk yet */
	struct img_range *taken; /* header, descriptor, directories, tables: ascending, joined */
	size_t nr_taken;
	bool overlap; /* of these */
};

struct vmdk_sparse {
	struct node *file;
	struct vmdk_header h;
	struct vmdk_tables t;
	struct blockmap *bm;
	bool writable, bulk;
	_Atomic bool marked;	     /* the header says that it is open */
	pthread_mutex_t tables_lock; /* t while requests run */
};

/*
 * Opens the extent in file, whose header is h, for the part of node's disk that begins at disk_off. A writer's tables
 * are put right if the last one did not close it. *out is to be ended by vmdk_sparse_close().
 */
int vmdk_sparse_open(struct node *node, struct node *file, const struct vmdk_header *h, uint64_t disk_off,
		     const struct driver_open *args, struct vmdk_sparse **out, struct img_error *err);
/* Makes all durable and takes the mark back, if it was open for writing and not just for check. Frees s in any case. */
int vmdk_sparse_close(struct vmdk_sparse *s, bool check_only, struct img_error *err);
/* Adds to out. alone: inside blockmap_stop(). */
int vmdk_sparse_check(struct vmdk_sparse *s, bool repair, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err);
/* The disk of the extent becomes longer or shorter; in between the entries of grains that are gone are cleared. */
int vmdk_sparse_resize(struct vmdk_sparse *s, uint64_t bytes, struct img_error *err);
/* All grains become free, and their room goes back. alone. */
int vmdk_sparse_empty(struct vmdk_sparse *s, struct img_error *err);
/* What no entry leads to, behind everything else, goes; it is no fault if it cannot. alone. */
int vmdk_sparse_trim(struct vmdk_sparse *s, struct img_error *err);
/*
 * Tables and copies that have no place in the file, see vmdk_tables_judge(), are made anew from their other half,
 * behind everything else; what has none is forgotten: the grains that only it knew are gone. A copy without a table
 * goes. Nothing lies over anything else. alone; the engine is broken after a failure.
 */
int vmdk_sparse_mend(struct vmdk_sparse *s, struct img_error *err);
/* Writes [0, nr) of the directory at off; those that are new lead nowhere. */
int vmdk_sparse_write_directory(struct vmdk_sparse *s, const uint32_t *place, uint64_t off, uint64_t nr,
				struct img_error *err);
/* The engine and the tables follow the header h and the directories that are on disk now; new grains go to `end`.
 * alone, and nothing is dirty. */
int vmdk_sparse_follow(struct vmdk_sparse *s, const struct vmdk_header *h, uint64_t end, struct img_error *err);

/* What the entries of an extent use of its file. */
struct vmdk_use {
	uint64_t end;	      /* the first byte behind all grains that lie in the file */
	uint64_t nr_bad;      /* entries that make no sense, or cannot be read */
	uint64_t nr_outside;  /* entries that lead out of the file */
	uint64_t outside_off; /* where to, one of these */
};
int vmdk_sparse_use(struct vmdk_sparse *s, struct vmdk_use *use, struct img_error *err);
/* A new one in the empty file: header h (offsets are filled in), its tables, all grains free. The descriptor is not
 * written. */
int vmdk_sparse_create(struct node *file, struct vmdk_header *h, struct img_error *err);
/* What such a file has before its first grain. */
int vmdk_sparse_plan(struct vmdk_header *h, struct img_error *err);

/* ---- sparse_tables.c ---- */

/* Zeros for nr things, one at least, to be freed. NULL: no memory, or more than there are addresses (on 32 bits). */
void *vmdk_new_array(uint64_t nr, size_t each_bytes);
/* Bytes of memory that its tables take at most; h is checked, so that nothing overflows. */
uint64_t vmdk_tables_cost(const struct vmdk_header *h);
/* Directories, and what is taken. For a writer also order and fresh. Empty (freed) on failure. */
int vmdk_tables_load(struct node *file, const struct vmdk_header *h, bool writable, struct budget *budget,
		     struct vmdk_tables *t, struct img_error *err);
void vmdk_tables_free(struct vmdk_tables *t);
/* Is any of [off, off + bytes) header, descriptor, directory or table? */
bool vmdk_tables_take(const struct vmdk_tables *t, uint64_t off, uint64_t bytes);
/* A new table, behind all others, with its copy. map is held for writing, as by those who ask. */
void vmdk_tables_add(struct vmdk_tables *t, uint64_t off, uint64_t bytes);
/* The number of the table at off; t->nr: none. Of a writer. */
uint64_t vmdk_tables_find(const struct vmdk_tables *t, uint64_t off);
/* How many tables have no place in a file of file_bytes, or their copies, *outside, and how many are in one directory
 * only, *alone. */
void vmdk_tables_judge(const struct vmdk_tables *t, uint64_t file_bytes, uint64_t *outside, uint64_t *alone);
/* How many tables differ from their copies, *differ. With repair these become equal. Only where both are in the file. */
int vmdk_tables_compare(struct node *file, const struct vmdk_tables *t, bool repair, uint64_t *differ,
			struct img_error *err);

/* ---- cowd.c, sesparse.c: readers ---- */

struct vmdk_esx; /* either of them */

/* bytes: of the disk, as the descriptor has it. */
int vmdk_cowd_open(struct node *node, struct node *file, uint64_t bytes, uint64_t disk_off,
		   const struct driver_open *args, struct vmdk_esx **out, struct img_error *err);
int vmdk_sesparse_open(struct node *node, struct node *file, uint64_t bytes, uint64_t disk_off,
		       const struct driver_open *args, struct vmdk_esx **out, struct img_error *err);
struct blockmap *vmdk_esx_blocks(struct vmdk_esx *e);
void vmdk_esx_close(struct vmdk_esx *e);

/* For both: a reader's engine on tables of `table_bytes`, whose places are in e. */
struct vmdk_esx {
	struct node *file;
	struct blockmap *bm;
	uint64_t *place; /* of each table in the file, in bytes; 0: none */
	uint64_t nr_tables, grains_off;
};
int vmdk_esx_blocks_open(struct vmdk_esx *e, struct node *node, const struct blockmap_shape *shape,
			 const struct blockmap_ops *ops, const struct driver_open *args, struct img_error *err);
int vmdk_esx_locate(struct blockmap *bm, uint64_t page, bool make, uint64_t *off, struct img_error *err);

#endif
