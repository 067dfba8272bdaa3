/* SPDX-License-Identifier: MIT */
/*
 * See throttle.h. A request is let through while neither bucket is in debt, and may run into debt itself: so a request
 * larger than a burst is possible at all, and the mean is exact.
 */
#include "throttle.h"

#include <stdbool.h>

static const double burst_seconds = 0.1;
static const double ns_per_s = 1e9;
/* Longest answer: the caller looks again, and a debt of hours (a limit of 1 byte a second) stays interruptible. */
static const uint64_t longest_wait_ns = 1000000000;

void throttle_init(struct throttle *t, uint64_t iops, uint64_t bps)
{
	*t = (struct throttle){ .iops = iops, .bps = bps };
	pthread_mutex_init(&t->lock, NULL);
}

static double burst(uint64_t rate)
{
	double tokens = (double)rate * burst_seconds;

	return tokens < 1 ? 1 : tokens;
}

static void refill(double *tokens, uint64_t rate, double seconds, bool full)
{
	double max = burst(rate);

	*tokens += (double)rate * seconds;
	if (full || *tokens > max)
		*tokens = max;
}

/* ns until `tokens` is out of debt */
static uint64_t debt_ns(double tokens, uint64_t rate)
{
	double ns;

	if (!rate || tokens > 0)
		return 0;
	ns = -tokens / (double)rate * ns_per_s + 1;
	return ns > (double)longest_wait_ns ? longest_wait_ns : (uint64_t)ns;
}

static uint64_t take(struct throttle *t, uint64_t now_ns, uint64_t bytes)
{
	bool full = !t->last_ns;
	/* callers' clocks may have been read in another order than they come here */
	double seconds = now_ns > t->last_ns ? (double)(now_ns - t->last_ns) / ns_per_s : 0;
	uint64_t wait, other;

	refill(&t->requests, t->iops, seconds, full);
	refill(&t->bytes, t->bps, seconds, full);
	if (now_ns > t->last_ns)
		t->last_ns = now_ns;
	wait = debt_ns(t->requests, t->iops);
	other = debt_ns(t->bytes, t->bps);
	wait = wait > other ? wait : other;
	if (wait)
		return wait;
	t->requests -= 1;
	t->bytes -= (double)bytes;
	return 0;
}

uint64_t throttle_take(struct throttle *t, uint64_t now_ns, uint64_t bytes)
{
	uint64_t wait;

	if (!t->iops && !t->bps)
		return 0;
	pthread_mutex_lock(&t->lock);
	wait = take(t, now_ns, bytes);
	pthread_mutex_unlock(&t->lock);
	return wait;
}
