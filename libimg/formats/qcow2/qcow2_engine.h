/* SPDX-License-Identifier: MIT */
/*
 * The inside of the qcow2 driver. Rooms, bottom up:
 *
 *   header.c    the header cluster: load and check, write back
 *   overlap.c   which clusters hold metadata; nothing else may be written there
 *   cache.c     slices of L2 tables and refcount blocks, bounded, written only by flush.c and txn.c
 *   refcount.c  refcount table and blocks; alloc.c finds and frees clusters on top
 *   l1.c, map.c guest offset -> entry -> mapping, and changes of entries
 *   flush.c     the ordered write-back
 *   txn.c       changes of the whole structure: everything changed is written elsewhere, one header write switches
 *   io.c, compress.c, write.c   requests
 *   snapshot.c, vmstate.c, bitmap.c, resize.c, check.c, repair.c, amend.c, open.c, create.c, ...   what is built on these
 *
 * Crash safety. Requests change metadata only in memory. flush.c writes it in the order: data and refcount increments - sync -
 * refcount table entries - sync - L2 - sync - L1 - sync, and only then lets decrements of refcounts happen (freed clusters cannot be
 * reused before). Steps with nothing to do, and their syncs, are left out. What is lost in a crash is leaked clusters. Whole-structure
 * changes (snapshots, resize, repair) write new copies of every table that they change into clusters that are free before
 * *and* after, sync, write the first sector of the header, sync: atomic, and without leaks.
 *
 * Locks, outermost first:
 *   touching   the first change of a handle (qcow2_touch)
 *   flushing   one write-back, or whole-structure operation, at a time
 *   gate       rd: a request on guest data, from translation to the end of its I/O; wr: whole-structure operations, and the moment
 *              in which freed clusters become free (no request may still be reading them)
 *   range      guest ranges whose mapping a request is about to change
 *   map        rd: lookups; wr: everything that changes L1, cache, refcounts, allocator, pending frees, header
 * No data I/O under map; metadata reads (cache misses) are done under map wr.
 */
#ifndef QCOW2_ENGINE_H
#define QCOW2_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "checked.h"
#include "codec.h"
#include "error.h"
#include "node.h"
#include "qcow2_disk.h"

#define LAYER "qcow2"

/* ---- header.c: the header as host integers, checked ---- */

struct qcow2_ext {
	uint32_t type, bytes;
	uint8_t *data; /* owned */
};

struct qcow2_header {
	unsigned version; /* 2 or 3 */
	uint64_t size;
	unsigned cluster_bits, refcount_order;
	uint32_t crypt_method;
	uint32_t l1_entries, reftable_clusters, nr_snapshots;
	uint64_t l1_off, reftable_off, snapshots_off;
	uint64_t incompatible, compatible, autoclear;
	uint32_t header_bytes;	/* as found; 112 where we write it anew (kept if larger: unknown fields are preserved) */
	uint8_t compression_type;
	uint8_t *unknown;	/* header bytes beyond 112, owned */
	uint32_t unknown_bytes;
	uint64_t backing_off;	/* where the name stands on disk, and how long it is there */
	uint32_t backing_bytes;
	char backing[QCOW2_NAME_MAX + 1];	/* "" if none */
	char backing_format[16];		/* "" if not recorded; the true one, also where the header hides it (see header_ext.c) */
	char backing_snapshot[IMG_SNAPSHOT_NAME_MAX + 1]; /* "" for the head; from our extension, void as the pin is */
	char data_file[QCOW2_NAME_MAX + 1];	/* "" if not recorded */
	/* The bitmaps extension; nr_bitmaps 0: none. */
	uint32_t nr_bitmaps;
	uint64_t bitmap_dir_bytes, bitmap_dir_off;
	bool has_pin;
	struct pin pin;		/* of the backing file, from our extension; what belongs to another name is dropped by the load */
	bool committing;
	struct qcow2_ext *ext;	/* every other extension, LUKS and feature names included, in order */
	size_t nr_ext;
};

/*
 * Loads and checks the header cluster of file: every field against the limits of qcow2_disk.h, tables inside sane bounds and aligned,
 * extensions inside the first cluster. A refusal names field, offset and value. IMG_E_CORRUPT for nonsense, IMG_E_UNSUPPORTED
 * for features that are not known (named from the feature name table where it knows them), IMG_E_LIMIT for our limits. Encryption is
 * loaded and left to the caller to refuse. lenient (check): autoclear and compatible details, and tables past the end of file,
 * are not refused.
 */
