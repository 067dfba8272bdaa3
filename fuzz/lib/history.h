/* SPDX-License-Identifier: MIT */
/*
 * Templates of format "limg-journal": limg images whose writer died with changes in the journal, and every state that
 * its disk was in before.
 */
#ifndef FUZZ_HISTORY_H
#define FUZZ_HISTORY_H

#include "template.h"

#define HISTORY_BYTES  (160u << 10) /* of the disk, at most */
#define HISTORY_STATES 24u

struct history {
	unsigned nr;
	struct history_state {
		uint64_t bytes;
		uint8_t data[HISTORY_BYTES];
	} state[HISTORY_STATES];
};

/* Of the template of the same number, which must have been made. */
const struct history *history_get(unsigned n);

#endif
