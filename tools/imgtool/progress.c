/* SPDX-License-Identifier: MIT */
/* See progress.h. The library calls back from one thread at a time, so that no lock is needed. */
#include "progress.h"

#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "output.h"
#include "signals.h"

#define REDRAW_NS    UINT64_C(100000000)
#define FIRST_BAR_NS UINT64_C(250000000) /* what ends sooner draws nothing */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int terminal_columns(void)
{
	struct winsize size;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
		return size.ws_col;
	return 80;
}

static uint64_t rate_of(const struct progress *p, uint64_t now)
{
	double seconds = (double)(now - p->start_ns) / 1e9;

	return seconds > 0 ? (uint64_t)((double)p->done_bytes / seconds) : 0;
}

static uint64_t seconds_left(const struct progress *p, uint64_t rate)
{
	return rate ? (p->total_bytes - p->done_bytes + rate - 1) / rate : 0;
}

static void draw_bar(struct progress *p, uint64_t now)
{
	double part = p->total_bytes ? (double)p->done_bytes / (double)p->total_bytes : 1;
	uint64_t rate = rate_of(p, now), left = seconds_left(p, rate);
	char tail[80], size[SIZE_TEXT_BYTES];
	int columns, filled;

	snprintf(tail, sizeof(tail), " %3.0f%%  %s/s  %" PRIu64 ":%02" PRIu64 " left", part * 100,
		 output_size(rate, size), left / 60, left % 60);
	columns = terminal_columns() - (int)strlen(p->verb) - (int)strlen(tail) - 4;
	if (columns < 4)
		columns = 4;
	filled = (int)(part * columns);
	fprintf(stderr, "\r%s [", p->verb);
	for (int i = 0; i < columns; i++)
		fputc(i < filled ? '#' : '.', stderr);
	fprintf(stderr, "]%s\033[K", tail);
	fflush(stderr);
	p->bar_drawn = true;
}

/* One object per line; numbers and the verb's own name need no escaping. */
static void print_json(const struct progress *p, uint64_t now, const char *state)
{
	uint64_t rate = rate_of(p, now);

	fprintf(stderr,
		"{\"verb\": \"%s\", \"state\": \"%s\", \"done_bytes\": %" PRIu64 ", \"total_bytes\": %" PRIu64
		", \"bytes_per_second\": %" PRIu64 ", \"seconds_left\": %" PRIu64 "}\n",
		p->verb, state, p->done_bytes, p->total_bytes, rate, seconds_left(p, rate));
	fflush(stderr);
}

static int callback(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
	struct progress *p = ctx;
	uint64_t now = now_ns();

	p->total_bytes = total_bytes;
	p->done_bytes = done_bytes < total_bytes ? done_bytes : total_bytes;
	if (p->mode != PROGRESS_NONE && now - p->start_ns >= (p->mode == PROGRESS_BAR ? FIRST_BAR_NS : 0) &&
	    (p->shown_ns == 0 || now - p->shown_ns >= REDRAW_NS)) {
		p->shown_ns = now;
		if (p->mode == PROGRESS_BAR)
			draw_bar(p, now);
		else
			print_json(p, now, "running");
	}
	return signals_interrupted();
}

struct img_progress progress_begin(struct progress *progress, const struct cli_verb *verb,
				   const struct common_args *common)
{
	memset(progress, 0, sizeof(*progress));
	progress->verb = verb->name;
	progress->start_ns = now_ns();
	if (common->quiet || cli_is(common->progress, "none"))
		progress->mode = PROGRESS_NONE;
	else if (cli_is(common->progress, "json"))
		progress->mode = PROGRESS_JSON;
	else if (cli_is(common->progress, "bar") || isatty(STDERR_FILENO))
		progress->mode = PROGRESS_BAR;
	return (struct img_progress){ .fn = callback, .ctx = progress };
}

void progress_end(struct progress *progress, bool succeeded)
{
	if (progress->mode == PROGRESS_JSON) {
		if (succeeded)
			progress->done_bytes = progress->total_bytes;
		print_json(progress, now_ns(), succeeded ? "done" : "failed");
	}
	if (progress->bar_drawn) {
		fputs("\r\033[K", stderr);
		fflush(stderr);
	}
	progress->mode = PROGRESS_NONE;
}
