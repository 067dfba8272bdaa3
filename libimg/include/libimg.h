/* SPDX-License-Identifier: MIT */
/*
 * libimg: copy-on-write disk images with backing chains and snapshots.
 *
 * Conventions that hold for every function here:
 *
 *  - Offsets, lengths and sizes are bytes (uint64_t). I/O functions take (img, buf, bytes, off, flags, err) and are
 *    all-or-nothing: 0 means that every byte was transferred, anything else that the content of the buffer (reads) or of
 *    the addressed range (writes) is undefined, and nothing outside the range was touched.
 *  - A function that can fail returns 0 or a negative enum img_code; its last parameter is a struct img_error, owned by the
 *    caller, which may be NULL. The first failure fills it; outer layers only prefix the message.
 *  - Every function on one struct img may be called from several threads at once, except img_close(). Overlapping
 *    concurrent writes land in some order, block by block. A write that returned before img_flush() was called is durable
 *    when that img_flush() returns 0. Functions that replace the content as a whole (revert, resize, rebase, commit,
 *    flatten) are ordered against each other; I/O concurrent with one of them sees the state before or after it, block by
 *    block.
 *  - Option structs start with struct_size, set to sizeof the struct; zero in a field means the default. NULL options are
 *    all defaults.
 *  - State after failure: unless a function says otherwise, an image whose change failed is unchanged. After a failed flush
 *    (or a failed commit of metadata) the handle is poisoned: reads go on, every further change is refused with
 *    IMG_E_POISONED until the image is closed and opened again. What had been flushed before is on disk.
 *  - Callbacks (progress, findings, details, warnings) are called by one thread at a time while requests to the image may
 *    be held back: they must not call the library on the images of the call that they serve.
 *  - The library prints nothing, never exits, installs no signal handlers and keeps no global state.
 */
#ifndef LIBIMG_H
#define LIBIMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define IMG_API __attribute__((visibility("default")))
#else
#define IMG_API
#endif

#define IMG_VERSION_MAJOR 0
#define IMG_VERSION_MINOR 1
#define IMG_VERSION_PATCH 0

struct img; /* an open image, or one snapshot of it */
struct img_host; /* where a process opens files that may not do so itself: see img_host_connect() */

/* ---- errors ------------------------------------------------------------------------------------------------------ */

enum img_code {
	IMG_OK = 0,
	IMG_E_INVALID = -1,	/* an argument is outside what the function documents */
	IMG_E_IO = -2,		/* the host failed a read, write, sync, open...; sys_errno says how */
	IMG_E_NOMEM = -3,	/* memory allocation failed */
	IMG_E_NOSPC = -4,	/* host disk or quota full; the image is whole, retry after making room */
	IMG_E_NOENT = -5,	/* no such file or snapshot */
	IMG_E_EXISTS = -6,	/* the file or snapshot name is taken */
	IMG_E_CORRUPT = -7,	/* the image is damaged: a structure or checksum does not hold */
	IMG_E_FORMAT = -8,	/* not an image of the expected format, or of no known format */
	IMG_E_BUSY = -9,	/* another open description holds it; the message names the pid where it can be found */
	IMG_E_REFUSED = -10,	/* refused by policy: external reference, guessed raw, ... */
	IMG_E_CHANGED = -11,	/* a backing file is not the one that the overlay was made on */
	IMG_E_UNSUPPORTED = -12, /* a feature that this build or this format does not have */
	IMG_E_LIMIT = -13,	/* a named limit or budget is exceeded */
	IMG_E_KEY = -14,	/* a key is missing or wrong */
	IMG_E_POISONED = -15,	/* an earlier failure forbids further changes through this handle */
	IMG_E_READONLY = -16,	/* a change was asked of a read-only image or snapshot */
	IMG_E_CANCELLED = -17,	/* a progress callback asked to stop */
};

/*
 * Fixed size, no allocation, always NUL-terminated; msg is one line without the program's name. Names that are too long for it
 * have "..." in their middle, so that what went wrong stays.
 */
struct img_error {
	int code;	 /* enum img_code */
	int sys_errno;	 /* errno of the host where one exists, else 0 */
	uint64_t offset; /* file offset the message speaks of, UINT64_MAX if none */
	char layer[24];	 /* driver or module that failed first */
	char msg[472];
};

/*
 * What msg says behind "path: ", where it begins so: also where path stands in it shortened, or with '?' for control characters.
 * NULL where it does not. For whoever names the file already.
 */
IMG_API const char *img_error_reason(const struct img_error *err, const char *path);

/*
 * Fills err (may be NULL) unless it is filled already, as the library itself does, and returns code. With sys_errno, unless it
 * is 0, msg ends in what that means.
 */
IMG_API int img_error_set(struct img_error *err, int code, int sys_errno, const char *layer, const char *msg);

/* Static text for a code ("image is damaged"); never NULL. */
IMG_API const char *img_strerror(int code);

/* "0.1.0"; the version of the library in use, which may differ from the header's. */
IMG_API const char *img_version(void);

/* Names of the formats that this build has, i from 0; NULL past the end. */
IMG_API const char *img_format_name(size_t i);

/* 1: images of this format can be made. 0: it is only read, or there is no such format. */
IMG_API int img_format_can_create(const char *format);

/* The options that a format takes in img_create_options: lines of "key=what it is\n", "" for none. NULL: no such format. */
IMG_API const char *img_format_options(const char *format);

/* ---- opening and creating ---------------------------------------------------------------------------------------- */

