/* SPDX-License-Identifier: MIT */
/*
 * The VMDK driver: a descriptor (text) that names the extents of a disk, and the extents: raw bytes, or grains that
 * tables lead to. The disk is a span of segments (span.h), one per extent; the grains of those that are written are the
 * engine's (blockmap.h). Here is what is VMDK's own:
 *
 *   header.c      the header of a sparse extent, on disk and in memory
 *   descriptor.c  the descriptor, read; descriptor_text.c: written, and edited
 *   options.c     creation options
 */
#ifndef VMDK_H
#define VMDK_H

#include "budget.h"
#include "checked.h"
#include "error.h"
#include "node.h"
#include "vmdk_disk.h"

#undef LAYER
#define LAYER "vmdk"

/* ---- header.c ---------------------------------------------------------------------------------------------------- */

/* The header of a KDMV extent; everything in bytes. */
struct vmdk_header {
	uint32_t version, flags; /* enum vmdk_flags */
	uint64_t capacity_bytes, grain_bytes;
	uint64_t descriptor_off, descriptor_bytes; /* 0, 0: none inside */
	uint32_t nr_gtes;			   /* entries of one grain table */
	uint64_t rgd_off, gd_off; /* in the file; gd_off VMDK_AT_END: it is in the footer; rgd_off 0: no copy */
	uint64_t overhead_bytes;
	bool unclean;
	uint16_t compression;	       /* 0 or VMDK_DEFLATE, as flags say */
	uint64_t nr_grains, nr_tables; /* that the capacity takes; nr_tables: entries of the directory */
};

/*
 * Checks a header that was read at `at` of path, and yields it. IMG_E_CORRUPT: no possible one; IMG_E_UNSUPPORTED: one
 * that this library does not know. What lies where in the file is not looked at: vmdk_header_judge().
 */
int vmdk_header_decode(const struct disk_vmdk_header *d, uint64_t at, const char *path, struct vmdk_header *out,
		       struct img_error *err);
/* Reads and decodes the header at `at`. */
int vmdk_header_load(struct node *file, uint64_t at, struct vmdk_header *out, struct img_error *err);
/* Directory, its copy and the descriptor lie inside a file of file_bytes, and not over the header. */
int vmdk_header_judge(const struct vmdk_header *h, uint64_t file_bytes, const char *path, struct img_error *err);
void vmdk_header_encode(const struct vmdk_header *h, struct disk_vmdk_header *out);
/* nr_grains and nr_tables from capacity, grain and nr_gtes. IMG_E_LIMIT. */
int vmdk_header_count(struct vmdk_header *h, const char *path, struct img_error *err);

/* ---- descriptor.c ------------------------------------------------------------------------------------------------ */

enum vmdk_access { VMDK_RW, VMDK_RDONLY, VMDK_NOACCESS };

enum vmdk_extent_kind {
	VMDK_FLAT,
	VMDK_SPARSE,
	VMDK_ZERO,
	VMDK_VMFS,	 /* raw bytes, as FLAT */
	VMDK_VMFSSPARSE, /* COWD */
	VMDK_SESPARSE,
	VMDK_DEVICE, /* VMFSRDM, VMFSRAW */
	VMDK_EXTENT_KINDS,
};
extern const char *const vmdk_extent_words[VMDK_EXTENT_KINDS];
extern const char *const vmdk_access_words[3];

/* One line of the extent description. */
struct vmdk_extent {
	enum vmdk_access access;
	enum vmdk_extent_kind kind;
	uint64_t bytes;	   /* of the disk */
	char *name;	   /* "" where none is given */
	uint64_t file_off; /* bytes; raw extents */
	uint64_t line_off; /* in the text */
};

#define VMDK_TYPE_MAX	   31u
#define VMDK_NO_PARENT_CID UINT32_MAX

struct vmdk_descriptor {
	char *text;	   /* as read, up to the first NUL; NUL-terminated */
	size_t text_bytes; /* without the NUL */
	uint64_t off;	   /* where it begins in its file */
	uint64_t room;	   /* bytes that it may grow to; 0: as many as it wants (a file of its own) */

	uint32_t cid, parent_cid; /* parent_cid VMDK_NO_PARENT_CID: none */
	bool has_cid;
	char create_type[VMDK_TYPE_MAX + 1];
	char *parent_hint; /* NULL: none */
	char *encoding;	   /* NULL: none is said */
	struct vmdk_extent *extents;
	size_t nr_extents;
	uint64_t disk_bytes; /* of all extents */
};

#define VMDK_DESCRIPTOR_MAX_BYTES (16u << 20)

/* Takes text (copied). path: for messages. IMG_E_CORRUPT, IMG_E_UNSUPPORTED, IMG_E_NOMEM: out is empty. */
int vmdk_descriptor_parse(const char *text, size_t bytes, uint64_t off, const char *path, struct vmdk_descriptor *out,
			  struct img_error *err);
/* Reads [off, off + bytes) of file, which is clipped to the file, within the budget, and parses it. */
int vmdk_descriptor_load(struct node *file, uint64_t off, uint64_t bytes, struct budget *budget,
			 struct vmdk_descriptor *out, struct img_error *err);
/* Of an empty (zeroed) one too. */
void vmdk_descriptor_free(struct vmdk_descriptor *d);
/* Of a key anywhere, "ddb.adapterType" too: its value without quotation marks, at most cap - 1 bytes. false: none. */
bool vmdk_descriptor_value(const struct vmdk_descriptor *d, const char *key, char *out, size_t cap);
/* Does a file that begins with these bytes hold a descriptor? */
bool vmdk_descriptor_begins(const uint8_t *head, size_t bytes);

