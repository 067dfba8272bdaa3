/* SPDX-License-Identifier: MIT */
/*
 * The limg engine: one per opened file, shared by the head and by views of snapshots.
 *
 *   write ---> data to free AUs ---> overlay (sharded, in memory) --flush--> journal record --checkpoint--> trees,
 * superblock read  ---> overlay, else tree (node cache), else backing; every block's checksum is verified
 *
 * Rooms: super.c (superblock), cache.c and tree.c (trees), overlay.c (pending changes), space.c (which AUs are free),
 * journal.c (records and recovery), checkpoint.c (flush and checkpoint: the only code that syncs), catalog.c (snapshot
 * records), reclaim.c (freeing deleted snapshots), unit.c (compressed units), io.c (the data path), snapshot.c, diff.c,
 * check.c, limg.c (the driver).
 *
 * Locks, in the order in which they are taken: engine.ckpt (state, held by flag) > engine.journal (state, by flag) >
 * shard.lock > stream.lock > space.lock; cache and codec pool locks are leaves. No I/O to the journal and no sync under
 * a lock; a bitmap page may be read under space.lock.
 */
#ifndef LIMG_ENGINE_H
#define LIMG_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "codec.h"
#include "error.h"
#include "is_zero.h"
#include "limg_disk.h"
#include "node.h"

#define LAYER "limg"

enum vol_id { VOL_CATALOG = 0, VOL_DISK = 1, VOL_VM = 2 };
#define KIND_SPACE 0x0fu

enum entry_state { ST_NONE = 0, ST_ZERO = 1, ST_RAW = 2, ST_NODE = 2, ST_ZSTD = 3, ST_DEFLATE = 4 };

/* ---- words ---- */

#define WORD_ADDR_MASK ((UINT64_C(1) << ADDR_BITS) - 1)

static inline uint64_t word_make(uint64_t addr, uint64_t birth, enum entry_state state)
{
	return addr | birth << ADDR_BITS | (uint64_t)state << 60;
}
static inline uint64_t word_addr(uint64_t w)
{
	return w & WORD_ADDR_MASK;
}
static inline uint64_t word_birth(uint64_t w)
{
	return w >> ADDR_BITS & MAX_EPOCH;
}
static inline unsigned word_state(uint64_t w)
{
	return (unsigned)(w >> 60);
}
static inline bool state_compressed(unsigned st)
{
	return st == ST_ZSTD || st == ST_DEFLATE;
}

struct entry {
	uint64_t word, csum;
};
struct ptr {
	uint64_t word, csum;
	uint8_t logical[16];
	uint64_t count;
};
struct volume {
	uint64_t size_bytes;
	unsigned levels;
	struct ptr root;
};

/* Length of a compressed entry's stored unit, in AUs. */
static inline uint32_t entry_unit_aus(const struct entry *e)
{
	return (uint32_t)(e->csum & 0xff);
}

/* ---- superblock, host order ---- */

struct super {
	uint8_t uuid[16];
	uint64_t rocompat, compat;
	uint64_t generation;
	unsigned block_shift, unit_shift;
	enum codec_id codec;
	int level;
	uint64_t file_bytes, epoch, head_parent, next_id, nr_slots, salt;
	uint64_t ring_addr, ring_aus, ring_tail, ring_seq;
	uint8_t ring_prev[16];
	struct volume disk, vm, catalog;
	struct disk_space_entry space;
	uint64_t nr_groups, used_aus, hint;
	int64_t created_ns;
	bool has_backing;
	struct backing_ref backing;
};

/* ---- snapshots in memory ---- */

enum snap_state { SNAP_FREE = 0, SNAP_LIVE = 1, SNAP_DELETED = 2 };
struct snap {
	enum snap_state state;
	uint64_t id, parent, epoch;
	uint8_t uuid[16];
	int64_t created_ns;
	uint64_t cursor;
	unsigned cursor_vol;
	bool has_vmstate; /* vm is machine state that belongs to it; else it is only kept for what the head shares */
	struct volume disk, vm;
	char name[IMG_SNAPSHOT_NAME_MAX + 1];
	unsigned nr_views; /* open views in this process */
	bool going;	   /* a checkpoint that deletes it is under way: no more views */
};

/* ---- runs of AUs ---- */