enum img_open_flags {
	IMG_OPEN_WRITE = 1u << 0,	/* read and write; default is read-only at the host file descriptor */
	IMG_OPEN_FORCE_SHARE = 1u << 1, /* read-only although another process may write: answers may be stale */
	IMG_OPEN_NO_BACKING = 1u << 2,	/* do not open what the image names; unallocated ranges then cannot be read */
	IMG_OPEN_UNSAFE_BACKING = 1u << 3, /* do not compare the backing file's identity with the recorded pin */
	IMG_OPEN_BULK = 1u << 4, /* nothing is durable before img_close(): for a new file that is renamed into place */
	IMG_OPEN_DIRECT = 1u << 5, /* O_DIRECT on the host file where it is possible, else as without */
	IMG_OPEN_VOLATILE = 1u << 7, /* wait for no disk, also when it is closed: a crash of the host may leave anything */
	IMG_OPEN_DATA_FILES = 1u << 8, /* with NO_BACKING: files that hold data of the image itself are opened all the same */
	IMG_OPEN_RAW_OK = 1u << 6, /* reading: a file without a known magic may be opened as raw (default for reading) */
};

/* Who may be opened because an image names it. Always read-only, regular files only. */
enum img_refs {
	IMG_REFS_DEFAULT = 0, /* IMG_REFS_DIR */
	IMG_REFS_NONE,	      /* nothing */
	IMG_REFS_DIR,	      /* files in the image's own folder and below */
	IMG_REFS_ANY,	      /* any path */
};

/*
 * What an image may cost that is opened. It comes from a stranger, and may ask for much with few bytes. What exceeds a limit
 * is refused with IMG_E_LIMIT; the message names the limit, its value, what the image wants, and imgtool's option that raises
 * it. 0: the default, which no honest image reaches. Beside these there are max_depth and max_virtual_bytes of the open options.
 */
struct img_budget {
	size_t struct_size;
	uint64_t metadata_bytes; /* tables of one layer that are held or searched in memory; 1 GiB */
	uint64_t expansion;	 /* bytes of data on one layer's disk per byte of its file, where they are above 1 GiB; 50000 */
	uint64_t references;	 /* files opened because images name them, in the whole chain; 128 */
	uint64_t snapshots;	 /* of one layer; 65536 */
	uint64_t check_seconds;	 /* of one img_check(); 86400. Looked at where a check reports progress */
};

struct img_open_options {
	size_t struct_size;
	const char *format;   /* NULL: probe. "raw" must be named to be opened for writing */
	const char *snapshot; /* open this internal snapshot, read-only; NULL: the head */
	unsigned flags;	      /* enum img_open_flags */
	enum img_refs refs;
	unsigned max_depth;	/* longest backing chain; 0: 64 */
	uint64_t cache_bytes;	/* metadata cache of each layer; 0: the format's default */
	uint64_t max_virtual_bytes; /* refuse larger images; 0: 2^63 - 1 */
	const struct img_budget *budget; /* read during the call; NULL: all defaults */
	struct img_host *host; /* opens the files, and outlives the image; NULL: this process does */
};

/*
 * Opens the image at path and its backing chain. A folder stands for the DiskDescriptor.xml in it (Parallels). On success *out is owned by the caller and ends with img_close().
 * On failure *out is NULL. Errors: NOENT, IO, FORMAT (no or two magics), CORRUPT, BUSY, REFUSED (policy, raw guessed for
 * writing), CHANGED (pin; a parent's snapshot is gone), UNSUPPORTED, LIMIT.
 */
IMG_API int img_open(const char *path, const struct img_open_options *opts, struct img **out, struct img_error *err);

/* As img_open() on an open descriptor, which the image owns from here on, also after failure. References are REFUSED. */
IMG_API int img_open_fd(int fd, const struct img_open_options *opts, struct img **out, struct img_error *err);

enum img_create_flags {
	IMG_CREATE_OVERWRITE = 1u << 0, /* replace an existing file, atomically, when the new one is complete */
	IMG_CREATE_VOLATILE = 1u << 1,	/* wait for no disk: after a crash of the host nothing, or anything, may be there */
	IMG_CREATE_DEVICE = 1u << 2,	/* path is a block device, which loses what it holds: the image is made on it, in place */
};

struct img_create_options {
	size_t struct_size;
	const char *format;	/* NULL: "limg" */
	uint64_t size_bytes;	/* virtual size, a multiple of 512; may be 0; with a backing: 0 takes the backing's */
	bool size_given;	/* size_bytes counts although it is 0 */
	unsigned flags;		/* enum img_create_flags */
	const char *backing;	/* parent path, as it will be recorded (relative: to the new file's folder) or NULL */
	const char *backing_snapshot; /* named snapshot of the parent; NULL: its head */
	const char *backing_format;   /* NULL: probe (never raw by guess: name it) */
	const char *options;	/* "key=value,key=value" for the driver; unknown keys are INVALID */
	enum img_refs refs;
	const struct img_budget *budget; /* for opening the backing; NULL: all defaults */
	struct img_host *host;	/* makes and opens the files; NULL: this process does */
};

/*
 * Creates an image file under a temporary name beside path, syncs it, and renames it into place. After failure or a crash
 * nothing is left under path. Files that hold its data (of a VMDK in several, a bundle ...) get their names right before; they replace
 * nothing, and a crash between these renames leaves some, whole and without their image: to be removed before it is run again.
 * With IMG_CREATE_OVERWRITE a file that somebody has open (by the locks of QEMU's protocol) is BUSY, before any work and once more when it
 * is to be replaced; img_convert() does not replace what it reads, either.
 * One failure comes too late to leave nothing: where the folder cannot be synced in the end, IO says that the image is complete and in its place,
 * from where a crash may take it. A folder that cannot even be opened is refused before.
 * On a device (IMG_CREATE_DEVICE; limg and qcow2, without files for their data) what says that an image is there is erased first and written
 * last: after failure or a crash no image is there; what is refused at once (options, sizes, what a strict copy would lack) touches nothing. The caller sees to it that nobody else uses the device.
 * Errors: EXISTS, BUSY, INVALID, IO, NOSPC, and those of img_open() for the backing.
 */