/* ---- descriptor_text.c ------------------------------------------------------------------------------------------- */

#define VMDK_UUID_BYTES 16u

/* The disk data base of a new image. */
struct vmdk_ddb {
	const char *adapter; /* "ide", "buslogic", "lsilogic", "legacyESX" */
	uint64_t cylinders;
	uint32_t heads, sectors;
	const char *hw_version;	       /* "4" */
	const char *tools_version;     /* NULL: none */
	uint8_t uuid[VMDK_UUID_BYTES]; /* all zero: none */
	uint8_t long_content_id[16];   /* all zero: none */
	bool thin;
};

/* What a new descriptor says. All of it is borrowed. */
struct vmdk_descriptor_new {
	uint32_t cid, parent_cid;
	const char *parent_hint; /* NULL: none */
	const char *create_type;
	const struct vmdk_extent *extents;
	size_t nr_extents;
	struct vmdk_ddb ddb;
};

/* Geometry for a disk of that size: 16 heads and 63 sectors for ide, 255 and 63 else (64 and 32 below 1 GiB). */
void vmdk_ddb_geometry(struct vmdk_ddb *ddb, uint64_t disk_bytes);
/* Random uuid ("60 00 C2 9x ...") and long content id, of which *cid are the last 32 bits; never 0xffffffff or ..fe. */
int vmdk_ddb_identify(struct vmdk_ddb *ddb, uint32_t *cid, struct img_error *err);
/* A random content id other than old. */
int vmdk_new_cid(uint32_t old, uint32_t *out, struct img_error *err);
/* The text, NUL-terminated, to be freed by the caller. IMG_E_INVALID: a name that cannot be written. */
int vmdk_descriptor_write(const struct vmdk_descriptor_new *d, char **text, size_t *bytes, struct img_error *err);
/*
 * The same text with `key=value` instead of the line that says what key is; value NULL: without that line. quoted: in
 * quotation marks. A line that is not there is put behind the last of the header's. Lines behind the header keep their
 * places where blank lines before them can take the difference. *out is to be freed by the caller.
 */
int vmdk_descriptor_edit(const char *text, size_t bytes, const char *key, const char *value, bool quoted, char **out,
			 size_t *out_bytes, struct img_error *err);
/* The text with another size of that extent; as above. */
int vmdk_descriptor_resize(const struct vmdk_descriptor *d, size_t extent, uint64_t bytes, char **out,
			   size_t *out_bytes, struct img_error *err);

/* ---- options.c --------------------------------------------------------------------------------------------------- */

enum vmdk_subformat {
	VMDK_MONOLITHIC_SPARSE,
	VMDK_MONOLITHIC_FLAT,
	VMDK_SPLIT_SPARSE,
	VMDK_SPLIT_FLAT,
	VMDK_STREAM,
	VMDK_TYPE_VMFS,
};

struct vmdk_options {
	enum vmdk_subformat subformat;
	const char *adapter;
	char hw_version[12], tools_version[12];
	uint64_t grain_bytes, extent_bytes; /* extent_bytes: of one file of a disk in several */
	bool zeroed_grain, has_uuid, has_compression, no_compression;
	int level; /* of compression; 0: the codec's default */
	uint8_t uuid[VMDK_UUID_BYTES];
	uint64_t cylinders; /* 0: no geometry is given */
	uint32_t heads, sectors;
};

/* Hardware that all VMware products since Workstation 6.5 and ESX 4 know; the tools' version of a disk that nobody
 * installed them on. */
#define VMDK_HW_VERSION	      "7"
#define VMDK_TOOLS_VERSION    "2147483647"
#define VMDK_GRAIN_OPTION_MIN 4096u
#define VMDK_GRAIN_OPTION_MAX (2u << 20)
#define VMDK_EXTENT_MIN	      65536u
#define VMDK_EXTENT_MAX	      (UINT64_C(2) << 30)
#define VMDK_EXTENT_DEFAULT   (UINT64_C(2047) << 20) /* as VMware's tools split */

#define VMDK_OPTIONS_HELP                                                                                                  \
	"subformat=TYPE    monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, vmfs or " \
	"streamOptimized (compressed, for upload; written once, from start to end)\n"                                      \
	"adapter_type=TYPE    ide, buslogic, lsilogic (default) or legacyESX\n"                                            \
	"hwversion=N    of the virtual hardware (default 7)\n"                                                             \
	"compat6=BOOL    on: the same as hwversion=6\n"                                                                    \
	"toolsversion=N    of VMware's tools in the guest (default: not installed by them)\n"                              \
	"compression=zlib[:LEVEL]    of streamOptimized; level 1 to 9 (default 5)\n"                                       \
	"grain_size=SIZE    4K to 2M, a power of two (default 64K)\n"                                                      \
	"zeroed_grain=BOOL    zeros can be said by a table's entry (default off)\n"                                        \
	"extent_size=SIZE    of each file of a disk in several, at most 2G (default 2047M)\n"                              \
	"geometry=C/H/S    that the descriptor tells (default: from the size)\n"                                           \
	"uuid=UUID    of the disk (default: a new one)\n"

/* IMG_E_INVALID says what is wrong. */
int vmdk_options_parse(const char *text, struct vmdk_options *out, struct img_error *err);
/* The disk data base of a new image, with a new identity, and its content id; valid as long as o is. */
int vmdk_options_ddb(const struct vmdk_options *o, uint64_t disk_bytes, struct vmdk_ddb *ddb, uint32_t *cid,
		     struct img_error *err);

#endif
