/* SPDX-License-Identifier: MIT */
/*
 * Random programs of operations, run against real images in memory and against flat arrays at the same time.
 *
 * A program is a list of operations with plain random numbers as arguments; an operation makes sense of its numbers
 * when it runs (an offset is taken modulo the size, a snapshot is chosen among those that there are), so every sub-list
 * of a program is a program too, and a failing one can be made small by leaving operations out.
 *
 * The images form a stack of files: each stands on a state of one below it, or on nothing, and the last one, the top,
 * is open for writing. The truth of a file is the content that its guest sees, backing included: a flat array for the
 * head, one for each snapshot, and the same for the machine state.
 */
#ifndef TESTS_MODEL_H
#define TESTS_MODEL_H

#include <limits.h>

#include "device.h"
#include "flat.h"
#include "memfs.h"

#define MODEL_MAX_FILES	 3
#define MODEL_MAX_SNAPS	 10
#define MODEL_BITMAPS	 3
#define MODEL_MAX_BYTES	 (8u << 20)
#define MODEL_WIDE_BYTES (256u << 20) /* of the few programs that have deep trees and little in them */

enum op_kind {
	OP_WRITE,
	OP_WRITE_BLOCKS,
	OP_WRITE_UNITS,
	OP_ZERO,
	OP_DISCARD,
	OP_READ,
	OP_FLUSH,
	OP_CHECKPOINT,
	OP_SNAP_CREATE,
	OP_SNAP_DELETE,
	OP_SNAP_REVERT,
	OP_SNAP_RENAME,
	OP_SNAP_READ,
	OP_SNAP_HOLD,
	OP_DIFF,
	OP_EXTENTS,
	OP_VM_WRITE,
	OP_VM_ZERO,
	OP_VM_READ,
	OP_VM_LOAD,
	OP_VM_RESIZE,
	OP_RESIZE,
	OP_OVERLAY,
	OP_POP,
	OP_COMMIT,
	OP_REBASE,
	OP_FLATTEN,
	OP_REOPEN,
	OP_REPLAY,
	OP_CHECK,
	OP_COMPARE,
	OP_CONVERT,
	OP_TOUCH_PARENT,
	OP_AMEND,
	OP_BITMAP_ADD,
	OP_BITMAP_REMOVE,
	OP_BITMAP_SWITCH, /* on or off */
	OP_BITMAP_CLEAR,
	OP_BITMAP_MERGE,
	NR_OPS
};

struct op {
	enum op_kind kind;
	uint32_t r[4];
};

/* What formats differ in, as far as the model must know. */
struct traits {
	const char *name;    /* of the format */
	const char *kind;    /* by which it is asked for; NULL: by name */
	bool raw;	     /* plain content and nothing else; not guessed */
	bool discard_zeroes; /* whole blocks read as zeros after a discard; else they may also be as before */
	bool has_parents;    /* a snapshot says which one it was made on */
	bool strong_pins; /* identity is of the content; else every write to the file changes it, also for snapshots */
	bool keeps_vm;	  /* the working machine state outlives the handle */
	bool may_leak;	  /* a kill leaves leaks, never damage */
	bool ids;	  /* a child knows its parent by an id that writes to the parent do not change */
	bool bitmaps;	  /* of what was changed */
	bool alone;	  /* no parents */
	bool several;	  /* data files; such images keep their size */
	bool device;	  /* its file is a block device */
	bool plain; /* no snapshots, no machine state, disks of one sector at least, parents of the same format only */
};
const struct traits *traits_of(const char *kind); /* program.c; NULL: no such */

struct geometry {
	const struct traits *format;
	uint32_t block_bytes, unit_bytes;
	uint64_t size_bytes, max_bytes;
	const struct traits
		*base; /* the first file is of this format, and what is under test stands on it; NULL: no such */
	unsigned refcount_bits;		     /* where snapshots may meet a limit of references; 0: they do not */
	bool is_v2;			     /* qcow2 of version 2: no resize while there are snapshots */
	char options[128], base_options[32]; /* base_options: of the first file, "": those of the others */
};

struct program {
	uint64_t seed;
	struct geometry geometry;
	struct op *ops; /* owned */
	size_t nr;
};

