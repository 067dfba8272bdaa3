/* SPDX-License-Identifier: MIT */
/*
 * The driver seam. A driver is a static const struct img_driver; the core calls its members only from core/node.c, which checks
 * every request on the way in and every answer on the way out. Drivers call their children only through node_*() (node.h).
 *
 * Rules for drivers:
 *  - Requests arrive with bytes > 0, inside [0, node_size()), on a node opened for what they do. A driver with
 *    limits.request_align > 1 sees only aligned requests.
 *  - All-or-nothing, as in libimg.h. A failure fills err by error_set()/error_errno().
 *  - All members but open, create and close may be called from several threads at once.
 *  - A NULL member means: the core emulates it where it can (zero: writes zeros; discard: does nothing; status: all data;
 *    flush: nothing to do), else refuses with IMG_E_UNSUPPORTED.
 */
#ifndef CORE_DRIVER_H
#define CORE_DRIVER_H

#include "libimg.h"

struct budget;
struct inspector;
struct node;
struct img_measure_args;

enum driver_kind {
	DRIVER_PROTOCOL, /* where bytes live: file, mem */
	DRIVER_FILTER,	 /* passes requests to node->file: fault, crash */
	DRIVER_FORMAT,	 /* an image in node->file, perhaps on node->backing */
};

struct driver_limits {
	uint32_t request_align; /* 0 and 1: any */
	uint32_t block_bytes;
	uint32_t optimal_bytes;
	uint32_t unit_bytes;
	uint64_t max_size_bytes;
};

/* What a file is on the host; for cycle detection, weak pins and info. */
struct host_stat {
	uint64_t dev, ino;
	int64_t mtime_ns; /* 0: nobody knows; a block device, whose name in /dev is made anew whenever the machine starts */
	uint64_t file_bytes, allocated_bytes;
	bool is_block_device;
};

/* Permissions of QEMU's lock protocol: byte 100 + bit "I use it", byte 200 + bit "I forbid it to others". */
enum host_perm { PERM_READ = 1u << 0, PERM_WRITE = 1u << 1, PERM_WRITE_UNCHANGED = 1u << 2, PERM_RESIZE = 1u << 3 };
#define SHARE_READER_USE PERM_READ
#define SHARE_READER_FORBID (PERM_WRITE | PERM_RESIZE)
#define SHARE_WRITER_USE (PERM_READ | PERM_WRITE | PERM_RESIZE)
#define SHARE_WRITER_FORBID (PERM_WRITE | PERM_RESIZE)
#define SHARE_DATA_READER_USE PERM_READ
#define SHARE_DATA_WRITER_USE (PERM_READ | PERM_WRITE | PERM_RESIZE)
#define SHARE_DATA_FORBID PERM_RESIZE
#define SHARE_PEEK_USE PERM_READ /* after probing that nobody forbids reading; forbids nothing */

struct holder; /* holders.h */

/* What a file on the host needs beside its descriptor. All of it may be missing. */
struct host_help {
	/* As holder_of_byte(), where this process cannot look. fd: ours of the file that was opened as path. */
	bool (*holder)(void *ctx, const char *path, int fd, uint64_t byte, struct holder *out);
	/* A second description of the file that was opened as path, or -1. */
	int (*open_again)(void *ctx, const char *path, bool writable);
	void *ctx;
};

struct host_open {
	bool writable;
	bool direct;
	unsigned use, forbid; /* enum host_perm bits */
	bool no_lock;	      /* force-share on a host that refuses even the peek lock */
	const struct host_help *help; /* outlives the file; NULL: this process helps itself */
};

/*
 * Identity of an image's content, as an overlay records it of its parent. Formats in which a child records an id that its parent carries
 * (VHD, VDI, VHDX) know no more than that: PIN_ID, of which uuid and change count, and nothing else. It is never what another format records.
 */
enum pin_kind { PIN_NONE = 0, PIN_STRONG = 1, PIN_WEAK = 2, PIN_ID = 3 };
struct pin {
	enum pin_kind kind;
	uint8_t uuid[16];	/* STRONG, ID: image */
	/* STRONG: snapshot, zero for the head; ID: another uuid that the parent may have instead, as a child recorded it; zero: none */
	uint8_t snapshot_uuid[16];
	uint32_t sector_bytes;	/* ID: of a logical sector, in a format whose children must have the same (VHDX); 0: no such thing */
	uint8_t hash[16];	/* STRONG: logical root; WEAK: fingerprint of the content */
	uint64_t size_bytes;	/* virtual size */
	/*
	 * WEAK: compared, unless what is found has none. ID: of the parent's file when it was recorded, in whole seconds, 0 where that is not known: told
	 * (img_info.backing_modified) and no reason to refuse, as a copy has another time.
	 */
	int64_t mtime_ns;
	uint8_t change[16];	/* ID: of its last change; recorded as zero: not compared */
};

