/* SPDX-License-Identifier: MIT */
/* What is printed of what a running machine did, by imgvm and by imgtool alike. */
#ifndef TOOLS_LIVE_H
#define TOOLS_LIVE_H

#include <jansson.h>

/* answer: of the commands snapshot and revert of the control socket. */
void live_print_snapshot(const json_t *answer);
void live_print_revert(const json_t *answer);

#endif
