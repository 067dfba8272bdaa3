/* SPDX-License-Identifier: MIT */
/*
 * Inspection: what a stranger's file holds that its reader should know before it is opened for work. See inspect.c for
 * the order of it, inspect_report.c for rules and findings. Formats implement driver.h's inspect with what is declared
 * here.
 *
 * Nothing but the file itself is opened, ever. Whatever the file holds, time and memory are bounded: loops over what it
 * says ask inspect_over(), and what it names is looked at in pieces of fixed size.
 */
#ifndef CORE_INSPECT_H
#define CORE_INSPECT_H

#include "budget.h"
#include "node.h"

enum inspect_id {
	/* what it is */
	INSPECT_SEVERAL_FORMATS,
	INSPECT_FORMAT_MISMATCH,
	INSPECT_FORMAT_NOT_ALLOWED,
	INSPECT_UNVERIFIED,
	INSPECT_HYBRID_ISO,
	INSPECT_NESTED_IMAGE,
	INSPECT_ARCHIVE,
	INSPECT_HEAD_TAIL,
	INSPECT_TRAILING,
	/* references */
	INSPECT_BACKING,
	INSPECT_BACKING_FORMAT,
	INSPECT_DATA_FILE,
	INSPECT_EXTENT_FILE,
	INSPECT_PARENT,
	INSPECT_HIDDEN_REFERENCE,
	INSPECT_REFERENCE_SYNTAX,
	INSPECT_REFERENCE_OUTSIDE,
	/* structure */
	INSPECT_BAD_HEADER,
	INSPECT_TRUNCATED,
	INSPECT_UNKNOWN_FEATURE,
	INSPECT_OPTIONAL_FEATURE,
	INSPECT_UNKNOWN_EXTENSION,
	INSPECT_DUPLICATE_EXTENSION,
	INSPECT_BAD_EXTENSION,
	INSPECT_SLACK,
	INSPECT_TABLE_BOUNDS,
	INSPECT_TABLE_OVERLAP,
	INSPECT_ENTRY_BOUNDS,
	INSPECT_ALIASED,
	INSPECT_EXPANSION,
	INSPECT_INCONSISTENT,
	INSPECT_LEAKS,
	INSPECT_LIMIT,
	INSPECT_NOT_INSPECTED,
	INSPECT_CONTROL_CHARACTERS,
	INSPECT_DESCRIPTOR,
	INSPECT_SUBFORMAT,
	/* state */
	INSPECT_DIRTY,
	INSPECT_CORRUPT,
	INSPECT_REPLAY,
	INSPECT_COMMITTING,
	INSPECT_SNAPSHOTS,
	INSPECT_DUPLICATE_NAME,
	INSPECT_MACHINE_STATE,
	INSPECT_BITMAPS,
	/* encryption */
	INSPECT_ENCRYPTED,
	INSPECT_LUKS_VERSION,
	INSPECT_KEY_COST,
	/* content */
	INSPECT_CONTENT,
	INSPECT_MBR_INVALID,
	INSPECT_MBR_HYBRID,
	INSPECT_MBR_EMPTY,
	INSPECT_GPT_DIFFER,
	INSPECT_GPT_PRIMARY,
	INSPECT_GPT_BACKUP,
	INSPECT_GPT_ELSEWHERE,
	INSPECT_IDS,
};

struct inspector {
	const char *path;
	img_inspect_fn fn; /* never NULL */
	void *ctx;
	struct img_inspect_result *out;
	struct budget budget;
	uint64_t end_ms;
	bool over;		  /* time is up, and was reported */
	const char *where;	  /* "" for the file itself, else what messages begin with: "content: " */
	uint32_t nr[INSPECT_IDS]; /* found so far */
};

/* A finding; off: of the file, NO_OFFSET. After some of a kind only their number is told, at the end. */
void inspect_found(struct inspector *in, enum inspect_id id, uint64_t off, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* The same as a note, whatever the rule's severity. */
void inspect_note(struct inspector *in, enum inspect_id id, uint64_t off, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* Text of an image (no NUL needed): control, invisible or direction-changing characters are a finding. what: "a
 * snapshot's name". */
void inspect_text(struct inspector *in, const uint8_t *text, size_t bytes, uint64_t off, const char *what);
/* The image names a file: a finding of kind id, and more if the name is no plain path inside the image's folder. */
void inspect_reference(struct inspector *in, enum inspect_id id, const uint8_t *name, size_t bytes, uint64_t off,
		       const char *what);
/* One of the limits; true where it is exceeded, which is a finding. */
bool inspect_limit(struct inspector *in, enum budget_item item, uint64_t wanted, uint64_t off);
/* How much data the mapping leads to. */
void inspect_expansion(struct inspector *in, uint64_t mapped_bytes, uint64_t file_bytes, uint64_t off,
		       const char *what);
/* True when the time is up: stop. */
bool inspect_over(struct inspector *in);
/* The rest of what was not told one by one. */
void inspect_end(struct inspector *in);

/* Reads from file; what lies past its end is zeros. */
int inspect_read(struct node *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);

/* LUKS header at [off, off + bytes) of file (inspect_luks.c). */
int inspect_luks(struct inspector *in, struct node *file, uint64_t off, uint64_t bytes, struct img_error *err);

/* ---- the core's own ---- */

/* A file of a format that this build recognises, but cannot open (inspect_foreign.c). */
int inspect_foreign(struct inspector *in, const char *format, struct node *file, struct img_error *err);
/* What the disk holds: partition tables, file systems of discs. raw: the file is the disk (inspect_disk.c). */
int inspect_disk(struct inspector *in, struct node *node, bool raw, struct img_error *err);

#endif
