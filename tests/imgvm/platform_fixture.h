/* SPDX-License-Identifier: MIT */
/* A bus with devices and a host that notes what they ask of it; ports as a guest sees them; state saved and loaded. */
#ifndef TEST_PLATFORM_FIXTURE_H
#define TEST_PLATFORM_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "bus.h"
#include "state.h"

#define FIXTURE_GSIS 24u

struct fixture {
	struct bus bus;
	struct machine_host host;
	bool level[FIXTURE_GSIS];
	unsigned edges[FIXTURE_GSIS]; /* from low to high */
	unsigned calls[FIXTURE_GSIS];
	unsigned events[MACHINE_ERROR + 1];
};

static void fixture_irq_line(void *machine, unsigned gsi, bool level)
{
	struct fixture *f = machine;

	assert_true(gsi < FIXTURE_GSIS);
	f->calls[gsi]++;
	if (level && !f->level[gsi])
		f->edges[gsi]++;
	f->level[gsi] = level;
}

static void fixture_event(void *machine, enum machine_event event)
{
	struct fixture *f = machine;

	f->events[event]++;
}

static inline void fixture_init(struct fixture *f)
{
	memset(f, 0, sizeof(*f));
	bus_init(&f->bus);
	f->host = (struct machine_host){ .machine = f, .irq_line = fixture_irq_line, .event = fixture_event };
}

static inline uint64_t in(struct fixture *f, unsigned port, unsigned bytes)
{
	uint64_t v = 0;

	bus_read(&f->bus, BUS_PIO, port, &v, bytes);
	return v;
}

static inline void out(struct fixture *f, unsigned port, unsigned bytes, uint64_t v)
{
	bus_write(&f->bus, BUS_PIO, port, &v, bytes);
}

static inline uint8_t inb(struct fixture *f, unsigned port)
{
	return (uint8_t)in(f, port, 1);
}

static inline void outb(struct fixture *f, unsigned port, unsigned v)
{
	out(f, port, 1, v);
}

/* Payload of the device's section; returns its length. */
static inline size_t fixture_save(struct device *dev, uint8_t *payload, size_t cap)
{
	static uint8_t buf[STATE_AREA_BYTES];
	struct img_error err = { 0 };
	struct state_writer w;
	struct state_reader r;
	struct state st;
	size_t bytes, left;

	state_start(&w, buf, sizeof(buf));
	dev->ops->save(dev, &w);
	assert_int_equal(state_finish(&w, &bytes, &err), 0);
	assert_int_equal(state_parse(&st, buf, bytes, &err), 0);
	assert_int_equal(st.nr_sections, 1);
	assert_int_equal(state_open(&st, dev->tag, dev->instance, dev->version, &r, &err), 0);
	left = state_left(&r);
	assert_true(left <= cap);
	state_get(&r, payload, left);
	return left;
}

static inline int fixture_load(struct device *dev, const uint8_t *payload, size_t bytes)
{
	struct state_reader r = { .at = payload, .end = payload + bytes, .version = dev->version };
	struct img_error err = { 0 };
	int ret = dev->ops->load(dev, &r, &err);

	assert_int_equal(ret, err.code);
	return ret;
}

/*
 * What hostile state does: every length but the right one is refused; every byte set to every value is either refused,
 * and then nothing has changed, or taken, and then the device saves what it was given. The last `moving` bytes
 * go on by themselves (a timer).
 */
static inline void fixture_hostile_state(struct device *dev, size_t moving)
{
	uint8_t good[1024] = { 0 }, bad[1024], now[1024];
	size_t bytes = fixture_save(dev, good, sizeof(good) - 1);

	for (size_t n = 0; n <= bytes + 1; n++)
		if (n != bytes)
			assert_int_equal(fixture_load(dev, good, n), IMG_E_CORRUPT);
	for (size_t i = 0; i < bytes; i++) {
		for (unsigned v = 0; v < 256; v++) {
			memcpy(bad, good, bytes);
			bad[i] = (uint8_t)v;
			if (fixture_load(dev, bad, bytes) != 0)
				memcpy(bad, good, bytes);
			assert_int_equal(fixture_save(dev, now, sizeof(now)), bytes);
			assert_memory_equal(now, bad, bytes - moving);
			assert_int_equal(fixture_load(dev, good, bytes), 0);
		}
	}
}

#endif
