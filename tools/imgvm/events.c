/* SPDX-License-Identifier: MIT */
/* See events.h. */
#include "events.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "output.h"

uint64_t events_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int events_open(struct events *e, const char *path, uint64_t start_ns, struct img_error *err)
{
	e->on = path != NULL;
	e->start_ns = start_ns;
	e->lost = 0;
	if (path)
		return sink_open(&e->sink, path, err);
	sink_none(&e->sink);
	return 0;
}

/* Microseconds are what is worth printing. */
double events_ms(const struct events *e, uint64_t at_ns)
{
	uint64_t us = (at_ns - e->start_ns) / 1000;

	return (double)us / 1000;
}

void events_emit(struct events *e, const char *name, json_t *fields)
{
	json_t *event = e->on ? json_pack("{s:s, s:f}", "event", name, "ms", events_ms(e, events_now_ns())) : NULL;
	char *text;
	size_t bytes;

	if (event && fields)
		json_object_update(event, fields);
	if (event && e->lost)
		json_object_set_new(event, "lost", json_integer((json_int_t)e->lost));
	text = event ? json_dumps(event, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9)) : NULL;
	json_decref(event);
	json_decref(fields);
	if (!text)
		return;
	bytes = strlen(text);
	text[bytes] = '\n';
	if (sink_put(&e->sink, text, bytes + 1))
		e->lost = 0;
	else
		e->lost++;
	free(text);
}

void events_error(struct events *e, const struct img_error *err)
{
	if (e->on)
		events_emit(e, "error",
			    json_pack("{s:i, s:o}", "code", err->code, "error", output_json_text(err->msg)));
}
