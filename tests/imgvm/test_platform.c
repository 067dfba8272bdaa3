/* SPDX-License-Identifier: MIT */
/* Keyboard controller, CMOS, power management and debug port. */
#include "platform_fixture.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "platform.h"

static void test_i8042(void **unused)
{
	struct fixture f;
	struct device *dev;

	(void)unused;
	fixture_init(&f);
	dev = i8042_create(&f.bus, &f.host);
	/* neither busy nor a byte waiting: what POST waits for */
	assert_int_equal(inb(&f, 0x64) & 0x03, 0);
	outb(&f, 0x64, 0xaa);
	assert_int_equal(inb(&f, 0x64) & 0x03, 1);
	assert_int_equal(inb(&f, 0x60), 0x55);
	assert_int_equal(inb(&f, 0x64) & 0x03, 0);
	outb(&f, 0x64, 0xab);
	assert_int_equal(inb(&f, 0x60), 0x00);
	outb(&f, 0x64, 0x60);
	outb(&f, 0x60, 0x61);
	outb(&f, 0x64, 0x20);
	assert_int_equal(inb(&f, 0x60), 0x61);
	/* nobody there */
	outb(&f, 0x60, 0xff);
	assert_int_equal(inb(&f, 0x64) & 0x21, 0x01);
	assert_int_equal(inb(&f, 0x60), 0xfe);
	outb(&f, 0x64, 0xd4);
	outb(&f, 0x60, 0xff);
	assert_int_equal(inb(&f, 0x64) & 0x21, 0x21);
	assert_int_equal(inb(&f, 0x60), 0xfe);
	/* A20 */
	outb(&f, 0x64, 0xd0);
	assert_int_equal(inb(&f, 0x60) & 0x03, 0x03);
	assert_int_equal(inb(&f, 0x92) & 0x02, 0x02);
	outb(&f, 0x92, 0);
	assert_int_equal(inb(&f, 0x92) & 0x02, 0x02);
	outb(&f, 0x64, 0xd1);
	outb(&f, 0x60, 0xdd);
	assert_int_equal(f.events[MACHINE_RESET], 0);

	outb(&f, 0x64, 0xff); /* pulses nothing */
	assert_int_equal(f.events[MACHINE_RESET], 0);
	outb(&f, 0x64, 0xfe);
	assert_int_equal(f.events[MACHINE_RESET], 1);
	outb(&f, 0x64, 0xd1);
	outb(&f, 0x60, 0xfe);
	assert_int_equal(f.events[MACHINE_RESET], 2);
	outb(&f, 0x92, 1);
	assert_int_equal(f.events[MACHINE_RESET], 3);
	outb(&f, 0x92, 1);
	assert_int_equal(f.events[MACHINE_RESET], 3);
	assert_int_equal(in(&f, 0x64, 2), 0xffff);

	outb(&f, 0x61, 0x03);
	assert_int_equal(inb(&f, 0x61) & 0x03, 0x03);
	assert_int_not_equal(inb(&f, 0x61) & 0x10, inb(&f, 0x61) & 0x10);
	fixture_hostile_state(dev, 0);
	dev->ops->reset(dev);
	assert_int_equal(inb(&f, 0x64) & 0x03, 0);
	assert_int_equal(inb(&f, 0x92), 0x02);
	bus_free(&f.bus);
}

static unsigned cmos(struct fixture *f, unsigned index)
{
	outb(f, 0x70, index);
	return inb(f, 0x71);
}

static void cmos_set(struct fixture *f, unsigned index, unsigned v)
{
	outb(f, 0x70, index);
	outb(f, 0x71, v);
}

static unsigned bcd(unsigned v)
{
	return (v >> 4) * 10 + (v & 15);
}

/* The clock's fields as one time, twice the same: no second went by in between. */
static time_t clock_of(struct fixture *f, bool binary, bool pm)
{
	struct tm tm = { 0 };
	unsigned v[7], again;

	do {
		static const uint8_t reg[] = { 0, 2, 4, 7, 8, 9, 0x32 };

		for (unsigned i = 0; i < 7; i++)
			v[i] = cmos(f, reg[i]);
		again = cmos(f, 0);
	} while (again != v[0]);
	if (pm) {
		bool after_noon = v[2] & 0x80;
		unsigned hour = binary ? v[2] & 0x7f : bcd(v[2] & 0x7f);

		assert_in_range(hour, 1, 12);
		v[2] = hour % 12 + (after_noon ? 12 : 0);
	} else if (!binary) {
		v[2] = bcd(v[2]);
	}
	for (unsigned i = 0; i < 7 && !binary; i++)
		if (i != 2)
			v[i] = bcd(v[i]);
	tm.tm_sec = (int)v[0];
	tm.tm_min = (int)v[1];
	tm.tm_hour = (int)v[2];
	tm.tm_mday = (int)v[3];
	tm.tm_mon = (int)v[4] - 1;
	tm.tm_year = (int)(v[6] * 100 + v[5]) - 1900;
	return timegm(&tm);
}