int qcow2_header_load(struct node *file, bool lenient, struct qcow2_header *out, struct img_error *err);
void qcow2_header_free(struct qcow2_header *h);
/*
 * The header cluster as bytes: buf has 1 << cluster_bits bytes (all written). IMG_E_LIMIT if names and extensions do not fit. v3 always
 * carries a feature name table.
 */
int qcow2_header_store(const struct qcow2_header *h, uint8_t *buf, struct img_error *err);

/* ---- the engine ---- */

struct qcow2_slice;
struct qcow2_inflight;
struct qcow2_txn;
struct qcow2_bitmaps; /* bitmap.c */
struct qcow2_expanded; /* expand.c */

struct qcow2_snapshot {
	uint64_t l1_off;
	uint32_t l1_entries;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec, vm_state_bytes, disk_bytes;
	uint8_t *extra; /* as on disk, owned; the first 16 bytes are rewritten from the fields above on store */
	uint32_t extra_bytes;
	char *id, *name; /* owned, NUL-terminated; may hold anything else */
	uint32_t nr_views; /* memory only: open views of it */
};

struct qcow2_engine {
	struct node *node, *file, *data; /* data == file without an external data file */
	bool writable, bulk;		 /* bulk: no syncs before close */
	bool check_only;		 /* header, geometry and locks are all there is: for qcow2_check() alone */
	bool external;			 /* data in its own file, at the guest's own offsets, without refcounts */
	struct qcow2_header h;		 /* map */

	/* geometry, constant */
	uint64_t cluster_bytes;
	unsigned cluster_bits;	   /* h's, for those who do not hold map */
	unsigned l2_shift;	   /* log2 of entries in an L2 table */
	unsigned entry_bytes;	   /* 8, with subclusters 16 */
	unsigned subclusters;	   /* 1 or 32 */
	uint64_t sub_bytes;	   /* cluster_bytes / subclusters */
	unsigned rb_shift;	   /* log2 of entries in a refcount block */
	uint64_t refcount_max;
	uint64_t slice_bytes;	   /* unit of the cache: min(cluster, 4096) */
	enum codec_id codec;

	pthread_rwlock_t gate, map;
	pthread_mutex_t touching, flushing;

	_Atomic uint64_t disk_bytes; /* virtual size of the head */
	_Atomic bool broken;	     /* a write-back failed: no more changes */
	_Atomic bool touched;	     /* this handle has changed the image: unknown autoclear bits are cleared, bitmaps in use */

	/* map: the active L1, host integers, l1_entries of h */
	uint64_t *l1;
	uint8_t *l1_dirty;	     /* one per 512 bytes of the table on disk */
	bool any_l1_dirty;

	/* map: refcount table, host integers */
	uint64_t *reftable;	     /* offsets of blocks, 0: none */
	uint64_t reftable_entries;
	uint8_t *reftable_dirty;     /* one per 512 bytes */
	bool any_reftable_dirty;
	uint64_t reftable_moved_to;  /* a grown table waits for its first write here; 0: not moved */

	/* map: allocator (alloc.c) */
	uint64_t alloc_hint;	     /* cluster index */
	uint64_t file_end;	     /* host offset; everything beyond reads as zeros and was never written. UINT64_MAX: not known to */
	uint64_t packed_off, packed_end; /* room for compressed clusters */
	struct qcow2_pending *pending;	 /* decrements that wait for the next flush */
	size_t nr_pending, cap_pending;
	struct qcow2_pending *freed;	 /* became free; their space goes back to the host when that is on disk */
	size_t nr_freed, cap_freed;

	struct qcow2_meta *meta;     /* overlap.c */
	struct qcow2_cache *cache;   /* cache.c */
	struct qcow2_txn *txn;	     /* txn.c; non-NULL while one runs */

	pthread_mutex_t range_lock;
	pthread_cond_t range_cond;
	struct qcow2_inflight *inflight;

