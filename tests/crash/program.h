/* SPDX-License-Identifier: MIT */
/*
 * Programs: sequences of operations on an image that stands on one of a few setups. Running an operation changes the
 * image and the oracle's worlds; while it runs, a crash may find any of the worlds "in flight".
 */
#ifndef TESTS_PROGRAM_H
#define TESTS_PROGRAM_H

#include "memhost.h"
#include "oracle.h"

#define PROGRAM_MAX 16u

struct setup {
	char letter;
	const char *what;
	int (*make)(const struct setup *s, struct memhost *host, struct worlds *ws, struct img_error *err);
	const char *format, *file, *options;  /* of the image under test */
	const char *new_format, *new_options; /* of what convert and makeNew make; NULL: the same */
	bool new_in_parts; /* it has data files, and these replace nothing: a second one is refused */
	bool garbage;	   /* unsynced writes may leave rubbish: not for formats that overwrite in place */
	enum machine_state vm;
	bool may_keep_discarded;
	bool may_leak; /* a crash leaves leaks, which a repair takes away */
	/* A program starts after this many rounds of writing this many blocks and a flush: with the journal in use. */
	unsigned warm_rounds, warm_blocks;
};

struct machine {
	const struct setup *setup;
	struct memhost *host;
	struct img *img;
	struct worlds ws;	 /* what holds now */
	struct worlds in_flight; /* what may be found while the operation runs */
	unsigned position;	 /* of the operation in the program: its writes have ids of their own */
};

struct operation {
	const char *name;
	const char *setups; /* letters */
	/* Sets in_flight before it touches the image, then ws. 0, or -1 with err filled: it failed against the
	 * documents. */
	int (*run)(struct machine *m, struct img_error *err);
};

const struct setup *setup_find(char letter);
const struct setup *setup_at(unsigned i); /* NULL past the end */
const struct operation *operation_find(const struct setup *s, const char *name);
const struct operation *operation_at(const struct setup *s, unsigned i); /* of this setup; NULL past the end */

/* program_whole.c: those on images as a whole. i from 0; NULL past the end. */
const struct operation *whole_operation_at(unsigned i);
/* What the documents say comes back, or the failure of the test. */
int operation_expect(int ret, int wanted, struct img_error *err);

int machine_open(struct machine *m, struct img_error *err);
/* Brings a warm setup to where its programs start. */
int machine_warm(struct machine *m, struct img_error *err);
int open_image(struct memhost *host, const struct setup *s, unsigned flags, struct img **out, struct img_error *err);

#define FRESH_WRITE_ID 60u /* of what a test writes after recovery */
#define NEW_FILE       "new.img"
#define OTHER_FILE     "other.img" /* beside an overlay: another parent */

#endif