IMG_API int img_create(const char *path, const struct img_create_options *opts, struct img_error *err);

/*
 * Flushes, makes the metadata final, releases everything; img is gone also after failure, whose meaning is that of a
 * failed flush. NULL is allowed. No other call on img may be running.
 */
IMG_API int img_close(struct img *img, struct img_error *err);

struct img_probe_result {
	char format[16];	/* the format, "raw" where nothing was recognised */
	unsigned nr_magics;	/* how many formats recognise it; more than one is refused by img_open() */
	char other[16];		/* a second format that recognises it */
};

/* Reads head and tail of a file (as img_open(), a folder stands for one) and says what it looks like. Opens nothing else. */
IMG_API int img_probe(const char *path, struct img_probe_result *out, struct img_error *err);

/* ---- properties (no I/O) ----------------------------------------------------------------------------------------- */

enum img_caps {
	IMG_CAP_WRITE = 1u << 0,     /* this handle may be written */
	IMG_CAP_SNAPSHOTS = 1u << 1, /* internal snapshots */
	IMG_CAP_BACKING = 1u << 2,   /* may stand on a backing image */
	IMG_CAP_RESIZE = 1u << 3,
	IMG_CAP_DISCARD = 1u << 4,   /* discarded space returns to the host */
	IMG_CAP_COMPRESS = 1u << 5,  /* IMG_IO_COMPRESS is honoured */
	IMG_CAP_CHECK = 1u << 6,
	IMG_CAP_VMSTATE = 1u << 7,
	IMG_CAP_CHECKSUMS = 1u << 8, /* every byte read is verified */
	IMG_CAP_BITMAPS = 1u << 9,   /* persistent dirty bitmaps */
	IMG_CAP_SNAPSHOTS_BESIDE = 1u << 10, /* a snapshot may be read while another process writes the image */
};

struct img_limits {
	uint32_t block_bytes;	/* allocation granularity, 1 if none */
	uint32_t optimal_bytes; /* aligned requests of this size are cheapest */
	uint32_t unit_bytes;	/* compression unit, 0 if none */
	uint64_t max_size_bytes;
};

IMG_API uint64_t img_size(const struct img *img);
IMG_API unsigned img_caps(const struct img *img);
IMG_API const char *img_format(const struct img *img);	/* static string */
IMG_API const char *img_path(const struct img *img);	/* owned by img; "" where opened from a descriptor */
IMG_API void img_limits(const struct img *img, struct img_limits *out);
IMG_API struct img *img_backing(const struct img *img); /* borrowed, read-only, lives as long as img; NULL if none */
IMG_API unsigned img_chain_depth(const struct img *img); /* 1 for an image without backing */

/* ---- I/O --------------------------------------------------------------------------------------------------------- */

enum img_io_flags {
	IMG_IO_FUA = 1u << 0,	   /* writes: durable when the call returns */
	IMG_IO_COMPRESS = 1u << 1, /* writes: store compressed where a whole aligned unit is written; else ignored */
	IMG_IO_NO_UNMAP = 1u << 2, /* zero: keep the space allocated where the format can say so; else ignored */
	IMG_IO_DETECT_ZEROES = 1u << 3, /* writes: blocks of zeros are stored as zeros without data */
	IMG_FLUSH_CHECKPOINT = 1u << 8, /* flush: also fold the journal into the tree (limg) */
};