struct run {
	uint64_t addr;
	uint64_t aus;
};
struct runs {
	struct run *v;
	size_t nr, cap;
};
/* On failure the run is dropped: its space stays unavailable until the image is opened again, nothing worse. */
void runs_add(struct runs *r, uint64_t addr, uint64_t aus);
void runs_move(struct runs *to, struct runs *from);
void runs_sort_merge(struct runs *r);
void runs_free(struct runs *r);

/* ---- overlay ---- */

struct dentry {
	uint64_t word, csum;
	uint8_t slot;
	bool journaled;
};
struct dleaf {
	struct dleaf *next;	  /* hash chain */
	struct dleaf *next_dirty; /* shard->dirty: holds entries that no record names */
	uint64_t index;		  /* leaf */
	uint16_t nr, cap;
	uint8_t vol;
	bool on_dirty;
	struct dentry *e; /* ascending slots */
};
struct dmap {
	struct dleaf **bucket;
	size_t nr_buckets; /* power of two, 0 before first use */
	size_t nr_leaves, nr_entries;
};
struct shard {
	pthread_mutex_t lock;
	struct dmap active, frozen; /* lock */
	struct dleaf *dirty;	    /* lock: of active */
	struct runs deferred;	    /* lock: superseded after being journaled; free once the next record is durable */
	struct ptr root[3];	    /* lock: current roots by vol_id (disk, vm) */
	unsigned levels[3];	    /* lock */
	uint64_t root_gen;	    /* lock: changes with the roots */
	uint64_t epoch;		    /* lock: birth for new entries */
} __attribute__((aligned(64)));
#define NR_SHARDS 64u

/* Mapping of one block as a writer found it, for put_if. */
struct mapping {
	struct entry e;
	bool pending; /* from the overlay */
	uint64_t root_gen;
};

/* ---- space ---- */

struct group {
	uint64_t csum; /* of the persistent page */
	uint32_t persist_free, alloc_free;
	uint8_t version;
	bool present, dirty, loaded;
	uint8_t *persist, *alloc; /* GROUP_AUS bits each, when loaded */
	uint8_t *touched;	  /* freed in this session, to be punched; NULL if none */
};
struct space_table {
	uint64_t csum;
	uint8_t version;
	bool present, dirty;
};
struct stream {
	pthread_mutex_t lock;
	uint64_t cur, end;     /* lock: addresses */
	uint64_t recycle[256]; /* lock: single blocks freed before they were journaled */
	unsigned nr_recycle;
} __attribute__((aligned(64)));
#define NR_STREAMS 8u

struct space {
	pthread_mutex_t lock;
	struct group *group;			 /* lock */
	uint64_t nr_groups, cap_groups;		 /* lock */
	struct space_table *table[SPACE_LEVELS]; /* [1..2]: arrays; level 3 is one */
	uint64_t nr_table[SPACE_LEVELS], cap_table[SPACE_LEVELS];
	uint64_t tail;	     /* lock: AUs at or above were never allocated in this session's view */
	uint64_t file_aus;   /* lock: length given to the host file */
	uint64_t free_below; /* lock: free AUs below tail (in alloc) */
	uint64_t cursor;     /* lock: where the next search starts */
	uint64_t used;	     /* persistent bits set */
	struct stream stream[NR_STREAMS];
	struct runs pool;	   /* reserve for nodes; lock */
	uint64_t pool_aus;	   /* lock */
	_Atomic uint64_t reserved; /* node AUs promised to the overlay */
};

/* ---- node cache ---- */

struct page {
	struct page *next; /* hash chain */
	uint64_t addr, csum;
	_Atomic uint32_t refs;
	_Atomic bool hot;
	bool cached;
	uint8_t data[AU_BYTES];
};
struct cache_shard {
	pthread_mutex_t lock;
	struct page **bucket;
	struct page **clock; /* ring of cached pages */
	size_t nr, cap, hand, nr_buckets;
};
#define NR_CACHE_SHARDS 16u
struct cache {
	struct cache_shard shard[NR_CACHE_SHARDS];
};

/* ---- decompressed units, codec contexts ---- */

struct unit_slot {
	uint64_t addr, stamp;
	uint8_t *data;
};
#define NR_UNIT_SLOTS 16u
struct unit_cache {
	pthread_mutex_t lock;
	struct unit_slot slot[NR_UNIT_SLOTS];
	uint64_t clock;
	struct codec_ctx *ctx[16];
	unsigned nr_ctx;
	uint8_t *buf[16]; /* scratch of 2 units each */
	unsigned nr_buf;
};