/* A reference to a parent, as data. */
#define BACKING_OTHERS 3u
struct backing_ref {
	char name[1024]; /* as recorded; relative names start at the child's folder */
	/*
	 * For formats that record several paths of one parent (VHD, VHDX): where to look, in this order, when nothing is at name
	 * or the policy forbids it; "" from the first that is not used. What is found first is judged by pin, like any parent.
	 * get_backing fills them in; set_backing never gets any: it records name.
	 */
	char other[BACKING_OTHERS][1024];
	char format[16]; /* never empty */
	char snapshot[IMG_SNAPSHOT_NAME_MAX + 1]; /* "" for the head; informative where pin.snapshot_uuid is set */
	struct pin pin;
	struct pin id; /* for who sets it: the parent's PIN_ID, PIN_NONE where its format has none */
	bool committing; /* a commit of this overlay into its parent began and has not ended */
};

enum backing_change {
	BACKING_SET,	    /* record ref (NULL: none) */
	BACKING_SET_EMPTY,  /* record ref and drop this layer's disk content, in one atomic step unless empties_in_steps */
};

/* Head and tail of a file for probing; what they do not show may be read from file, by whoever knows where to look. */
struct probe_data {
	struct node *file;
	const uint8_t *head;
	size_t head_bytes; /* at most 64 KiB */
	const uint8_t *tail;
	size_t tail_bytes; /* the last at most 4 KiB */
	uint64_t file_bytes;
};

struct driver_open {
	bool writable;
	bool force_share;
	bool bulk;
	bool for_check; /* only check will be called before close: what it can report is no reason to refuse */
	const char *snapshot;	 /* NULL: head */
	const uint8_t *snapshot_uuid; /* with snapshot, of a pin: decides which one it is, whatever it is called by now */
	uint64_t cache_bytes;	 /* 0: default */
	struct budget *budget;	 /* what it may cost: to be asked before memory is spent (budget.h); NULL: no limits */
	/*
	 * Opens a regular file that holds data of this image, by the name on record, under the policy for references; writable if this
	 * open is. Any number of times, each counted by the budget; no two may be one file. The driver gives it to node_add_part(), or
	 * closes it (node_close) in close. Where data_absent, a reader gets a node whose reads are refused. NULL: no file may be opened.
	 */
	int (*open_data)(void *ctx, const char *name, struct node **out, struct img_error *err);
	void *open_data_ctx;
	bool data_absent; /* IMG_OPEN_NO_BACKING: what is known without data files has to do */
};

struct driver_create {
	uint64_t size_bytes;
	const char *options;		     /* "k=v,k=v" or NULL */
	const struct backing_ref *backing;   /* NULL: none */
	const char *path; /* of the image, for names that follow from it; NULL: none is known */
	/*
	 * Creates a file for data of this image; IMG_E_EXISTS if there is one. Empty and writable; the core makes it durable, closes it, and
	 * gives it its name right before the image gets its own; an open before that finds it by this name too. It removes all of them if the
	 * image does not come about. Any number of times, with different names. NULL: no file may be made.
	 */
	int (*create_data)(void *ctx, const char *name, struct node **out, struct img_error *err);
	void *create_data_ctx;
};

/* One extent of this layer. */
enum status_kind {
	STATUS_UNALLOCATED, /* this layer says nothing: its backing, or zeros */
	STATUS_ZERO,
	STATUS_DATA,
	STATUS_COMPRESSED,
};
#define STATUS_NO_HOST UINT64_MAX
struct status_extent {
	uint64_t off, bytes;
	enum status_kind kind;
	uint64_t host_off; /* DATA: offset in the layer's file, or STATUS_NO_HOST */
};

/* Where a merge takes its ranges from: ascending; *nr 0 at the end. May lead back into the same node: called without locks. */
struct bitmap_source {
	int (*next)(void *ctx, struct img_range *out, size_t cap, size_t *nr, struct img_error *err);
	void *ctx;
};

/* Of a packed piece of the disk: where it was, and how many of the packed bytes are its. */
struct sequence_unit {
	uint64_t off;
	size_t bytes;
};

struct sequence_shape {
	uint32_t unit_bytes; /* of the disk, that are packed at once: a power of two, at most 4 MiB. Without pack: 0 */
	size_t packed_max;   /* what one of them may become */
};

struct codec_ctx;

/*
 * How a format writes an image from front to back, once (core/sequence.h). After begin the units of the disk that are not zeros are packed,
 * in any order and by several threads, and put in ascending order by one thread at a time; then comes end. What is written goes to file, each
 * byte behind the last: file may be a pipe. NULL state: begin failed.
 */
