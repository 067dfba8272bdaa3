/* SPDX-License-Identifier: MIT */
/* What the two files of the crash filter share. */
#ifndef FILTERS_CRASH_INT_H
#define FILTERS_CRASH_INT_H

#include "crash.h"

/* As crash_log_add(), but takes entry->data over where it succeeds. */
int crash_log_take(struct crash_log *log, const struct crash_entry *entry);
size_t crash_log_position(struct crash_log *log);

#endif