/* ---- journal ---- */

struct journal {
	uint64_t addr, aus; /* ring; aus 0: none */
	uint64_t salt;
	uint64_t tail, head; /* byte offsets in the ring; tail: first record that may be replayed */
	uint64_t used;	     /* bytes between them, wrap included */
	uint64_t seq;	     /* of the next record */
	uint64_t stable;     /* highest durable sequence */
	uint8_t prev[16];
};
/* Superseded blocks that wait for a checkpoint. */
struct awaiting {
	struct runs runs;
};

struct engine {
	struct node *node; /* the format node that owns it: file, backing, path */
	struct node *file;
	bool writable, bulk, force_share;
	_Atomic bool poisoned;
	struct img_error poison; /* first cause; written once before poisoned is set */
	_Atomic unsigned refs;

	struct super
		sb; /* as last made durable; changed by the checkpoint's owner under lock: others read it under lock */
	uint8_t uuid[16];
	enum codec_id codec; /* for new data */
	int level;
	_Atomic bool has_backing;
	unsigned block_bytes, block_shift, block_aus, unit_blocks, unit_bytes;
	_Atomic uint64_t disk_bytes, vm_bytes;

	struct shard shard[NR_SHARDS];
	_Atomic uint64_t nr_pending; /* overlay entries, active and frozen */
	_Atomic uint64_t nr_dirty_leaves;
	struct space space;
	struct cache cache;
	struct unit_cache units;

	/* state guarded by lock; ckpt_busy and journal_busy are held over I/O */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool ckpt_busy, journal_busy;
	bool flush_waits; /* a checkpoint is making unjournaled changes durable: flushes wait for it */
	uint64_t flush_asked, flush_done;
	_Atomic uint64_t write_count; /* completed changes */
	uint64_t synced_count;	      /* write_count that is known to be durable; lock */
	bool has_ring;		      /* lock: the journal may be used */
	bool journal_unsynced;	      /* a record was appended and not yet synced; lock */
	struct journal journal;	      /* journal_busy */
	struct awaiting await;	      /* journal_busy */
	bool journal_gap;	      /* deltas were collected that no record names; lock */
	_Atomic bool space_bad;	      /* the free-space map did not load: only repair may write */
	struct img_error space_cause;
	bool catalog_bad; /* read-only: the catalog did not load, and the head is all there is */
	struct img_error catalog_cause;
	bool journal_damaged; /* opened read-only because of LIMG-15 */
	bool replayed;	      /* read-only open holds replayed deltas */
	bool mended;	      /* open found a damaged superblock copy and wrote it anew */
	bool dirty_session;   /* this session changed something since open */

	/* background checkpoints */
	pthread_t worker;
	bool worker_started, worker_stop, worker_wanted;

	/* catalog: changed under ckpt, read under cat_lock */
	pthread_mutex_t cat_lock;
	struct snap **snap; /* by slot; NULL: free */
	size_t nr_slots, cap_slots;
	uint8_t *page_dirty; /* per catalog page */
};

/* A consistent set of roots to read: the head (overlay included) or a snapshot. */
struct view {
	struct engine *e;
	struct snap *snap;	/* NULL: head */
	struct volume disk, vm; /* of the snapshot */
};

/* node->state of the driver */
struct limg_state {
	struct engine *e;
	struct view view;
	bool owns;	    /* the node that opened the engine, not a view of it */
	uint64_t locked_id; /* snapshot whose byte is locked, 0 if none */
};

/* ---- super.c ---- */
int super_read(struct node *file, struct super *out, unsigned *damaged_copies, struct img_error *err);
/* Decodes and validates one copy. file_bytes: length of the host file. */
int super_decode(const uint8_t *page, struct super *out, struct img_error *err);
void super_encode(const struct super *sb, uint8_t *page);
/* Both places of the slot; not synced. */
int super_write(struct node *file, const struct super *sb, struct img_error *err);
/* One of the two copies of the current generation: an interrupted write leaves an old one, which is no damage. */
enum super_copy { SUPER_COPY_GOOD, SUPER_COPY_OLD, SUPER_COPY_DAMAGED };
enum super_copy super_copy_state(struct node *file, unsigned place, const struct super *sb, struct img_error *err);
/* Before a writer goes on: writes the copy that is not good, and syncs. *damaged is set where one was worse than old. */
int super_mend(struct node *file, const struct super *sb, bool *damaged, struct img_error *err);
/*
 * The slot that the current generation is not in holds the one before it, or what an interrupted writer left of the
 * next. Is neither of its copies readable? Then it may as well have been the newest state. *claims: the newer
 * generation that a damaged copy names, 0 if none does.
 */