struct driver_sequence {
	/* An image with these options: IMG_E_UNSUPPORTED: cannot be written so, and why; 0: also so; 1: only so. Pure. */
	int (*ask)(const char *options, struct img_error *err);
	int (*begin)(struct node *file, const struct driver_create *args, struct sequence_shape *shape, void **state,
		     struct img_error *err);
	/* unit is whole, with zeros behind the end of the disk. NULL: all of the disk is put as it is, zeros too. */
	int (*pack)(const void *state, struct codec_ctx *codec, const uint8_t *unit, uint64_t off, uint8_t *out,
		    size_t *bytes, struct img_error *err);
	/* data: the units, one behind the other. They lie within one aligned MiB of the disk, or are one unit. */
	int (*put)(void *state, const uint8_t *data, const struct sequence_unit *units, size_t nr, struct img_error *err);
	int (*end)(void *state, struct img_error *err);
	void (*free)(void *state);
};

#define DRIVER_ANCHORS 4u
struct driver_anchor {
	uint64_t off;
	uint32_t bytes;
};

enum byte_lock { BYTE_UNLOCK, BYTE_SHARED, BYTE_EXCLUSIVE };

struct img_driver {
	const char *name;
	enum driver_kind kind;
	size_t state_bytes; /* zeroed memory that the core allocates as node->state and frees */
	unsigned caps;	    /* enum img_caps that the format has when writable */
	unsigned native_io; /* enum img_io_flags that pwrite and zero obey themselves; FUA, DETECT_ZEROES are else emulated */
	bool never_guess_for_writing;
	bool snapshots_have_parents;  /* img_snapshot.parent says which one each was made on */
	bool empties_in_steps; /* BACKING_SET_EMPTY may leave a part of the content, under the old record, if it is interrupted */
	bool checks_data; /* data files hold tables: check opens them, although it opens no backing */
	const char *create_help; /* "key=what\n" lines for -o help, NULL if none */
	/*
	 * Where it is said that a file is an image of this format, each in pages of one write. Only for formats that may stand on a block device,
	 * whose end is not theirs and whose content beyond is not zeros; ascending, none behind the first without bytes.
	 */
	struct driver_anchor anchors[DRIVER_ANCHORS];

	/* Confidence 0 (no) to 100. Pure. */
	int (*probe)(const struct probe_data *data);

	/* file is an empty, writable node; leaves a complete, closed image in it, not yet synced. */
	int (*create)(struct node *file, const struct driver_create *args, struct img_error *err);
	/* node->file is open (formats, filters). Must leave nothing behind on failure but node->state memory. */
	int (*open)(struct node *node, const struct driver_open *args, struct img_error *err);
	/*
	 * Protocols only, instead of open: takes over fd, also on failure. The permissions are those of share(); they are taken
	 * before anything is read. IMG_E_BUSY names the holder.
	 */
	int (*open_fd)(struct node *node, int fd, const struct host_open *args, struct img_error *err);
	/* Makes everything durable if writable; releases all but node->state, node->file, node->backing. */
	int (*close)(struct node *node, struct img_error *err);

	uint64_t (*size)(const struct node *node); /* never fails after open */
	void (*limits)(const struct node *node, struct driver_limits *out);

