/* SPDX-License-Identifier: MIT */
/*
 * Opening what an input made: files in memory, small budgets, references counted. Every failing call must say so as
 * libimg.h promises.
 */
#ifndef FUZZ_SESSION_H
#define FUZZ_SESSION_H

#include "patch.h"

struct fuzz_host {
	struct memfs fs;
	struct image_env env; /* that of fs, which counts */
	unsigned references;  /* files that were opened because an image names them */
};

void fuzz_host_init(struct fuzz_host *host);
void fuzz_host_destroy(struct fuzz_host *host);

/* The limits of every open here. */
extern const struct img_budget fuzz_budget;

/* ret of a public function, with what it left in err: the code is the same, the message one line, the text of the code
 * known. Returns ret. */
int fuzz_expect(int ret, const struct img_error *err);

/* Of FUZZ_IMAGE under fuzz_budget; format NULL: probed. */
int fuzz_open(struct fuzz_host *host, const char *format, const char *snapshot, unsigned flags, enum img_refs refs,
	      struct img **out);
/* As fuzz_open(), for fuzz_check() and nothing else: what is too damaged to be opened. */
int fuzz_open_for_check(struct fuzz_host *host, const char *format, unsigned flags, struct img **out);

/* What a look at an image saw, so that two looks can be compared. */
struct fuzz_look {
	uint64_t digest; /* of all but the check */
	bool opened;
	bool checked; /* the check ran to its end; what it found: */
	struct img_check_result check;
};

enum fuzz_look_flags {
	FUZZ_LOOK_NO_BACKING = 1u << 0,
	FUZZ_LOOK_NO_REFS = 1u << 1,
	FUZZ_LOOK_FORCE_SHARE = 1u << 2,
	FUZZ_LOOK_METADATA = 1u << 3, /* the check looks at no data */
	FUZZ_LOOK_NO_CHECK = 1u << 4,
};
/*
 * Opens FUZZ_IMAGE read-only, asks everything there is to ask, reads a bounded part of what there is to read,
 * everything twice, and closes it. The file must have the same bytes afterwards.
 */
void fuzz_look(struct fuzz_host *host, const char *format, const char *snapshot, unsigned flags, struct fuzz_look *out);

#endif