bool super_other_slot_lost(struct node *file, const struct super *sb, uint64_t *claims);
uint64_t super_slot_au(unsigned place, uint64_t generation);
void ptr_store(struct disk_ptr *d, const struct ptr *p);
int ptr_load(const struct disk_ptr *d, struct ptr *p, struct img_error *err);
void volume_store(struct disk_volume *d, const struct volume *v);
int volume_load(const struct disk_volume *d, struct volume *v, unsigned block_shift, struct img_error *err);
unsigned volume_levels_for(uint64_t bytes, unsigned block_shift);
void volume_logical_root(const struct volume *v, uint8_t out[16]);

/* ---- cache.c ---- */
int cache_init(struct cache *c, uint64_t bytes);
void cache_destroy(struct cache *c);
struct page *cache_get(struct cache *c, uint64_t addr, uint64_t csum);
/* Copies data in; returns a referenced page or NULL (no memory). */
struct page *cache_insert(struct cache *c, uint64_t addr, uint64_t csum, const uint8_t *data);
void cache_put(struct page *p);

/* ---- tree.c ---- */
uint64_t page_identity(const struct engine *e, unsigned kind, unsigned level, uint64_t index);
/* Reads a node from the file and verifies its checksum and every field. data: 4096 bytes. */
int tree_read(struct engine *e, unsigned vol, unsigned level, uint64_t index, const struct ptr *p, uint8_t *data,
	      struct img_error *err);
/* As tree_read, through the cache. *out is referenced. */
int tree_page(struct engine *e, unsigned vol, unsigned level, uint64_t index, const struct ptr *p, struct page **out,
	      struct img_error *err);
void node_child(const struct page *pg, unsigned i, struct ptr *out);
static inline void leaf_entry(const struct page *pg, unsigned i, struct entry *out)
{
	const struct disk_leaf *l = (const struct disk_leaf *)pg->data;

	out->word = le64_get(l->e[i].word);
	out->csum = le64_get(l->e[i].csum);
}
/* One leaf of a tree, or the constant state of the hole that it lies in. */
struct leaf_ref {
	struct page *page;     /* NULL: hole */
	enum entry_state hole; /* ST_NONE or ST_ZERO */
	uint64_t hole_leaves;  /* leaves from index on that are in the same hole */
	struct ptr ptr;	       /* of the leaf */
};
int tree_leaf(struct engine *e, unsigned vol, const struct ptr *root, unsigned levels, uint64_t index,
	      struct leaf_ref *out, struct img_error *err);
static inline void leaf_put(struct leaf_ref *r)
{
	if (r->page)
		cache_put(r->page);
	r->page = NULL;
}
/* Leaves below a pointer of this level. */
static inline uint64_t level_leaves(unsigned level)
{
	return UINT64_C(1) << (FANOUT_SHIFT * level);
}
static inline bool ptr_same(const struct ptr *a, const struct ptr *b)
{
	return a->word == b->word && a->csum == b->csum;
}
/* Is the entry sound for this volume? Used when a leaf is loaded. */
bool entry_sound(const struct engine *e, unsigned vol, const struct entry *en);

/* Of 256 entries, and of 64 child pointers: what the pointer above says of content. */
void leaf_logical(const struct entry *en, uint8_t logical[16], uint64_t *count);
void node_logical(const struct ptr *child, uint8_t logical[16], uint64_t *count);

/* ---- merge.c: building the next trees inside a checkpoint ---- */
#define BATCH_PAGES 64u
struct ckpt {
	struct engine *e;
	struct super next; /* the superblock to be written */
	struct runs freed; /* leave the persistent map in this checkpoint; usable after its superblock is durable */
	uint8_t *batch;	   /* nodes waiting to be written in one go */
	uint64_t batch_addr;
	unsigned batch_nr;
	/* what is private to the head (traps 3 and 4) */
	uint64_t boundary;	  /* births above it are the head's own ... */
	uint64_t boundary_before; /* ... and above this one before the cursor */
	unsigned cursor_vol;
	uint64_t cursor;
};
struct merge_leaf {
	unsigned vol;
	uint64_t index;
	const struct dleaf *d;
};
/* Applies leaves (ascending) to the volume; frees what the head alone held. */
int merge_leaves(struct ckpt *c, unsigned vol, struct volume *v, const struct merge_leaf *leaves, size_t nr,
		 struct img_error *err);