/* Ranges beyond img_size() are INVALID; bytes == 0 succeeds. Reads of damaged data fail CORRUPT with the file offset. */
IMG_API int img_pread(struct img *img, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
IMG_API int img_pwrite(struct img *img, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err);
/* The iovecs must add up to bytes. */
IMG_API int img_preadv(struct img *img, const struct iovec *iov, int nr_iov, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err);
IMG_API int img_pwritev(struct img *img, const struct iovec *iov, int nr_iov, uint64_t bytes, uint64_t off,
			unsigned flags, struct img_error *err);
/* The range reads as zeros afterwards. */
IMG_API int img_zero(struct img *img, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
/*
 * The content of the range is no longer needed. In limg the range reads as zeros afterwards; formats and hosts that cannot
 * discard leave it as it is. Partial blocks at the ends may be kept.
 */
IMG_API int img_discard(struct img *img, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
/* Every write that returned before this call is durable when it returns 0. On failure: poisoned. */
IMG_API int img_flush(struct img *img, unsigned flags, struct img_error *err);

enum img_resize_flags {
	IMG_RESIZE_SHRINK = 1u << 0, /* without it a smaller size is REFUSED */
};
/* New bytes read as zeros, whatever a backing image holds there. Snapshots keep their own size. */
IMG_API int img_resize(struct img *img, uint64_t size_bytes, unsigned flags, struct img_error *err);

/* ---- extents ----------------------------------------------------------------------------------------------------- */

enum img_extent_flags {
	IMG_EXT_DATA = 1u << 0,	      /* holds data in the layer `depth` */
	IMG_EXT_ZERO = 1u << 1,	      /* reads as zeros */
	IMG_EXT_COMPRESSED = 1u << 2, /* with DATA */
	IMG_EXT_OFFSET = 1u << 3,     /* host_off is valid: plain data at that offset of the layer's file */
	IMG_EXT_ALLOCATED = 1u << 4,  /* some layer says something about it (else it is zero for want of any) */
};
struct img_extent {
	uint64_t off, bytes;
	uint64_t host_off;
	uint32_t flags;	/* enum img_extent_flags; exactly one of DATA and ZERO is set */
	uint32_t depth; /* 0: this image, 1: its backing ... */
};
enum img_extents_flags {
	IMG_EXTENTS_OWN = 1u << 0, /* this layer only: what it does not hold has neither DATA, ZERO nor ALLOCATED */
};
/*
 * Describes [off, off + bytes): ascending, contiguous, clipped to the range, neighbours of one kind merged. Fills at most cap
 * entries and sets *nr (>= 1 on success when bytes > 0); the caller goes on where the last entry ends.
 */
IMG_API int img_extents(struct img *img, uint64_t bytes, uint64_t off, unsigned flags, struct img_extent *out, size_t cap,
			size_t *nr, struct img_error *err);

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

#define IMG_SNAPSHOT_NAME_MAX 255 /* bytes; names are not empty, hold no control characters and no '@' or '/' */

struct img_snapshot {
	char name[IMG_SNAPSHOT_NAME_MAX + 1];
	uint8_t uuid[16];	/* zero where the format has none */
	uint64_t id;		/* unique in the image, ascending with creation */
	uint64_t parent;	/* id of the snapshot it was made on, 0 if none (deleted ancestors are skipped) */
	int64_t created_ns;	/* since 1970, UTC */
	uint64_t size_bytes;	/* virtual size */
	uint64_t data_bytes;	/* bytes mapped as data in its tree (shared with others or not); qcow2: 0, not known */
	uint64_t vmstate_bytes; /* 0: disk only */
	uint64_t vmstate_data_bytes; /* of it, bytes mapped as data, shared with other snapshots or not; qcow2: 0, not known */
	uint8_t hash[16];	/* logical root: equal for equal content of this layer */
	bool is_head; /* the head and the working vmstate are what they are in it: a revert would change nothing. False: not known */
};

enum img_snapshot_flags {
	IMG_SNAPSHOT_VMSTATE = 1u << 0, /* create: the working vmstate belongs to it, in the same commit */
};
/* Everything written before is in it and durable when this returns. Errors: EXISTS, INVALID, LIMIT, IO (poisoned). */
IMG_API int img_snapshot_create(struct img *img, const char *name, unsigned flags, struct img_error *err);
/* Errors: NOENT, BUSY (open here or in another process). Its space is freed before this returns. */
IMG_API int img_snapshot_delete(struct img *img, const char *name, struct img_error *err);
/* The head, and the working vmstate, are again as in the snapshot; its virtual size too. Unsaved changes are gone. */
IMG_API int img_snapshot_revert(struct img *img, const char *name, struct img_error *err);
IMG_API int img_snapshot_rename(struct img *img, const char *name, const char *new_name, struct img_error *err);
/* Ascending id. Fills at most cap entries; *nr is the number that exist. */
IMG_API int img_snapshot_list(struct img *img, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err);
/* A read-only image of the snapshot, independent of img's lifetime rules: close it before img. */
IMG_API int img_snapshot_open(struct img *img, const char *name, struct img **out, struct img_error *err);

enum img_diff_kind {
	IMG_DIFF_DATA = 1, /* b holds data here that may differ from a */
	IMG_DIFF_ZERO,	   /* b reads as zeros here, a did not */
	IMG_DIFF_UNMAPPED, /* b no longer holds the range (an overlay reads its backing there) */
};
/* Return nonzero to stop; img_snapshot_diff() then returns IMG_E_CANCELLED. */
typedef int (*img_diff_fn)(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind);
/*
 * What changed from snapshot a to snapshot b (NULL: the head), ascending. a NULL: from nothing. Cost is in proportion to the
 * difference when both share history. Beside a writer (IMG_CAP_SNAPSHOTS_BESIDE) img is snapshot b, opened while another
 * handle holds a, which stays open until this returns.
 */
IMG_API int img_snapshot_diff(struct img *img, const char *a, const char *b, img_diff_fn fn, void *ctx,
			      struct img_error *err);

/* ---- machine state ----------------------------------------------------------------------------------------------- */

/*
 * The image has one working vmstate volume beside the disk; img_snapshot_create(..., IMG_SNAPSHOT_VMSTATE)
 * stores it with the disk in one atomic commit, and later writes store only what changes. Writing and zeroing grow the
 * volume; resize cuts it. It becomes durable with that snapshot, not by img_flush(); in qcow2 it ends with the handle. After a
 * revert it is as in the snapshot: empty where that holds none. Reading names a snapshot, or NULL for the working volume
 * (empty where img is a snapshot); ranges beyond its size are INVALID. Formats without machine state: UNSUPPORTED.
 */
IMG_API int img_vmstate_write(struct img *img, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* The range reads as zeros and holds no space, as far as whole blocks go. Costs in proportion to what was there. */
IMG_API int img_vmstate_zero(struct img *img, uint64_t bytes, uint64_t off, struct img_error *err);
IMG_API int img_vmstate_read(struct img *img, const char *snapshot, void *buf, uint64_t bytes, uint64_t off,
			     struct img_error *err);
IMG_API int img_vmstate_resize(struct img *img, uint64_t bytes, struct img_error *err);
IMG_API int img_vmstate_size(struct img *img, const char *snapshot, uint64_t *bytes, struct img_error *err);

enum img_vmstate_flags {
	IMG_VMSTATE_MAP = 1u << 0, /* load: map the image file where that is cheaper than reading */
};
/*
 * Makes the memory at addr hold the range. addr, bytes and off are multiples of the host's page size (INVALID else); the memory
 * is the caller's own, private and nobody else's business: its pages are replaced (mmap), whatever they were, and
 * with them what madvise() or mprotect() said of them; they are readable and writable then. What the range holds no data for
 * becomes untouched zero pages. Without flags all data is read and verified.
 *
 * IMG_VMSTATE_MAP: runs of pages that lie plainly in the file become private copy-on-write pages of it, which are not read,
 * and not verified: call img_vmstate_verify() before what was computed from them is trusted with anything that outlives
 * the process. Short runs, what exceeds some thousands of runs, and all of an image that is open for writing and whose blocks
 * are larger than a page, are read and verified as without the flag.
 * As long as such pages are in use
 *  - the snapshot must not be deleted; what the working volume still shares with it may be relied on instead: a deletion
 *    leaves that where it is;
 *  - of the working volume what was mapped must not be written, zeroed or cut off, and no other snapshot be reverted to, unless
 *    the caller has written to those pages (and so has copies), or gives them up;
 *  - the file must not be cut by others: touching a page beyond its end raises SIGBUS. Locks keep other users of
 *    this library away.
 * The pages outlive img_close(). After failure the content of the range is undefined, and some of it may be unmapped.
 */
IMG_API int img_vmstate_load(struct img *img, const char *snapshot, void *addr, uint64_t bytes, uint64_t off, unsigned flags,
			     struct img_error *err);
/* Reads the data of the range and checks it as reading does: CORRUPT with the file's offset. What holds no data costs nothing. */
IMG_API int img_vmstate_verify(struct img *img, const char *snapshot, uint64_t bytes, uint64_t off, struct img_error *err);

/* ---- dirty bitmaps ----------------------------------------------------------------------------------------------- */

#define IMG_BITMAP_NAME_MAX 1023 /* bytes; not empty, save where the name of one that is INCONSISTENT is damaged itself */

enum img_bitmap_flags {
	IMG_BITMAP_ENABLED = 1u << 0,	   /* records what is written */
	IMG_BITMAP_INCONSISTENT = 1u << 1, /* missed changes, or is being changed by another process: can only be removed */
	IMG_BITMAP_UNSUPPORTED = 1u << 2,  /* of a kind that is not known: can only be removed */
};
struct img_bitmap {
	char name[IMG_BITMAP_NAME_MAX + 1];
	uint64_t granularity_bytes; /* what one bit stands for */
	uint64_t dirty_bytes;	    /* 0 where inconsistent or unsupported */
	unsigned flags;		    /* enum img_bitmap_flags */
};
struct img_range {
	uint64_t off, bytes;
};

/*
 * Bitmaps that are kept in the image and record which ranges of its disk were changed since they were made or cleared, across openings and
 * by every program that knows them; they follow the head. What a disk grows by counts as changed: a backup may have data there, of a time
 * when the disk was longer. While an image that has enabled ones is open for writing they are marked as in use; a crash leaves them so, and
 * they are INCONSISTENT from then on. Formats without bitmaps have an empty list and refuse the rest.
 */
/* In the order of the directory. Fills at most cap entries; *nr is the number that exist. */
IMG_API int img_bitmap_list(struct img *img, struct img_bitmap *out, size_t cap, size_t *nr, struct img_error *err);
enum img_bitmap_add_flags { IMG_BITMAP_ADD_DISABLED = 1u << 0 };
/* Empty, and enabled unless told otherwise. granularity_bytes: a power of two, 512 to 2 GiB; 0: the format's default. */
IMG_API int img_bitmap_add(struct img *img, const char *name, uint64_t granularity_bytes, unsigned flags,
			   struct img_error *err);
IMG_API int img_bitmap_remove(struct img *img, const char *name, struct img_error *err);
IMG_API int img_bitmap_enable(struct img *img, const char *name, struct img_error *err);
IMG_API int img_bitmap_disable(struct img *img, const char *name, struct img_error *err);
IMG_API int img_bitmap_clear(struct img *img, const char *name, struct img_error *err);
/* What is dirty in src_name of src (NULL: of img) becomes dirty in name too, as far as img reaches. Granularities may differ. */
IMG_API int img_bitmap_merge(struct img *img, const char *name, struct img *src, const char *src_name,
			     struct img_error *err);
/* The dirty ranges from off on, ascending and merged, at most cap; *nr 0: there are no more. The next call goes on where the last one ends. */
IMG_API int img_bitmap_ranges(struct img *img, const char *name, uint64_t off, struct img_range *out, size_t cap,
			      size_t *nr, struct img_error *err);

/* ---- whole-image operations -------------------------------------------------------------------------------------- */

/* Called from one thread at a time, at most some 20 times a second; nonzero cancels. total may grow. */
typedef int (*img_progress_fn)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

struct img_progress {
	img_progress_fn fn;
	void *ctx;
};

/*
 * What a source has beside the bytes of its disk, and a copy of it lacks. Of two classes: content, which somebody made or a guest
 * sees, and what belongs to the file that holds it.
 */
enum img_left_kind {
	IMG_LEFT_SNAPSHOTS = 1, /* content; nr: how many */
	IMG_LEFT_BITMAPS,	/* content; nr: how many */
	IMG_LEFT_MACHINE_STATE, /* content; nr: its bytes */
	IMG_LEFT_VIRTUAL_SIZE,	/* content: the copy has another size, or the source tells two; nr: bytes that differ */
	IMG_LEFT_SECTOR_SIZE,	/* content; nr: bytes of the source's logical sectors */
	IMG_LEFT_COMMENT,	/* content */
	IMG_LEFT_EXTENDED,	/* content: what only the source's format has, and no other kind tells */
	IMG_LEFT_BACKING,	/* parents, whose content is the copy's own; nr: how many */
	IMG_LEFT_UUID,		/* by which hosts know the disk */
	IMG_LEFT_GEOMETRY,	/* cylinders, heads, sectors */
	IMG_LEFT_ADAPTER,	/* to which the disk is to be connected */
	IMG_LEFT_COMPRESSION,
};
struct img_left {
	enum img_left_kind kind;
	const char *name; /* of the kind: "sector_size"; static, does not change */
	bool is_content;
	bool can_be_kept; /* by other options of the same conversion */
	uint64_t nr;	  /* as the kind says, else 0 */
	char msg[216];	  /* one line; text from the image stands in it as it is: escape it for terminals */
};
typedef void (*img_left_fn)(void *ctx, const struct img_left *left);

struct img_copy_options {
	size_t struct_size;
	unsigned threads; /* workers; 0: one per processor, at most 8 */
	unsigned flags;	  /* enum img_copy_flags */
	struct img_progress progress;
	/* Told, in the caller's thread, before content is copied. NULL: nobody. It must not call the library on the images. */
	img_left_fn left_behind;
	void *left_behind_ctx;
};
enum img_copy_flags {
	IMG_COPY_COMPRESS = 1u << 0,	 /* write with IMG_IO_COMPRESS */
	IMG_COPY_TARGET_ZERO = 1u << 1,	 /* the target reads as zeros already: write no zeros */
	IMG_COPY_NO_DETECT = 1u << 2,	 /* do not look for zeros in data */
	IMG_COPY_SNAPSHOTS = 1u << 3,	 /* convert: internal snapshots too */
	IMG_COPY_BITMAPS = 1u << 4,	 /* convert: dirty bitmaps too, but those that are inconsistent */
	IMG_COPY_KEEP_REST = 1u << 5,	 /* copy: what dst has beyond src's end stays as it is */
	IMG_COPY_STRICT = 1u << 6,	 /* REFUSED before content is copied where some would be left behind (img_left.is_content) */
	IMG_COPY_STRICT_ALL = 1u << 7,	 /* the same, where anything would be */
};

/*
 * Copies the content of src to dst, which must be at least as large; the rest of dst is zeroed (or kept). dst is flushed. After a failure
 * dst holds a part of it.
 */
IMG_API int img_copy(struct img *src, struct img *dst, const struct img_copy_options *opts, struct img_error *err);

/*
 * Creates path from src as create says (size: src's, rounded up to 512, unless given) and copies the content: temporary name,
 * sync, rename; data files and devices as in img_create(). On failure or cancellation nothing is left. With create->backing
 * only what differs from it is stored.
 */
IMG_API int img_convert(struct img *src, const char *path, const struct img_create_options *create,
			const struct img_copy_options *opts, struct img_error *err);

/*
 * As img_convert() into an open descriptor that takes bytes from front to back: a pipe, a socket, a file at its present position. It is
 * never asked for its place or size, and never moved. For formats and options that can be written so, else IMG_E_UNSUPPORTED; create names no
 * backing, and its flags mean nothing. name is what messages call it. fd is the library's from here on, also on failure; a caller who goes on
 * using it passes a duplicate. Nothing is made durable. After a failure a part was written. A reader that went away is IMG_E_IO with EPIPE
 * (where the process ignores SIGPIPE).
 */
IMG_API int img_convert_fd(struct img *src, int fd, const char *name, const struct img_create_options *create,
			   const struct img_copy_options *opts, struct img_error *err);

struct img_compare_result {
	bool same;
	uint64_t first_diff; /* offset of the first differing byte, when not the same */
	bool size_differs;   /* the longer one may still be same: its surplus reads as zeros */
};
/* Return nonzero to stop looking for more. Ranges are whole 512-byte sectors, ascending and merged. */
typedef int (*img_compare_fn)(void *ctx, uint64_t off, uint64_t bytes);
/* fn may be NULL: stop at the first difference. */
IMG_API int img_compare(struct img *a, struct img *b, img_compare_fn fn, void *ctx, const struct img_progress *progress,
			struct img_compare_result *out, struct img_error *err);

enum img_digest {
	IMG_DIGEST_SHA256 = 1, /* 32 bytes: equals sha256sum of the raw content */
	IMG_DIGEST_XXH128 = 2, /* 16 bytes: tree of 1 MiB pieces, parallel, holes are cheap; see img_checksum() */
};
/*
 * Digest of what the guest sees. XXH128: XXH3-128 (canonical form) over the sequence of XXH3-128 (canonical form) of each
 * 1 MiB piece of the content (the last one short), followed by the size as 8 little-endian bytes. out: 32 bytes of room.
 */
IMG_API int img_checksum(struct img *img, enum img_digest algo, const struct img_progress *progress, uint8_t *out,
			 size_t *out_bytes, struct img_error *err);

struct img_measure {
	uint64_t required_bytes;	/* file size after a conversion (uncompressed), or somewhat more: never less */
	uint64_t fully_allocated_bytes; /* file size when every block is allocated */
};
/* src may be NULL: an image of size_bytes without data. format NULL: "limg". options as in img_create_options. */
IMG_API int img_measure(struct img *src, uint64_t size_bytes, const char *format, const char *options,
			struct img_measure *out, struct img_error *err);

enum img_check_flags {
	IMG_CHECK_REPAIR = 1u << 0,   /* needs a writable image */
	IMG_CHECK_METADATA = 1u << 1, /* structures only, data checksums are not read */
};
enum img_finding_kind {
	IMG_FINDING_DAMAGE = 1, /* content or metadata is lost or wrong */
	IMG_FINDING_LEAK,	/* space is lost, content is whole */
	IMG_FINDING_REDUNDANCY, /* a spare copy is damaged, content is whole */
	IMG_FINDING_NOTE,
};
struct img_finding {
	enum img_finding_kind kind;
	uint64_t file_off;  /* in the image file; UINT64_MAX unknown */
	uint64_t guest_off; /* where the guest would meet it; UINT64_MAX unknown */
	bool repaired;
	char where[IMG_SNAPSHOT_NAME_MAX + 1]; /* snapshot name, "" for the head or the image */
	char rule[16];	/* invariant of the format's specification, e.g. "LIMG-12"; "" if none */
	char msg[472];
};
/* Called from one thread at a time. */
typedef void (*img_finding_fn)(void *ctx, const struct img_finding *finding);
struct img_check_result {
	uint64_t damage, leaks, redundancy, repaired; /* counts; one finding may stand for several (of a run of clusters) */
	uint64_t data_bytes;			      /* verified data */
	uint64_t metadata_bytes;
	uint64_t leaked_bytes;
};
/*
 * Verifies every structure and checksum of this file (not of its backing). Returns 0 when the check ran to its end, whatever
 * it found. fn may be NULL.
 */
IMG_API int img_check(struct img *img, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		      struct img_check_result *out, struct img_error *err);
/*
 * As img_check() on the file at path, which may be too damaged to be opened, or to be written before it is repaired (qcow2's
 * corrupt bit). opts as in img_open(), with IMG_OPEN_WRITE for a repair; a snapshot: only what its disk stands on is checked.
 */
IMG_API int img_check_file(const char *path, const struct img_open_options *opts, unsigned flags, img_finding_fn fn,
			   void *ctx, const struct img_progress *progress, struct img_check_result *out,
			   struct img_error *err);

/* ---- inspection -------------------------------------------------------------------------------------------------- */

enum img_severity {
	IMG_SEVERITY_NOTE = 1,	  /* worth knowing, no harm by itself */
	IMG_SEVERITY_UNSAFE,	  /* may lead a reader astray, to other files, or into more work than the file is worth */
	IMG_SEVERITY_UNPARSEABLE, /* not what it claims to be, or cut off: it cannot be judged */
};
/* What is looked for. Rules are named, so that policies can speak of them; names do not change. */
struct img_inspect_rule {
	const char *id;	/* "backing-file" */
	enum img_severity severity;
	const char *what; /* one line */
};
/* i from 0; NULL past the end. */
IMG_API const struct img_inspect_rule *img_inspect_rule(size_t i);

struct img_inspect_finding {
	const char *id; /* of the rule; static */
	enum img_severity severity;
	uint64_t file_off; /* UINT64_MAX: none */
	char msg[488];	   /* text from the image stands in it as it is: escape it for terminals */
};
typedef void (*img_inspect_fn)(void *ctx, const struct img_inspect_finding *finding);

struct img_inspect_options {
	size_t struct_size;
	const char *format; /* the file is to be used as that; NULL: as what it looks like */
	unsigned flags;	    /* IMG_OPEN_FORCE_SHARE: although another process may write it */
	const char *const *formats;	 /* NULL-terminated: those that are allowed; NULL: all */
	uint64_t max_virtual_bytes;	 /* 0: 2^63 - 1 */
	const struct img_budget *budget; /* what exceeds it is a finding; check_seconds is for the whole inspection, 0: 60 */
	struct img_host *host;		 /* opens the file; NULL: this process does */
};
struct img_inspect_result {
	char format[16];	/* as which it was judged; of a format without a driver only headers and references are */
	uint64_t virtual_bytes; /* 0 where unknown */
	uint64_t file_bytes;
	uint64_t notes, unsafe, unparseable; /* findings told, by severity */
};
/*
 * The verdict on a file from a stranger, without opening anything else: what it looks like from both ends, what it names wherever
 * that hides, features, tables, overlaps, aliasing, expansion, snapshots, state, encryption, names, and what its disk holds at
 * first sight. Costs bounded time and memory whatever the file holds. Returns 0 when it ran to its end, whatever it found:
 * safe is what has no finding that is unsafe or unparseable. out and fn may be NULL. Errors: NOENT, IO, BUSY, NOMEM,
 * UNSUPPORTED (no such format), REFUSED (no file or device).
 */
IMG_API int img_inspect(const char *path, const struct img_inspect_options *opts, img_inspect_fn fn, void *ctx,
			struct img_inspect_result *out, struct img_error *err);

/* ---- information ------------------------------------------------------------------------------------------------- */

struct img_info {
	const char *format; /* static */
	uint64_t virtual_bytes;
	uint64_t file_bytes;	  /* length of the host file */
	uint64_t allocated_bytes; /* what it takes on the host */
	uint32_t block_bytes;	  /* 0 where the format has none */
	uint32_t unit_bytes;
	char compression[16];	  /* default for new writes: "zstd", "zlib", "none" */
	bool encrypted, dirty, corrupt;
	bool has_uuid;
	uint8_t uuid[16];
	uint8_t hash[16];	/* logical root of the head; zero where the format has none */
	uint64_t nr_snapshots;
	uint64_t vmstate_bytes;	/* of the working vmstate */
	bool has_backing;
	char backing[1024];	/* name as recorded */
	char backing_format[16];
	char backing_snapshot[IMG_SNAPSHOT_NAME_MAX + 1];
	char backing_pin[16];	/* "strong", "weak", "id" (no more than a uuid), "none" */
	bool backing_committing; /* a commit into the backing file was interrupted */
	/*
	 * Only where the backing is open and all that its child knows of it is an id and the time of its file (VHD): that time is another one.
	 * It was written since, and img shows something else than before; or it was copied, and nothing is wrong.
	 */
	bool backing_modified;
	uint64_t generation;
	uint64_t used_bytes;	/* of the file, by the format's own books; 0 where unknown */
	uint64_t pending_free_bytes_hint; /* nonzero: deleted content still waits for reclaim */
	/* The one that img is, "" for the head: by the name that it has now, where a child that knows it by its uuid has another on record. */
	char snapshot[IMG_SNAPSHOT_NAME_MAX + 1];
};
IMG_API int img_info(struct img *img, struct img_info *out, struct img_error *err);

/* What only this format has to say about itself; valid during the call. */
enum img_detail_kind { IMG_DETAIL_TEXT, IMG_DETAIL_NUMBER, IMG_DETAIL_BOOL };
struct img_detail {
	const char *key; /* snake_case, as the creation option where there is one */
	enum img_detail_kind kind;
	const char *text;
	uint64_t number; /* NUMBER; BOOL: 0 or 1 */
};
typedef void (*img_detail_fn)(void *ctx, const struct img_detail *detail);
/* Formats without have none. fn must not call the library on img. */
IMG_API int img_info_details(struct img *img, img_detail_fn fn, void *ctx, struct img_error *err);

/*
 * Changes what an image was created with, where the format can do that in place: options as in img_create_options, and those that the
 * format adds (qcow2: size, backing_file, backing_fmt; these record another parent without looking at it: the handle goes on with the
 * one it has). All options are judged before anything is changed. Errors: INVALID (does not exist, does not go together), UNSUPPORTED
 * (cannot be changed), those of img_resize().
 */
IMG_API int img_amend(struct img *img, const char *options, struct img_error *err);

/*
 * Writes what img holds over its backing into the backing's head, empties img and pins it to the new state. May be run again
 * after a crash. Errors: REFUSED (no backing; img has snapshots; the backing's head moved on from the snapshot that img stands on),
 * BUSY, and those of img_open() for the backing. The caller opened img for writing; the backing is reopened for writing here.
 * After a failure or cancellation half way img reads as before, also opened anew; opening it for writing is REFUSED until another
 * img_commit(), for which IMG_OPEN_NO_BACKING opens it. Where the host also failed to open the backing again, what lies there is REFUSED to readers of img.
 */
IMG_API int img_commit(struct img *img, const struct img_copy_options *opts, struct img_error *err);

enum img_rebase_flags {
	/*
	 * Only record the new parent; the content may change. Not REFUSED after a commit that did not end, whose parent may be lost, in formats
	 * that end it in one step (limg, qcow2, VHDX).
	 */
	IMG_REBASE_UNSAFE = 1u << 0,
};
struct img_rebase_options {
	size_t struct_size;
	const char *backing; /* NULL: none, which needs flatten's copy unless UNSAFE */
	const char *backing_snapshot;
	const char *backing_format;
	unsigned flags;
	enum img_refs refs;
	struct img_progress progress;
};
/* Same content on another parent. May be run again after a crash. REFUSED where img has snapshots. */
IMG_API int img_rebase(struct img *img, const struct img_rebase_options *opts, struct img_error *err);
/* Same content without a parent. May be run again after a crash. REFUSED where img has snapshots. */
IMG_API int img_flatten(struct img *img, const struct img_progress *progress, struct img_error *err);

/* ---- who holds a file -------------------------------------------------------------------------------------------- */

struct img_holder {
	int64_t pid;	  /* 0 where it cannot be found */
	bool writes;	  /* holds the write permission */
	char command[32]; /* /proc/PID/comm */
};
/* Lists the processes that hold image locks on the file. *nr is the number that exist. */
IMG_API int img_holders(const char *path, struct img_holder *out, size_t cap, size_t *nr, struct img_error *err);

/* ---- processes that open no files -------------------------------------------------------------------------------- */

/*
 * Whoever looks at images from strangers may want to do so in a process that can open no file, whatever goes wrong in it
 * (seccomp, Landlock). It keeps a socket to another process, the broker, which opens files for it by rules that were made before the
 * first image was looked at, and trusts nothing that it says:
 *
 *	socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
 *	broker:	   img_host_serve(ends[1], &rules, &err)
 *	confined:  img_host_connect(ends[0], &host, &err), and host in the options of img_open(), img_create(), img_convert(),
 *		   img_check_file() and img_inspect(). What is opened later on behalf of an image (by commit, rebase) goes the same way.
 *
 * Both ends are of one build of the library. What the confined process is left with is descriptors: of the files that it was granted,
 * and of those that images name, under the policy for references. A file that is made lives under a temporary name, which the broker removes
 * when the other end is gone, as it does with data files whose image did not get its name.
 */
enum img_grant_rights {
	IMG_GRANT_READ = 1u << 0,
	IMG_GRANT_WRITE = 1u << 1,     /* READ as well; and data files that it names */
	IMG_GRANT_CREATE = 1u << 2,    /* a new file may get the name; and new data files by the policy for references */
	IMG_GRANT_OVERWRITE = 1u << 3, /* with CREATE: an existing one may be replaced */
};
struct img_grant {
	const char *path; /* exactly as the confined process will call it */
	unsigned rights;  /* enum img_grant_rights */
};
enum img_host_flags {
	IMG_HOST_WRITE_PARENTS = 1u << 0, /* a parent may be opened for writing, as img_commit() does */
};
struct img_host_rules {
	size_t struct_size;
	const struct img_grant *grants;
	size_t nr_grants;
	enum img_refs refs;	/* the most that is allowed, whatever the options of an open say */
	unsigned flags;		/* enum img_host_flags */
	uint64_t max_requests;	/* what comes after them is refused; 0: 4096 */
	int64_t peer_pid;	/* who is at the other end: it is not told that it locks itself out; 0: unknown */
	size_t max_data_files;	/* of each image that is written or made; 0: 1024 */
};

/*
 * Answers requests until the other end is closed, which is success. socket stays the caller's. rules are read during the call. Errors:
 * INVALID (rules, no socket), NOMEM, IO. Requests against the rules are refused and no error here.
 */
IMG_API int img_host_serve(int socket, const struct img_host_rules *rules, struct img_error *err);

/*
 * *out is owned by the caller and ends with img_host_disconnect(), after every image that was opened by it. It may be used by several
 * threads at once. socket is taken over, also on failure. Errors of what goes through it are those of img_open() and so on; IO: the other
 * end is gone.
 */
IMG_API int img_host_connect(int socket, struct img_host **out, struct img_error *err);
/* NULL is allowed. */
IMG_API void img_host_disconnect(struct img_host *host);

#ifdef __cplusplus
}
#endif
#endif