static void test_clock(void **unused)
{
	struct fixture f;
	struct device *dev;

	(void)unused;
	fixture_init(&f);
	dev = cmos_create(&f.bus, &f.host, UINT64_C(256) << 20, 3);
	for (unsigned mode = 0; mode < 8; mode += 2) { /* 2: 24 hours, 4: binary */
		time_t before = time(NULL), now;

		cmos_set(&f, 0x0b, mode);
		now = clock_of(&f, mode & 4, !(mode & 2));
		assert_in_range(now, before, time(NULL));
	}
	assert_int_equal(cmos(&f, 0x8a) & 0x80, 0); /* bit 7 of the index is no part of it */
	assert_int_equal(cmos(&f, 0x0d), 0x80);
	assert_in_range(cmos(&f, 6), 1, 7);
	/* it cannot be set, and setting it is no failure */
	cmos_set(&f, 9, 0x70);
	assert_int_not_equal(cmos(&f, 9), 0x70);
	dev->ops->reset(dev);
	assert_int_equal(cmos(&f, 0x0b), 0x02);
	bus_free(&f.bus);
}

static uint64_t cmos_number(struct fixture *f, unsigned index, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)cmos(f, index + i) << 8 * i;
	return v;
}

static void test_cmos_memory(void **unused)
{
	static const struct {
		uint64_t ram_mib, extended_kib, above_16m, above_4g;
	} expected[] = {
		{ 2, 1024, 0, 0 },
		{ 16, 15 * 1024, 0, 0 },
		{ 256, 65535, 240 * 16, 0 },
		{ 3072, 65535, 3056 * 16, 0 },
		{ 5120, 65535, 3056 * 16, 2048 * 16 },
	};

	(void)unused;
	for (unsigned i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		struct fixture f;
		struct device *dev;

		fixture_init(&f);
		dev = cmos_create(&f.bus, &f.host, expected[i].ram_mib << 20, i + 1);
		assert_int_equal(cmos_number(&f, 0x15, 2), 640);
		assert_int_equal(cmos_number(&f, 0x17, 2), expected[i].extended_kib);
		assert_int_equal(cmos_number(&f, 0x30, 2), expected[i].extended_kib);
		assert_int_equal(cmos_number(&f, 0x34, 2), expected[i].above_16m);
		assert_int_equal(cmos_number(&f, 0x5b, 3), expected[i].above_4g);
		assert_int_equal(cmos(&f, 0x5f), i);
		/* memory is memory, until a reset */
		cmos_set(&f, 0x0f, 0x0a);
		cmos_set(&f, 0x7f, 0x5a);
		assert_int_equal(cmos(&f, 0x0f), 0x0a);
		assert_int_equal(cmos(&f, 0x7f), 0x5a);
		if (i == 0)
			fixture_hostile_state(dev, 0);
		dev->ops->reset(dev);
		assert_int_equal(cmos(&f, 0x7f), 0);
		bus_free(&f.bus);
	}
}