	struct qcow2_snapshot *snapshots; /* map; h.nr_snapshots of them */
	uint64_t snapshots_bytes;	  /* map: of the table on disk */
	bool snapshots_damaged;		  /* the table could not be read whole: what is missing is blank, and no new table is written */
	_Atomic uint64_t vm_bytes;	  /* of the working machine state, see vmstate.c */
	_Atomic uint64_t vm_reach;	  /* its space behind the disk, with what is being written */
	struct qcow2_bitmaps *bitmaps;	  /* NULL: none loaded */
	pthread_mutex_t codec_lock;
	struct codec_ctx *idle_codecs[8]; /* codec_lock */
	struct qcow2_expanded *expanded;  /* codec_lock; expand.c */
	_Atomic uint32_t open_views;
};

/* What a node of this driver holds: the head, or a snapshot. */
struct qcow2_view {
	struct qcow2_engine *e;
	uint64_t size_bytes;	/* snapshots; the head's is e->disk_bytes */
	bool is_snapshot;
	uint64_t *l1;		/* snapshots: owned copy, host integers */
	uint32_t l1_entries;
	uint64_t l1_off;	/* snapshots: which one it is, whatever it is called by now */
	char snapshot[IMG_SNAPSHOT_NAME_MAX + 1];
};

struct qcow2_state { /* node->state */
	struct qcow2_view view;
};

/* ---- open.c ---- */
int qcow2_open(struct node *n, const struct driver_open *args, struct img_error *err);
/* The content; IMG_E_UNSUPPORTED where it is encrypted. */
int qcow2_may_read(const struct qcow2_engine *e, struct img_error *err);
int qcow2_close(struct node *n, struct img_error *err);
/* The engine for a change: READONLY for snapshots and read-only handles, POISONED when broken. */
int qcow2_head(struct node *n, struct qcow2_engine **e, struct img_error *err);
/*
 * Called before the first change by a handle, and cheap later: clears autoclear bits that we do not maintain, marks bitmaps in use. Takes
 * map itself; no locks held.
 */
int qcow2_touch(struct qcow2_engine *e, struct img_error *err);
/* The constant part of e from e->h. */
void qcow2_set_geometry(struct qcow2_engine *e);
/* mapped.c: the data that an L1 table leads to, against the budget. */
int qcow2_judge_expansion(struct qcow2_engine *e, const uint64_t *l1, uint32_t entries, struct budget *b,
			  struct img_error *err);