struct msnap {
	char name[24]; /* "" where deleted: kept for the parents of others */
	struct flat disk,
		vm; /* vm: the working machine state of that time, whether it belongs to the snapshot or not */
	bool has_vm;
	unsigned id; /* ours, ascending with creation */
	unsigned parent;
};
/* A parent that is not known: a crash may have come before a revert or after it. */
#define MODEL_ANY_PARENT UINT_MAX

struct mfile {
	char name[16];
	struct flat head, vm;
	struct msnap snaps[MODEL_MAX_SNAPS];
	size_t nr_snaps;
	unsigned next_id, head_parent;
	struct {
		unsigned id, parent;
	} gone[256]; /* deleted snapshots: whose children are now their parents' */
	size_t nr_gone;
	int parent;	      /* index in the stack, -1: none */
	char parent_snap[24]; /* "": its head */
	const struct traits *format;
	bool is_v2; /* now: amend changes it */
	bool leaks; /* a failure of the host may have left some */
	bool stale; /* its parent's head was changed by a commit from elsewhere: it cannot be opened any more */
};

struct mbitmap {
	bool exists, enabled;
	bool broken; /* missed something, by a crash: can only be removed */
	uint64_t granule_bytes;
	struct flat since; /* enabled: the head when this time of recording began */
	uint8_t *dirty;	   /* by sector: what is so for certain, besides */
};

struct model {
	struct memfs fs;
	struct geometry geometry;
	struct mfile files[MODEL_MAX_FILES + 1];
	struct {
		struct mbitmap b[MODEL_BITMAPS];
	} bitmaps[MODEL_MAX_FILES + 1]; /* of files[] */
	int top;
	struct img *img;  /* the top, open for writing */
	struct img *held; /* a snapshot of the top that is kept open, NULL if none */
	char held_name[24];
	unsigned snap_seq;
	uint32_t block_bytes, unit_bytes;
	bool no_parents;  /* do not look at who is made on whom: one of a conversion's formats does not say */
	bool leaks_ok;	  /* this is what a kill left */
	bool no_vm;	  /* leave out the working machine state: only with a snapshot is it durable, and converted */
	bool has_bitmaps; /* some file has or had one: no resize to nothing */
	bool no_bitmaps;  /* leave them out: this is a copy without them */
	bool bitmaps_may_break; /* a kill, or the host failed: those that this session changed may be inconsistent */
	bool one_thread;	/* where an operation would draw a number of them */
	uint8_t *buf, *buf2;	/* IO_BYTES each; made where the caller has none */
	bool verbose;
	uint64_t full_checks;
	/* For who lets the host fail: what the operation touches besides itself, and what came back instead of success.
	 */
	uint64_t touched_off, touched_bytes;
	int refused;	   /* enum img_code; 0: nothing did */
	bool host_fails;   /* a check may take that for damage */
	char failure[512]; /* "" while all is well */
};
#define IO_BYTES (2u << 20)

/* program.c */
/* without: operations that are not drawn, "name,name"; may be NULL. */
void program_make(struct program *p, uint64_t seed, size_t nr_ops, const char *format, const char *without);
void program_print(const struct program *p);
const char *op_name(enum op_kind kind);
uint64_t rng_next(uint64_t *state);

/* run.c: 0, or -1 with m->failure set. */
int program_run(const struct program *p, struct model *m, size_t *failed_at);
/* Its parts. m is zeroed, but for verbose and the like; between init and begin a filter may be put into m->fs. */
int model_init(struct model *m, const struct geometry *geometry);
int model_begin(struct model *m);
int model_step(struct model *m, const struct op *op);
int model_end(struct model *m);
void model_free(struct model *m);