/* Sets whole leaves [first, first + nr) to ST_NONE or ST_ZERO. */
int merge_range(struct ckpt *c, unsigned vol, struct volume *v, uint64_t first, uint64_t nr, enum entry_state st,
		struct img_error *err);
int merge_grow(struct ckpt *c, unsigned vol, struct volume *v, unsigned levels, struct img_error *err);
int batch_flush(struct ckpt *c, struct img_error *err);
int ckpt_free(struct ckpt *c, uint64_t addr, uint64_t aus, struct img_error *err);
int ckpt_alloc_page(struct ckpt *c, uint64_t *addr, struct img_error *err);
/* Queues a page for writing; level and index only matter to the caller's checksum. */
int batch_add(struct ckpt *c, uint64_t addr, const uint8_t *page, struct img_error *err);

/* ---- overlay.c ---- */
int overlay_init(struct engine *e);
void overlay_destroy(struct engine *e);
struct shard *overlay_shard(struct engine *e, unsigned vol, uint64_t leaf);
/*
 * Fills en[0..nr) for blocks of one leaf, from slot on; have[i] tells which came from the overlay. Returns the shard's
 * root generation; copies the root for what is missing.
 */
uint64_t overlay_get(struct engine *e, unsigned vol, uint64_t leaf, unsigned slot, unsigned nr, struct entry *en,
		     bool *have, struct ptr *root, unsigned *levels);
/*
 * Records new mappings for nr blocks of one leaf; births are set here. word and csum as in a delta (see limg_disk.h):
 * raw words advance by block_aus, others repeat. expect: NULL, or (nr == 1) the mapping that must still hold; *stale is
 * set where it does not, and nothing is recorded.
 */
int overlay_put(struct engine *e, unsigned vol, uint64_t block, unsigned nr, uint64_t word, const uint64_t *csum,
		const struct mapping *expect, bool *stale, struct img_error *err);
/* As found by recovery: births kept, already journaled, nothing superseded is freed. */
int overlay_replay(struct engine *e, unsigned vol, uint64_t block, unsigned nr, uint64_t word, const uint64_t *csum,
		   struct img_error *err);
/* Are there entries for any leaf of the volume? */
bool overlay_empty(struct engine *e);
void dmap_free(struct engine *e, struct dmap *m);

/* ---- space.c ---- */
void space_locks_init(struct engine *e);
int space_init_new(struct engine *e, struct img_error *err);
int space_load(struct engine *e, struct img_error *err);
void space_destroy(struct engine *e);
/* Contiguous AUs: at least min, at most want. */
int space_alloc(struct engine *e, uint64_t want, uint64_t min, uint64_t *addr, uint64_t *got, struct img_error *err);
/* For data: between one block and want AUs, a multiple of a block; compressed units: exactly want. */
int space_alloc_data(struct engine *e, uint64_t want, bool exact, uint64_t *addr, uint64_t *got, struct img_error *err);
void space_free(struct engine *e, uint64_t addr, uint64_t aus);
void space_free_data(struct engine *e, uint64_t addr, uint64_t aus); /* never journaled: straight to reuse */
void space_free_runs(struct engine *e, struct runs *r);
/* Recovery: mark what replayed records use. Fails CORRUPT where it is used already. */
int space_claim(struct engine *e, uint64_t addr, uint64_t aus, struct img_error *err);
/* Changes of the persistent map, inside a checkpoint. */
int space_persist_use(struct engine *e, uint64_t addr, uint64_t aus, struct img_error *err);
/* Takes back a use that the merge will state again. */
int space_persist_unuse(struct engine *e, uint64_t addr, struct img_error *err);
int space_persist_free(struct engine *e, uint64_t addr, uint64_t aus, struct img_error *err);
/* Writes changed pages to their other version; fills sb->space, nr_groups, used_aus, file_bytes, hint. */
int space_write(struct engine *e, struct super *sb, struct img_error *err);
/* Makes sure that a checkpoint of `leaves` dirty leaves finds its nodes, host space included. */
int space_reserve(struct engine *e, uint64_t leaves, struct img_error *err);
void space_pool_release(struct engine *e);
/* An AU for a node; where the host has no room, of the last reserve. */
int space_pool_take(struct engine *e, uint64_t *addr, struct img_error *err);
/* Gives streams' unused rests back; before close. */
void space_streams_release(struct engine *e);
void space_punch(struct engine *e, const struct runs *r, uint64_t min_aus);
/* Gives the host space back of what was freed in this session. */
void space_punch_touched(struct engine *e);
/* Writes to AUs that the caller has; on a full disk again after space_punch_touched(). No lock of space may be held. */
int space_write_data(struct engine *e, const void *buf, uint64_t bytes, uint64_t addr, struct img_error *err);
size_t space_dirty_groups(struct engine *e);
int space_last_used(struct engine *e, uint64_t *aus, struct img_error *err);
/* By how many AUs a file that was filled in one go may be longer than what it holds. */
uint64_t space_waste_bound(uint64_t blocks, uint64_t data_aus, uint64_t nodes);
bool space_fixed(uint64_t au); /* a fixed AU of section 2 */
/* The persistent bitmap of a group, read from the file. */
int space_read_bitmap(struct engine *e, uint64_t group, uint8_t *page, struct img_error *err);
/* Repair: the map becomes what `used` (a bit for each AU of nr_groups groups) says. */
int space_rebuild(struct engine *e, const uint8_t *used, struct img_error *err);