/* Sets the corrupt bit in the header (best effort), poisons, returns IMG_E_CORRUPT with the message. map held for writing. */
int qcow2_mark_corrupt(struct qcow2_engine *e, uint64_t off, struct img_error *err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Writes the whole header cluster from e->h (names, extensions), in place, and syncs. map held for writing, nothing dirty that depends. */
int qcow2_header_write(struct qcow2_engine *e, struct img_error *err);
/* Writes only the fixed fields (the first sector's at most 112 bytes) from e->h; no sync. */
int qcow2_header_write_fields(struct qcow2_engine *e, struct img_error *err);

/* ---- overlap.c (map) ---- clusters that hold metadata */
int qcow2_meta_add(struct qcow2_engine *e, uint64_t off, uint64_t bytes, struct img_error *err);
void qcow2_meta_remove(struct qcow2_engine *e, uint64_t off, uint64_t bytes);
bool qcow2_meta_overlaps(struct qcow2_engine *e, uint64_t off, uint64_t bytes, uint64_t *where);
/* Fills the set from header, tables, snapshots, bitmaps, when the image is opened for writing. */
int qcow2_meta_build(struct qcow2_engine *e, struct img_error *err);
void qcow2_meta_free(struct qcow2_engine *e);

/* ---- cache.c (map wr; peek: map rd suffices) ---- */
enum qcow2_slice_kind { SLICE_L2, SLICE_REFBLOCK };
struct qcow2_slice {
	uint64_t off;	 /* host offset, multiple of slice_bytes */
	enum qcow2_slice_kind kind;
	bool dirty;	 /* change through qcow2_cache_dirty() */
	bool writing;	 /* a write-back has a copy that is not on disk yet: may not be evicted */
	_Atomic bool used; /* clock */
	struct qcow2_slice *hash_next, *all_prev, *all_next, *dirty_prev, *dirty_next;
	uint8_t data[];	 /* slice_bytes, as on disk */
};
int qcow2_cache_init(struct qcow2_engine *e, uint64_t budget_bytes, struct img_error *err);
void qcow2_cache_free(struct qcow2_engine *e);
struct qcow2_slice *qcow2_cache_peek(struct qcow2_engine *e, uint64_t off);
/*
 * The slice that holds host offset off, read in if needed (bytes past the end of file are zeros). Valid until the next call into the cache.
 * May exceed the budget when everything is dirty: requests call qcow2_make_room() before they start.
 */
int qcow2_cache_get(struct qcow2_engine *e, uint64_t off, enum qcow2_slice_kind kind, struct qcow2_slice **out,
		    struct img_error *err);
/* The same without reading: the content is zeros and dirty. For new tables. */
int qcow2_cache_new(struct qcow2_engine *e, uint64_t off, enum qcow2_slice_kind kind, struct qcow2_slice **out,
		    struct img_error *err);
void qcow2_cache_dirty(struct qcow2_engine *e, struct qcow2_slice *s);
/* Forgets slices of [off, off + bytes), dirty ones too. */
void qcow2_cache_drop(struct qcow2_engine *e, uint64_t off, uint64_t bytes);
bool qcow2_cache_crowded(struct qcow2_engine *e); /* more than half of the budget is dirty */

/* ---- refcount.c (map wr) ---- clusters by index; in a transaction on its copy */
int qcow2_refcount_get(struct qcow2_engine *e, uint64_t cluster, uint64_t *out, struct img_error *err);
/* Adds delta (+1 or -1) to each of nr clusters from first. IMG_E_LIMIT above refcount_max, IMG_E_CORRUPT below 0; then some are changed: the
 * caller gives up its operation (transaction: aborts; else the image is marked corrupt or leaks). */
int qcow2_refcount_add(struct qcow2_engine *e, uint64_t first, uint64_t nr, int delta, struct img_error *err);
/* Length of the run from first, at most max, of clusters with one refcount, which is *out. */
int qcow2_refcount_run(struct qcow2_engine *e, uint64_t first, uint64_t max, uint64_t *out, uint64_t *nr, struct img_error *err);
uint64_t qcow2_refcount_load(const uint8_t *data, uint64_t i, unsigned order);
void qcow2_refcount_store(uint8_t *data, uint64_t i, unsigned order, uint64_t value);
/* Loads e->reftable from h. */
int qcow2_reftable_load(struct qcow2_engine *e, struct img_error *err);

/* ---- alloc.c (map wr) ---- */
/* A contiguous run of at least 1 and at most want clusters, refcount 1 each. In a transaction: free before and after it. */
int qcow2_alloc(struct qcow2_engine *e, uint64_t want, uint64_t *off, uint64_t *got, struct img_error *err);
/* The same for all of want, or IMG_E_LIMIT/NOSPC. For tables. */
int qcow2_alloc_exact(struct qcow2_engine *e, uint64_t want, uint64_t *off, struct img_error *err);
/* Room for bytes of compressed data, with a reference counted for each cluster that it touches. */
int qcow2_alloc_packed(struct qcow2_engine *e, uint64_t bytes, uint64_t *off, struct img_error *err);
/* One reference to each of nr clusters from host offset off is dropped after the next flush; in a transaction: at once, in its copy. */
int qcow2_free(struct qcow2_engine *e, uint64_t off, uint64_t nr, struct img_error *err);
/* What an L2 entry refers to. */
int qcow2_free_entry(struct qcow2_engine *e, uint64_t desc, struct img_error *err);

/* ---- map.c ---- */
struct qcow2_entry {
	uint64_t desc, bitmap; /* bitmap: extended L2 only. Low 32 bits: allocated, high 32 bits: zero */
};
enum qcow2_map_kind { MAP_UNALLOCATED, MAP_ZERO, MAP_DATA, MAP_COMPRESSED };
struct qcow2_mapping {
	enum qcow2_map_kind kind;
	uint64_t bytes;	   /* from the offset asked for */
	uint64_t host_off; /* DATA: of the offset asked for, in e->data; COMPRESSED: of the stored bytes, in e->file */
	uint64_t host_bytes; /* COMPRESSED: at most so many are stored; DATA, ZERO: 0 */
	bool in_place;	   /* DATA: refcount one, may be overwritten */
	bool has_host;	   /* ZERO: a host cluster is reserved */
};
/* Describes the start of [off, off + bytes) of v, merging neighbours while they are contiguous. Takes map itself. Offsets past the
 * disk (vmstate) are allowed as far as the L1 reaches; beyond: UNALLOCATED. Bad entries: IMG_E_CORRUPT with their place. */
int qcow2_map(struct qcow2_view *v, uint64_t off, uint64_t bytes, struct qcow2_mapping *out, struct img_error *err);
/* Checks an entry against QCOW2-nn invariants (reserved bits, alignment, subclusters); place for the message. */
int qcow2_entry_check(const struct qcow2_engine *e, const struct qcow2_entry *en, uint64_t guest_off, struct img_error *err);
/* Host range of a compressed entry: offset and number of bytes up to the end of its last sector. */
void qcow2_compressed_range(const struct qcow2_engine *e, uint64_t desc, uint64_t *off, uint64_t *bytes);
/* map wr: the entry of guest cluster g of the active tree; a missing table is an entry of zeros. */
int qcow2_entry_get(struct qcow2_engine *e, uint64_t g, struct qcow2_entry *out, struct img_error *err);
/* map wr: makes the table of g writable (allocated, COPIED), then stores the entry. Frees nothing that the old entry refers to. */
int qcow2_entry_set(struct qcow2_engine *e, uint64_t g, const struct qcow2_entry *en, struct img_error *err);

/* ---- flush.c ---- no locks held */
int qcow2_flush_all(struct qcow2_engine *e, struct img_error *err);
/* Until nothing waits any more; no requests may be running. */
int qcow2_settle(struct qcow2_engine *e, struct img_error *err);
/* Called before a request takes the gate: writes back when the cache is crowded or many frees wait. */
int qcow2_make_room(struct qcow2_engine *e, struct img_error *err);

/* ---- txn.c ---- whole-structure changes
 *
 * qcow2_txn_begin() flushes, takes gate and map for writing, and from then on refcount changes, allocations, and frees go to a shadow.
 * The caller changes e->h, e->l1 (through qcow2_txn_set_l1()), the snapshot list; then commits or aborts. Both release the locks. After an abort, or a
 * failed commit before the header was written, memory is as before the begin. A failure of the header write poisons.
 */
int qcow2_txn_begin(struct qcow2_engine *e, struct img_error *err);
/* New active L1 of n entries (host integers, flags included), which the engine owns from here on (malloc). Written to new clusters by commit;
 * the old table's clusters are freed by commit. */
void qcow2_txn_set_l1(struct qcow2_engine *e, uint64_t *l1, uint32_t n);
/* New snapshot list, owned from here on; stored to new clusters by commit, the old table freed. */
void qcow2_txn_set_snapshots(struct qcow2_engine *e, struct qcow2_snapshot *list, uint32_t n);
/* Names or extensions changed: commit writes the header by qcow2_header_write(). Ask qcow2_header_fits() before. */
void qcow2_txn_whole_header(struct qcow2_engine *e);
/* Space for a table (off) that is filled by the caller with node_pwrite(e->file) before the commit. */
int qcow2_txn_new_table(struct qcow2_engine *e, uint64_t bytes, uint64_t *off, struct img_error *err);
/* Adds delta to the refcount of everything that the tree of an L1 refers to: L2 tables, data, compressed; not the L1's own clusters. External data
 * is not counted. Bounded memory. */
int qcow2_txn_walk(struct qcow2_engine *e, const uint64_t *l1, uint32_t n, int delta, struct img_error *err);
/* Makes the COPIED flags of a tree that is to be the active one true: rewrites L1 entries in place in the array and replaces L2 tables whose
 * flags are wrong by new copies. */
int qcow2_txn_fix_copied(struct qcow2_engine *e, uint64_t *l1, uint32_t n, struct img_error *err);
/*
 * The same where another L1 of n entries (a new snapshot's, already counted) refers to the same tables: both get the new copies, so that they go on
 * sharing them. Entries of mirror that differ from l1's are left alone; mirror's have no flags.
 */
int qcow2_txn_fix_copied_shared(struct qcow2_engine *e, uint64_t *l1, uint64_t *mirror, uint32_t n, struct img_error *err);
int qcow2_txn_commit(struct qcow2_engine *e, struct img_error *err);
void qcow2_txn_abort(struct qcow2_engine *e);

/* ---- io.c, write.c, compress.c ---- gate is taken inside */
int qcow2_view_read(struct qcow2_view *v, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* As the driver's status, for guest offsets also behind the disk. */
int qcow2_view_status(struct qcow2_view *v, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		      size_t *nr, struct img_error *err);
/* With gate held by the caller (rd or wr). */
int qcow2_view_read_held(struct qcow2_view *v, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* off may lie past the disk, where machine state is kept. */
int qcow2_write(struct qcow2_engine *e, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
/* unmap: give space back; discard: content is not needed (v2 with a backing file keeps it). */
int qcow2_zero(struct qcow2_engine *e, uint64_t bytes, uint64_t off, bool unmap, bool discard, struct img_error *err);
int qcow2_expand(struct qcow2_engine *e, uint64_t host_off, uint64_t host_bytes, void *cluster, struct img_error *err);
void qcow2_codecs_free(struct qcow2_engine *e); /* from close: idle contexts, and clusters that were expanded */
struct qcow2_view qcow2_head_view(struct qcow2_engine *e); /* borrows e->l1: not for keeping across locks */

/* ---- snapshot.c, vmstate.c ---- */
/* Loads the table (h.nr_snapshots entries); lenient: what cannot be read is reported by check instead. */
int qcow2_snapshots_load(struct qcow2_engine *e, struct img_error *err);
void qcow2_snapshots_free(struct qcow2_snapshot *list, uint32_t n);
/* The table as bytes (malloc). */
int qcow2_snapshots_store(const struct qcow2_snapshot *list, uint32_t n, unsigned version, uint8_t **out, uint64_t *bytes,
			  struct img_error *err);
/* By name, else by id. NULL: none (err filled, NOENT). map held. */
const struct qcow2_snapshot *qcow2_snapshot_find(struct qcow2_engine *e, const char *name, struct img_error *err);
/* Counted in the snapshot, which cannot be deleted meanwhile: end it by release (from close, for nodes of snapshots). Takes map itself. */
int qcow2_snapshot_view(struct qcow2_engine *e, const char *name, struct qcow2_view *out, struct img_error *err);
void qcow2_view_release(struct qcow2_view *v);
/* Reads an L1 of n entries at off into host integers (malloc); checks offsets. */
int qcow2_l1_load(struct qcow2_engine *e, uint64_t off, uint32_t n, uint64_t **out, struct img_error *err);
uint64_t qcow2_vmstate_off(const struct qcow2_engine *e, uint64_t disk_bytes); /* guest offset where machine state begins */
uint64_t qcow2_l1_entries_for(const struct qcow2_engine *e, uint64_t disk_bytes); /* L1 entries that a disk needs */
/*
 * In a transaction, for resize: a new L1 (malloc) for a disk of disk_bytes with the working machine state, which stands past the disk, moved
 * along. Entries of the disk that are cut off are left out and the caller's to walk; what stands past the disk without being the working machine
 * state is left out and walked here.
 */
int qcow2_vmstate_move(struct qcow2_engine *e, uint64_t disk_bytes, uint64_t **l1, uint32_t *n, struct img_error *err);
/* From close, before the last flush: the working machine state belongs to the handle, so its clusters are freed. No locks held. */
int qcow2_vmstate_end(struct qcow2_engine *e, struct img_error *err);

int qcow2_snap_create(struct node *n, const char *name, unsigned flags, const int64_t *created_ns,
		     struct img_error *err);
int qcow2_snap_delete(struct node *n, const char *name, struct img_error *err);
int qcow2_snap_revert(struct node *n, const char *name, struct img_error *err);
int qcow2_snap_rename(struct node *n, const char *name, const char *new_name, struct img_error *err);
int qcow2_snap_list(struct node *n, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err);
int qcow2_snap_open(struct node *n, const char *name, struct node *view, struct img_error *err);
int qcow2_snap_diff(struct node *n, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err);
int qcow2_vmstate_write(struct node *n, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int qcow2_vmstate_read(struct node *n, const char *snap, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int qcow2_vmstate_zero(struct node *n, uint64_t bytes, uint64_t off, struct img_error *err);
int qcow2_vmstate_status(struct node *n, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			 size_t cap, size_t *nr, struct img_error *err);
int qcow2_vmstate_resize(struct node *n, uint64_t bytes, struct img_error *err);
int qcow2_vmstate_size(struct node *n, const char *snap, uint64_t *bytes, struct img_error *err);

/* ---- create.c, options.c, measure.c, info.c, amend.c, resize.c ---- */
int qcow2_create(struct node *file, const struct driver_create *args, struct img_error *err);
int qcow2_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);
int qcow2_info(struct node *n, struct img_info *out, struct img_error *err);
int qcow2_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err);
int qcow2_amend(struct node *n, const char *options, struct img_error *err);
int qcow2_resize(struct node *n, uint64_t size_bytes, struct img_error *err);
bool qcow2_get_backing(struct node *n, struct backing_ref *out);
int qcow2_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err);

/* ---- check.c, repair.c ---- */
int qcow2_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		struct img_check_result *out, struct img_error *err);
/*
 * Counts references anew and mends refcounts and COPIED flags on disk. For open with the dirty bit: needs header and geometry only, and is called
 * before anything else is loaded. e->h is kept current. IMG_E_CORRUPT where more is damaged.
 */
int qcow2_rebuild_refcounts(struct qcow2_engine *e, struct img_error *err);

/* ---- bitmap*.c ---- no locks held, but note: any */
/* At open, after the header: the directory. Always makes e->bitmaps. A damaged directory is no failure: it is kept for check and list. */
int qcow2_bitmaps_load(struct qcow2_engine *e, struct img_error *err);
void qcow2_bitmaps_free(struct qcow2_engine *e);
/*
 * From qcow2_touch(), before the first change is let through (e->touched is set after it): enabled bitmaps are marked in use on disk, synced,
 * and followed from here on; stale ones (autoclear bit clear) are dropped. May be called again: does nothing.
 */
int qcow2_bitmaps_begin(struct qcow2_engine *e, struct img_error *err);
/* [off, off + bytes) of the disk is about to change. Cheap when none is followed. Any locks. A revert notes the whole disk. */
void qcow2_bitmaps_note(struct qcow2_engine *e, uint64_t off, uint64_t bytes);
/* From close, while the engine still works: stores what was followed, clears in_use. Flushes before and after. */
int qcow2_bitmaps_end(struct qcow2_engine *e, struct img_error *err);
/*
 * Around a change of the disk's size (resize, revert): prepare() follows every consistent bitmap, so that a crash leaves it marked in use; LIMIT
 * if a bitmap would become too large. After the change resized() gives them the new length: what is new is clean. After a failed change
 * nothing is due.
 */
int qcow2_bitmaps_resize_prepare(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err);
void qcow2_bitmaps_resized(struct qcow2_engine *e, uint64_t size_bytes);
/*
 * Every extent of clusters that the directory, tables and bitmaps hold, one reference each; none when they are stale. bitmap: the name, or "" for
 * the directory. map held, or opening. damage: what cannot be followed (NULL: the walk ends with that error); nonzero ends the walk.
 */
struct qcow2_bitmap_visitor {
	int (*extent)(void *ctx, uint64_t off, uint64_t bytes, const char *bitmap, struct img_error *err);
	int (*damage)(void *ctx, const char *bitmap, const struct img_error *why);
	void *ctx;
};
int qcow2_bitmaps_walk(struct qcow2_engine *e, const struct qcow2_bitmap_visitor *v, struct img_error *err);
/* The driver's members. */
int qcow2_bitmap_list(struct node *n, struct img_bitmap *out, size_t cap, size_t *nr, struct img_error *err);
int qcow2_bitmap_add(struct node *n, const char *name, uint64_t granularity, unsigned flags, struct img_error *err);
int qcow2_bitmap_remove(struct node *n, const char *name, struct img_error *err);
int qcow2_bitmap_enable(struct node *n, const char *name, bool enable, struct img_error *err);
int qcow2_bitmap_clear(struct node *n, const char *name, struct img_error *err);
int qcow2_bitmap_merge(struct node *n, const char *name, const struct bitmap_source *src, struct img_error *err);
int qcow2_bitmap_ranges(struct node *n, const char *name, uint64_t off, struct img_range *out, size_t cap, size_t *nr,
			struct img_error *err);

#endif