	int (*pread)(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
	int (*pwrite)(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err);
	int (*zero)(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
	int (*discard)(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
	int (*flush)(struct node *node, unsigned flags, struct img_error *err);
	/* Own layer only. Fills 1 to cap entries, ascending from off, contiguous, clipped to the range. */
	int (*status)(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		      struct img_error *err);
	int (*resize)(struct node *node, uint64_t size_bytes, struct img_error *err);

	/* Protocols (filters pass them on). */
	int (*stat)(struct node *node, struct host_stat *out, struct img_error *err);
	/* Makes durable what stat tells of the last change, which a flush need not; also where the file is only read. */
	int (*sync_time)(struct node *node, struct img_error *err);
	/* Reserves host space for the range; content is kept (holes read as zeros). May reach beyond the end: grows. */
	int (*allocate)(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err);
	/* OFD lock on one byte, far above QEMU's; IMG_E_BUSY with the holder's pid in the message. */
	int (*lock_byte)(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err);
	/* Changes the permissions that this open description holds by QEMU's lock protocol. */
	int (*share)(struct node *node, unsigned use, unsigned forbid, struct img_error *err);
	/*
	 * Replaces the pages at addr by private copy-on-write ones of [off, off + bytes), all multiples of the host's page, inside the
	 * file. NULL, or any failure: the core reads instead.
	 */
	int (*map)(struct node *node, void *addr, uint64_t bytes, uint64_t off, struct img_error *err);

	/* Formats with backing. get_backing returns false where there is none. */
	bool (*get_backing)(struct node *node, struct backing_ref *out);
	int (*set_backing)(struct node *node, const struct backing_ref *ref, enum backing_change how,
			   struct img_error *err);
	/* Strong identity of this node (head or opened snapshot). Absent: the core makes a weak one. */
	int (*pin)(struct node *node, struct pin *out, struct img_error *err);
	/* The id that children of this format record: kind PIN_ID, uuid and change. Absent: they record pins. */
	void (*id)(struct node *node, struct pin *out);

	/* Snapshots. created_ns: since 1970, as far as the format can say; NULL: now. */
	int (*snap_create)(struct node *node, const char *name, unsigned flags, const int64_t *created_ns,
			   struct img_error *err);
	int (*snap_delete)(struct node *node, const char *name, struct img_error *err);
	int (*snap_revert)(struct node *node, const char *name, struct img_error *err);
	int (*snap_rename)(struct node *node, const char *name, const char *new_name, struct img_error *err);
	int (*snap_list)(struct node *node, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err);
	/* Makes `view` (fresh node, state zeroed, same driver) a read-only view of the snapshot that shares node's engine. */
	int (*snap_open)(struct node *node, const char *name, struct node *view, struct img_error *err);
	int (*snap_diff)(struct node *node, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err);
	int (*vmstate_write)(struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
	int (*vmstate_read)(struct node *node, const char *snap, void *buf, uint64_t bytes, uint64_t off,
			    struct img_error *err);
	/* Reads as zeros afterwards and holds no space where that can be said; grows like vmstate_write. */
	int (*vmstate_zero)(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err);
	/* As status, for machine state; UNALLOCATED reads as zeros. host_off only where those bytes are the content, unencoded. */
	int (*vmstate_status)(struct node *node, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			      size_t cap, size_t *nr, struct img_error *err);
	int (*vmstate_resize)(struct node *node, uint64_t bytes, struct img_error *err);
	int (*vmstate_size)(struct node *node, const char *snap, uint64_t *bytes, struct img_error *err);

	/* Dirty bitmaps of the head; see libimg.h. Names arrive with 1 to IMG_BITMAP_NAME_MAX bytes. */
	int (*bitmap_list)(struct node *node, struct img_bitmap *out, size_t cap, size_t *nr, struct img_error *err);
	int (*bitmap_add)(struct node *node, const char *name, uint64_t granularity_bytes, unsigned flags,
			  struct img_error *err);
	int (*bitmap_remove)(struct node *node, const char *name, struct img_error *err);
	int (*bitmap_enable)(struct node *node, const char *name, bool enable, struct img_error *err);
	int (*bitmap_clear)(struct node *node, const char *name, struct img_error *err);
	int (*bitmap_merge)(struct node *node, const char *name, const struct bitmap_source *src, struct img_error *err);
	int (*bitmap_ranges)(struct node *node, const char *name, uint64_t off, struct img_range *out, size_t cap,
			     size_t *nr, struct img_error *err);

	/* Fills what the format knows; the core fills format, virtual, file, allocated and backing_* from get_backing. */
	int (*info)(struct node *node, struct img_info *out, struct img_error *err);
	/*
	 * Keys that mean the same in all formats, told only where the image has something under them, as a conversion says what of it is
	 * left behind (left_behind.c): "logical_sector_size" (bytes), "geometry" ("C/H/S"), "adapter_type", "comment", "extended_data" (a line
	 * that names what has no other place), "footer_size" (bytes: the disk's by the format's other field).
	 */
	int (*info_details)(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err);
	/* Options as in create; see img_amend(). */
	int (*amend)(struct node *node, const char *options, struct img_error *err);
	int (*measure)(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);
	const struct driver_sequence *sequence; /* NULL: cannot be written from front to back */
	int (*check)(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		     struct img_check_result *out, struct img_error *err);
	/*
	 * No node yet: tells in (inspect.h) what a file that has this format's magic holds beyond what check looks for, from header to
	 * mapping. Nonsense is a finding; only what the host fails is an error.
	 */
	int (*inspect)(struct node *file, struct inspector *in, struct img_error *err);
};

/* What a format needs to know to say how large a conversion will be. */
struct img_measure_args {
	uint64_t size_bytes;
	const char *options;
	/* Calls back with every data extent of the source, ascending; NULL: no data. */
	int (*each_data)(void *ctx, int (*fn)(void *arg, uint64_t off, uint64_t bytes), void *arg, struct img_error *err);
	void *ctx;
};

/* The static table of core/registry.c. */
const struct img_driver *registry_find(const char *name);
const struct img_driver *registry_at(size_t i); /* NULL past the end; formats only, raw last */
const struct img_driver *registry_host_file(void); /* the protocol for host files and block devices */
const struct img_driver *registry_host_pipe(void); /* the one for what is only written, from front to back */

#endif