/* state.c */
int fail(struct model *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The call must have given `want`. */
int expect(struct model *m, int got, int want, const struct img_error *err, const char *what);
int open_top(struct model *m);
int close_top(struct model *m);
int make_file(struct model *m, int parent, const char *parent_snap, uint64_t size_bytes);
void drop_file(struct model *m, int index);
struct msnap *pick_snap(struct model *m, uint32_t r);
struct msnap *find_snap(struct mfile *f, const char *name);
void free_snap(struct msnap *s);
/* What a file stands on; NULL if nothing. */
const struct flat *parent_content(struct model *m, const struct mfile *f);

/* verify.c */
int check_range(struct model *m, struct img *img, const struct flat *truth, uint64_t bytes, uint64_t off,
		const char *what);
int check_image(struct model *m, struct img *img, const struct flat *truth, const char *what);
int check_clean(struct model *m, struct img *img, const char *what);
/* The same, but for leaks that f may have. */
int check_own(struct model *m, struct img *img, const struct mfile *f, const char *what);
/* Head, every snapshot, machine states, list of snapshots, img_check(). */
int check_everything(struct model *m, struct img *img, const struct mfile *f, const char *what);
int check_vm(struct model *m, struct img *img, const char *snap, const struct flat *truth);

/* ops_bitmap.c */
/* All that img, which holds the head of files[index], says of its bitmaps. */
int bitmaps_check(struct model *m, struct img *img, int index, const char *what);
/* The head of files[index] has another size than it had. */
void bitmaps_resized(struct model *m, int index, uint64_t was);
/* The top was not closed as it should, or is another file: which bitmaps exist now, and which of them are broken. */
int bitmaps_adopt(struct model *m);
void bitmaps_drop(struct model *m, int index);

/* ops_io.c, ops_snapshot.c, ops_chain.c, ops_amend.c, ops_bitmap.c */
typedef int (*op_fn)(struct model *m, const uint32_t *r);
int op_write(struct model *m, const uint32_t *r);
int op_write_blocks(struct model *m, const uint32_t *r);
int op_write_units(struct model *m, const uint32_t *r);
int op_zero(struct model *m, const uint32_t *r);
int op_discard(struct model *m, const uint32_t *r);
int op_read(struct model *m, const uint32_t *r);
int op_flush(struct model *m, const uint32_t *r);
int op_checkpoint(struct model *m, const uint32_t *r);
int op_extents(struct model *m, const uint32_t *r);
int op_vm_write(struct model *m, const uint32_t *r);
int op_vm_zero(struct model *m, const uint32_t *r);
int op_vm_read(struct model *m, const uint32_t *r);
int op_vm_load(struct model *m, const uint32_t *r);
int op_vm_resize(struct model *m, const uint32_t *r);
int op_resize(struct model *m, const uint32_t *r);
int op_snap_create(struct model *m, const uint32_t *r);
int op_snap_delete(struct model *m, const uint32_t *r);
int op_snap_revert(struct model *m, const uint32_t *r);
int op_snap_rename(struct model *m, const uint32_t *r);
int op_snap_read(struct model *m, const uint32_t *r);
int op_snap_hold(struct model *m, const uint32_t *r);
int op_diff(struct model *m, const uint32_t *r);
int op_overlay(struct model *m, const uint32_t *r);
int op_pop(struct model *m, const uint32_t *r);
int op_commit(struct model *m, const uint32_t *r);
int op_rebase(struct model *m, const uint32_t *r);
int op_flatten(struct model *m, const uint32_t *r);
int op_reopen(struct model *m, const uint32_t *r);
int op_replay(struct model *m, const uint32_t *r);
int op_check(struct model *m, const uint32_t *r);
int op_compare(struct model *m, const uint32_t *r);
int op_convert(struct model *m, const uint32_t *r);
int op_touch_parent(struct model *m, const uint32_t *r);
int op_amend(struct model *m, const uint32_t *r);
int op_bitmap_add(struct model *m, const uint32_t *r);
int op_bitmap_remove(struct model *m, const uint32_t *r);
int op_bitmap_switch(struct model *m, const uint32_t *r);
int op_bitmap_clear(struct model *m, const uint32_t *r);
int op_bitmap_merge(struct model *m, const uint32_t *r);
int release_held(struct model *m);
/* What the truth of the top becomes by an operation on its snapshots. */
void snap_created(struct model *m, const char *name, bool vm);
void snap_deleted(struct model *m, struct msnap *s);
void snap_renamed(struct model *m, struct msnap *s, const char *name);
void snap_reverted(struct model *m, const struct msnap *s);

#endif