/* ---- journal.c ---- */
struct record_buf {
	uint8_t *data;
	size_t bytes, cap;
	uint32_t nr_deltas;
	bool failed; /* no memory */
};
void record_begin(struct record_buf *r);
void record_delta(struct record_buf *r, unsigned vol, uint64_t block, uint64_t word, unsigned nr, const uint64_t *csum);
/* Rounded size of the finished record. */
uint64_t record_bytes(const struct record_buf *r);
bool journal_has_room(const struct journal *j, uint64_t bytes);
/* Writes it at the head (a wrap record first where needed); not synced. Caller holds journal_busy. */
int journal_append(struct engine *e, struct record_buf *r, struct img_error *err);
void record_free(struct record_buf *r);
/*
 * The next record will name something else than the one before it: the superblock that is about to be written says what. For the one that
 * is there now the chain ends here, since what comes after relies on more than its records. Caller holds journal_busy.
 */
void journal_cut(struct engine *e);
/* Steps 2 to 4 of section 10: fills the overlay. Sets journal_damaged. */
int journal_recover(struct engine *e, struct img_error *err);
uint64_t journal_ring_aus(const struct engine *e);

/* ---- open.c ---- */
/* Recovered blocks are in no bitmap yet: they are taken. CORRUPT where one is in use. */
int recovery_claim(struct engine *e, struct img_error *err);

/* ---- checkpoint.c ---- */
enum ckpt_action {
	CKPT_PLAIN,
	CKPT_SNAP_CREATE,
	CKPT_SNAP_DELETE,
	CKPT_SNAP_REVERT,
	CKPT_SNAP_RENAME,
	CKPT_RANGE,
	CKPT_RESIZE,
	CKPT_BACKING,
	CKPT_VM_RESIZE,
	CKPT_CLOSE,
	CKPT_RECOVER,
};
struct ckpt_req {
	enum ckpt_action action;
	const char *name, *new_name;
	unsigned flags;
	const int64_t *created_ns;     /* SNAP_CREATE; NULL: now */
	unsigned vol;		       /* RANGE */
	uint64_t first, nr;	       /* RANGE: leaves */
	enum entry_state state;	       /* RANGE */
	uint64_t size_bytes;	       /* RESIZE, VM_RESIZE */
	const struct backing_ref *ref; /* BACKING; NULL: none */
	bool empty;		       /* BACKING: drop the disk's content */
	uint64_t reclaim_leaves;       /* how much deleted content to reclaim in the same step */
	bool want_ring;		       /* PLAIN: make a journal ring where there is none */
	bool reclaim_small;	       /* stop before the free-space map costs more than a few pages */
	bool more;		       /* out: reclaimable content is left */
};
/* Something is not in the trees yet: entries of the overlay, or machine state that grew by zeros and has no entries. */
bool engine_unmerged(struct engine *e);
int engine_flush(struct engine *e, struct img_error *err);
int engine_checkpoint(struct engine *e, struct ckpt_req *req, struct img_error *err);
/* Called after changes: starts or waits for a checkpoint where the overlay has grown. */
int engine_throttle(struct engine *e, struct img_error *err);
/* Keeps checkpoints (and what they free) away, for who walks the trees. */
void checkpoint_begin(struct engine *e);
void checkpoint_end(struct engine *e);
int engine_writable(struct engine *e, struct img_error *err); /* READONLY or POISONED */
void engine_poison(struct engine *e, const struct img_error *cause);
void engine_stop_worker(struct engine *e);

