/* SPDX-License-Identifier: MIT */
/* Who an access goes to, what nobody owns, and what a bus refuses to map. */
#include "platform_fixture.h"

struct probe {
	struct device dev;
	unsigned nr_reads, nr_writes, region, bytes;
	uint64_t off, value;
	unsigned *destroyed; /* counts up; the device notes its turn in `turn` */
	unsigned *turn;
};

static uint64_t probe_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct probe *p = (struct probe *)dev;

	p->nr_reads++;
	p->region = region;
	p->off = off;
	p->bytes = bytes;
	return UINT64_C(0x8877665544332211);
}

static void probe_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct probe *p = (struct probe *)dev;

	p->nr_writes++;
	p->region = region;
	p->off = off;
	p->bytes = bytes;
	p->value = value;
}

static void probe_destroy(struct device *dev)
{
	struct probe *p = (struct probe *)dev;

	if (p->turn)
		*p->turn = ++*p->destroyed;
}

static const struct device_ops probe_ops = { .read = probe_read, .write = probe_write, .destroy = probe_destroy };

static void test_access(void **unused)
{
	struct probe a = { .dev.ops = &probe_ops }, b = { .dev.ops = &probe_ops };
	uint64_t v = UINT64_C(0x0102030405060708);
	struct fixture f;

	(void)unused;
	fixture_init(&f);
	assert_true(bus_map(&f.bus, BUS_PIO, 0x100, 8, &a.dev, 7));
	assert_true(bus_map(&f.bus, BUS_PIO, 0x108, 1, &b.dev, 1));
	assert_true(bus_map(&f.bus, BUS_MMIO, 0x100, 8, &b.dev, 2));

	assert_int_equal(in(&f, 0x102, 2), 0x2211);
	assert_int_equal(a.region, 7);
	assert_int_equal(a.off, 2);
	assert_int_equal(a.bytes, 2);
	assert_int_equal(in(&f, 0x108, 1), 0x11);
	assert_int_equal(b.region, 1);
	bus_write(&f.bus, BUS_MMIO, 0x100, &v, 8);
	assert_int_equal(b.region, 2);
	assert_true(b.value == v);
	bus_write(&f.bus, BUS_MMIO, 0x104, &v, 4);
	assert_true(b.value == 0x05060708); /* no more than the width */

	/* from one region into the next, and beside all: nobody's */
	a.nr_reads = b.nr_reads = a.nr_writes = b.nr_writes = 0;
	assert_int_equal(in(&f, 0x107, 2), 0xffff);
	assert_int_equal(in(&f, 0xff, 2), 0xffff);
	assert_int_equal(in(&f, 0x109, 4), 0xffffffff);
	out(&f, 0x105, 4, 0);
	out(&f, 0, 1, 0);
	bus_read(&f.bus, BUS_MMIO, UINT64_MAX - 3, &v, 8);
	assert_true(v == UINT64_MAX);
	assert_int_equal(a.nr_reads + b.nr_reads + a.nr_writes + b.nr_writes, 0);
	bus_free(&f.bus);
}

static void test_map(void **unused)
{
	struct probe a = { .dev.ops = &probe_ops }, b = { .dev.ops = &probe_ops };
	struct fixture f;

	(void)unused;
	fixture_init(&f);
	assert_true(bus_map(&f.bus, BUS_MMIO, 0x1000, 0x100, &a.dev, 0));
	for (uint64_t start = 0xf01; start < 0x1100; start++) {
		assert_false(bus_map(&f.bus, BUS_MMIO, start, 0x100, &b.dev, 0));
		assert_false(bus_map(&f.bus, BUS_MMIO, 0x1000, start, &b.dev, 0));
	}
	assert_false(bus_map(&f.bus, BUS_MMIO, 0, UINT64_MAX, &b.dev, 0));
	assert_false(bus_map(&f.bus, BUS_MMIO, 0x2000, 0, &b.dev, 0));
	assert_false(bus_map(&f.bus, BUS_MMIO, UINT64_MAX, 2, &b.dev, 0));
	assert_int_equal(f.bus.nr_regions, 1);
	assert_true(bus_map(&f.bus, BUS_MMIO, 0xf00, 0x100, &b.dev, 0));
	assert_true(bus_map(&f.bus, BUS_MMIO, 0x1100, 0x100, &b.dev, 1));
	assert_true(bus_map(&f.bus, BUS_MMIO, UINT64_MAX, 1, &b.dev, 2));

	bus_unmap(&f.bus, &b.dev, 1);
	bus_unmap(&f.bus, &b.dev, 1);
	assert_int_equal(f.bus.nr_regions, 3);
	assert_true(bus_map(&f.bus, BUS_MMIO, 0x1180, 0x80, &a.dev, 1));
	bus_free(&f.bus);
}

static void test_full(void **unused)
{
	struct probe p[BUS_MAX_REGIONS];
	uint64_t v;
	struct fixture f;

	(void)unused;
	fixture_init(&f);
	memset(p, 0, sizeof(p));
	/* in an order that is neither up nor down */
	for (unsigned i = 0; i < BUS_MAX_REGIONS; i++) {
		unsigned k = i * 37 % BUS_MAX_REGIONS;

		p[k].dev.ops = &probe_ops;
		assert_true(bus_map(&f.bus, k & 1 ? BUS_PIO : BUS_MMIO, k * 16, 16, &p[k].dev, k));
	}
	assert_false(bus_map(&f.bus, BUS_PIO, 0x10000, 1, &p[0].dev, 0));
	for (unsigned k = 0; k < BUS_MAX_REGIONS; k++) {
		bus_read(&f.bus, k & 1 ? BUS_PIO : BUS_MMIO, k * 16 + 15, &v, 1);
		assert_int_equal(p[k].nr_reads, 1);
		assert_int_equal(p[k].region, k);
		assert_int_equal(p[k].off, 15);
	}
	bus_free(&f.bus);
}

static void test_free_order(void **unused)
{
	unsigned destroyed = 0, turn_a = 0, turn_b = 0;
	struct probe a = { .dev.ops = &probe_ops, .destroyed = &destroyed, .turn = &turn_a };
	struct probe b = { .dev.ops = &probe_ops, .destroyed = &destroyed, .turn = &turn_b };
	struct fixture f;

	(void)unused;
	fixture_init(&f);
	bus_add_device(&f.bus, &a.dev);
	bus_add_device(&f.bus, &b.dev);
	bus_free(&f.bus);
	assert_int_equal(turn_b, 1);
	assert_int_equal(turn_a, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_access),
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_free_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
