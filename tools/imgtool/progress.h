/* SPDX-License-Identifier: MIT */
/* Progress of a long verb on stderr, and the way by which an interruption reaches the library. */
#ifndef IMGTOOL_PROGRESS_H
#define IMGTOOL_PROGRESS_H

#include "args.h"

struct progress {
	enum { PROGRESS_NONE, PROGRESS_BAR, PROGRESS_JSON } mode;
	const char *verb;
	uint64_t start_ns, shown_ns; /* CLOCK_MONOTONIC; shown_ns 0: nothing was shown yet */
	uint64_t done_bytes, total_bytes;
	bool bar_drawn;
};

/* Makes the callback that a library call takes; progress must live as long. Cancels after a signal in every mode. */
struct img_progress progress_begin(struct progress *progress, const struct cli_verb *verb,
				   const struct common_args *common);
/* Removes the bar; with JSON the last line says how it ended. Before any message about the outcome. */
void progress_end(struct progress *progress, bool succeeded);

#endif