/* ---- catalog.c ---- */
int catalog_load(struct engine *e, struct img_error *err);
/* Fails, with the cause, where the catalog could not be loaded: who asks for a snapshot must not hear that there is
 * none. */
int catalog_usable(const struct engine *e, struct img_error *err);
void catalog_destroy(struct engine *e);
struct snap *catalog_find(struct engine *e, const char *name);			/* live ones; cat_lock held */
struct snap *catalog_view(struct engine *e, const char *name); /* live, one view more; NULL: none, or going; cat_lock held */
bool catalog_is_full(struct engine *e);				/* no room for a record; cat_lock held */
struct snap *catalog_by_uuid(struct engine *e, const uint8_t *uuid);		/* live ones; cat_lock held */
struct snap *catalog_by_id(struct engine *e, uint64_t id);			/* any state; cat_lock held */
unsigned catalog_children(struct engine *e, uint64_t id, uint64_t head_parent); /* records and head; cat_lock held */
int catalog_add(struct engine *e, const struct snap *s, struct snap **out, struct img_error *err);
void catalog_touch(struct engine *e, const struct snap *s);
void catalog_remove(struct engine *e, struct snap *s);
int catalog_store(struct ckpt *c, struct img_error *err);
int snapshot_name_check(const char *name, struct img_error *err);

/* ---- reclaim.c ---- */
#define RECLAIM_LEAVES 16384u /* deleted leaves to free in one checkpoint: bounds memory and the time between cursors */
int reclaim_step(struct ckpt *c, uint64_t leaves, bool small, bool *more, struct img_error *err);
bool reclaim_possible(struct engine *e, uint64_t head_parent);

/* ---- unit.c ---- */
int unit_store(struct engine *e, unsigned vol, uint64_t first_block, const uint8_t *plain, struct entry *en,
	       bool *stored, struct img_error *err);
/* Copies the plaintext of blocks [skip, skip + nr) of the unit to buf, verified against en[0..nr). */
int unit_read(struct engine *e, const struct entry *en, unsigned skip, unsigned nr, uint8_t *buf,
	      struct img_error *err);
int units_init(struct unit_cache *u);
void units_destroy(struct unit_cache *u);
struct codec_ctx *units_ctx_get(struct engine *e);
void units_ctx_put(struct engine *e, struct codec_ctx *ctx);
uint8_t *units_buf_get(struct engine *e);
void units_buf_put(struct engine *e, uint8_t *buf);
/* Reads the stored unit and expands it into plain (unit_bytes). */
int unit_expand(struct engine *e, const struct entry *en, uint8_t *plain, struct img_error *err);

/* ---- io.c ---- */
int view_read(struct view *v, unsigned vol, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int head_write(struct engine *e, unsigned vol, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
	       struct img_error *err);
int head_zero(struct engine *e, unsigned vol, uint64_t bytes, uint64_t off, bool discard, struct img_error *err);
int view_status(struct view *v, unsigned vol, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		size_t *nr, struct img_error *err);
uint64_t block_csum(const void *data, size_t bytes);
/* XXH3-128 as the format stores it: low half, high half, both little-endian. */
void xxh128_store(const void *data, size_t bytes, uint8_t out[16]);
static inline bool csum_matches(const struct entry *e, uint64_t found)
{
	if (word_state(e->word) == ST_RAW)
		return e->csum == found;
	return (e->csum ^ found) >> 8 == 0;
}

/* ---- snapshot.c ---- */
int snapshot_lock(struct engine *e, uint64_t id, enum byte_lock mode, struct img_error *err);

static inline unsigned vol_shift(const struct engine *e, unsigned vol)
{
	return vol == VOL_CATALOG ? AU_SHIFT : e->block_shift;
}
static inline unsigned vol_aus(const struct engine *e, unsigned vol)
{
	return 1u << (vol_shift(e, vol) - AU_SHIFT);
}
static inline uint64_t au_off(uint64_t addr)
{
	return addr << AU_SHIFT;
}

#endif
