/* SPDX-License-Identifier: MIT */
/*
 * What happens to a machine, for scripts: one JSON object a line, {"event": "...", "ms": since the program began, ...}.
 * The manual page lists them.
 */
#ifndef IMGVM_EVENTS_H
#define IMGVM_EVENTS_H

#include <jansson.h>
#include <stdint.h>

#include "sink.h"

struct events {
	bool on;
	uint64_t start_ns; /* monotonic, of main() */
	uint64_t lost;	   /* nobody read them in time */
	struct sink sink;
};

/* path as in sink_open(); NULL: no events. */
int events_open(struct events *e, const char *path, uint64_t start_ns, struct img_error *err);
/* ms since main(). */
double events_ms(const struct events *e, uint64_t at_ns);
/* fields: an object of more of them (owned), or NULL. */
void events_emit(struct events *e, const char *name, json_t *fields);
/* "error": code and message. */
void events_error(struct events *e, const struct img_error *err);

uint64_t events_now_ns(void);

#endif
