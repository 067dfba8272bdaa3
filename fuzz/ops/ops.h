/* SPDX-License-Identifier: MIT */
/*
 * Programs of operations that an engine makes up, on a small image in memory and on flat arrays at the same time: the
 * model of tests/model, with a host that fails and a host that crashes among the operations.
 *
 * An input is the number of a template (a geometry of the format, and what it stands on), then records of OPS_RECORD
 * bytes: the kind of an operation and its numbers, of which it makes sense when it runs. So every byte string is a
 * program, and one with records left out, repeated or swapped is another.
 *
 * What must hold: everything that tests/model looks at; after a failure of the host what libimg.h says of it (the state
 * before, or the one after; nothing outside the range; poisoned for good or as good as new); after a crash each sector
 * holds what was flushed last or something later, the snapshots are those before or after the operation that the crash
 * interrupted, check finds nothing (leaks, where the format has them, which a repair takes away), and it opens again
 * with the same content.
 */
#ifndef FUZZ_OPS_H
#define FUZZ_OPS_H

#include "crash.h"
#include "fault.h"
#include "fuzz.h"
#include "model.h"

#define OPS_RECORD  10u /* kind, then 3, 2, 2 and 2 bytes of numbers */
#define OPS_MAX	    48u /* operations of one program; the rest of an input is not looked at */
#define OPS_SECTOR  512u
#define OPS_SECTORS 8192u /* of the largest disk */

/* Kinds beyond those of the model. */
enum ops_kind {
	OPS_FAULT = NR_OPS, /* the next operation meets a failing host */
	OPS_CRASH,
	OPS_NR_KINDS
};

/* The truth after an operation, for crashes: what may be found on the disk. */
struct version {
	struct mfile truth; /* a copy of its own */
	size_t log_end;	    /* entries of the log that it had made when it returned */
	bool durable;	    /* of the head; the list of snapshots always is */
};

struct ops {
	struct model m;
	struct fault_plan plan;
	struct {
		bool armed;
		unsigned ops;
		uint64_t nth;
		int sys_errno;
		bool for_good, stay;
		uint64_t short_bytes;
	} fault; /* of the next operation */

	/* The top's file as it was on the disk at entry base_at of the log, and what happened since. */
	struct crash_log *log;
	struct mem_content *base;
	size_t base_at;
	struct version *version[OPS_MAX + 2];
	size_t nr_versions;
	uint8_t wild[OPS_SECTORS]; /* a write failed there, and no flush came since: anything may be found */

	enum op_kind kind; /* that runs, or ran last */
	const uint32_t *r;
};

/* Runs an input against the format; a broken promise ends the program with a report. */
void ops_run(const char *format, const uint8_t *data, size_t bytes);

/* templates.c: the geometry of a number; every number is one. */
void ops_template(const char *format, unsigned number, struct geometry *out);

/* history.c */
/* Filters of the log and of the plan for files that are opened; the wrap function of a memfs, with a struct ops. */
int ops_wrap(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
	     struct img_error *err);
/* The handle is flushed: what is there now is durable, and all that crashes can go back to. */
int history_restart(struct ops *o);
void history_add(struct ops *o, bool durable);
void history_free(struct ops *o);
/* The top's file after a crash before entry `at` of the log. */
struct mem_content *history_crash(struct ops *o, size_t at, const uint32_t *r);
void mfile_copy(struct mfile *to, const struct mfile *from);
void mfile_free(struct mfile *f);

/* judge.c */
struct allowed {
	const struct mfile *list[4]; /* whose snapshots may be found */
	unsigned nr_lists;
	const struct flat *head[OPS_MAX + 4]; /* any of which a sector may be from */
	unsigned nr_heads;
	bool wild;	     /* o->wild counts */
	bool exact_vm;	     /* the working machine state is that of the truth */
	uint64_t off, bytes; /* of the head, where anything may be found */
};
/* Compares what img shows with what is allowed, and makes the truth of the top what was found. */
int judge_and_adopt(struct ops *o, struct img *img, const struct allowed *a, const char *what);
/* An operation failed because the host did. */
int settle_fault(struct ops *o);
/* One succeeded although the host failed. The handle may be poisoned all the same. */
int survive_fault(struct ops *o);
int settle_crash(struct ops *o, const uint32_t *r);

#endif