static void test_power_button(void **unused)
{
	struct fixture f;
	struct device *dev;

	(void)unused;
	fixture_init(&f);
	dev = pm_create(&f.bus, &f.host);
	assert_int_equal(in(&f, PM_CNT_PORT, 2), 0x0001); /* ACPI is on */
	assert_false(pm_power_button(dev, &f.bus));
	assert_int_equal(in(&f, PM_EVT_PORT, 2), 0);
	out(&f, PM_EVT_PORT + 2, 2, 0x0100);
	assert_true(pm_power_button(dev, &f.bus));
	assert_true(f.level[PM_SCI]);
	assert_int_equal(in(&f, PM_EVT_PORT, 4), 0x01000100);
	out(&f, PM_EVT_PORT, 2, 0); /* zeros clear nothing */
	assert_true(f.level[PM_SCI]);
	out(&f, PM_EVT_PORT + 2, 2, 0x0000); /* masked */
	assert_false(f.level[PM_SCI]);
	out(&f, PM_EVT_PORT + 2, 2, 0x0100);
	assert_true(f.level[PM_SCI]);
	outb(&f, PM_EVT_PORT + 1, 0x01); /* by bytes */
	assert_false(f.level[PM_SCI]);
	assert_int_equal(in(&f, PM_EVT_PORT, 2), 0);
	out(&f, PM_EVT_PORT + 2, 2, 0xffff);
	assert_int_equal(in(&f, PM_EVT_PORT + 2, 2), 0x0721);
	assert_true(pm_power_button(dev, &f.bus));
	dev->ops->reset(dev);
	assert_false(f.level[PM_SCI]);
	bus_free(&f.bus);
}

static void test_power_off(void **unused)
{
	struct fixture f;

	(void)unused;
	fixture_init(&f);
	pm_create(&f.bus, &f.host);
	out(&f, PM_CNT_PORT, 2, PM_S5_TYPE << 10); /* Linux writes the type first */
	assert_int_equal(f.events[MACHINE_POWEROFF], 0);
	out(&f, PM_CNT_PORT, 2, 1 << 10 | 0x2000); /* another state */
	assert_int_equal(f.events[MACHINE_POWEROFF], 0);
	out(&f, PM_EVT_PORT, 4, 0xffffffff);
	assert_int_equal(f.events[MACHINE_POWEROFF], 0);
	out(&f, PM_CNT_PORT, 2, PM_S5_TYPE << 10 | 0x2000);
	assert_int_equal(f.events[MACHINE_POWEROFF], 1);
	assert_int_equal(in(&f, PM_CNT_PORT, 2), PM_S5_TYPE << 10 | 1);
	bus_free(&f.bus);
}

static void test_pm_timer(void **unused)
{
	struct timespec wait = { .tv_nsec = 20000000 };
	struct fixture f;
	struct device *dev;
	uint8_t saved[16];
	uint32_t t0, t1;
	size_t bytes;

	(void)unused;
	fixture_init(&f);
	dev = pm_create(&f.bus, &f.host);
	t0 = (uint32_t)in(&f, PM_TIMER_PORT, 4);
	assert_true(t0 < 3579545);
	nanosleep(&wait, NULL);
	t1 = (uint32_t)in(&f, PM_TIMER_PORT, 4);
	assert_in_range(t1 - t0, 71590, 3579545 * 5); /* 20 ms, and what a busy host adds */
	out(&f, PM_TIMER_PORT, 4, 0);
	assert_true((uint32_t)in(&f, PM_TIMER_PORT, 4) >= t1);

	/* goes on from what was saved, also over the end of 32 bits */
	bytes = fixture_save(dev, saved, sizeof(saved));
	assert_int_equal(bytes, 10);
	memset(saved + 6, 0xff, 4);
	assert_int_equal(fixture_load(dev, saved, bytes), 0);
	nanosleep(&wait, NULL);
	assert_in_range(in(&f, PM_TIMER_PORT, 4), 71589, 3579545 * 5);
	assert_int_equal(in(&f, PM_TIMER_PORT, 8), UINT64_MAX);
	fixture_hostile_state(dev, 4);
	bus_free(&f.bus);
}

static void test_debugcon(void **unused)
{
	char text[8] = { 0 };
	struct fixture f;
	int fd[2];

	(void)unused;
	assert_int_equal(pipe2(fd, O_CLOEXEC | O_NONBLOCK), 0);
	fixture_init(&f);
	debugcon_create(&f.bus, &f.host, fd[1]);
	assert_int_equal(inb(&f, 0x402), 0xe9);
	outb(&f, 0x402, 'h');
	outb(&f, 0x402, 'i');
	assert_int_equal(read(fd[0], text, sizeof(text)), 2);
	assert_string_equal(text, "hi");
	bus_free(&f.bus);
	close(fd[0]);
	close(fd[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_i8042),	    cmocka_unit_test(test_clock),
		cmocka_unit_test(test_cmos_memory), cmocka_unit_test(test_power_button),
		cmocka_unit_test(test_power_off),   cmocka_unit_test(test_pm_timer),
		cmocka_unit_test(test_debugcon),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
