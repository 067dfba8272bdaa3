/* SPDX-License-Identifier: MIT */
/* The configuration mechanism, BARs that a guest moves about, shared interrupt lines, and saved state. */
#include "platform_fixture.h"

#include "pci.h"

#define BAR 0x10u

struct card {
	struct device dev;
	struct pci_function fn;
	unsigned nr_reads, nr_changed;
};

struct pci_bench {
	struct fixture f;
	struct device *pci;
	struct card card[4];
};

static uint64_t card_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	((struct card *)dev)->nr_reads++;
	assert_int_equal(region, 3);
	return off + bytes;
}

static void card_destroy(struct device *dev)
{
	(void)dev;
}

static const struct device_ops card_ops = { .read = card_read, .destroy = card_destroy };

static void card_changed(struct pci_function *fn)
{
	((struct card *)fn->dev)->nr_changed++;
}

static int setup(void **state)
{
	struct pci_bench *b = calloc(1, sizeof(*b));

	fixture_init(&b->f);
	b->pci = pci_create(&b->f.bus, &b->f.host);
	for (unsigned i = 0; i < 4; i++) {
		struct card *c = &b->card[i];

		c->dev.ops = &card_ops;
		pci_function_init(&c->fn, &c->dev, 0x1af4, (uint16_t)(0x1040 + i), 0x01000001, 0x1af4, 0x0002);
		c->fn.bar_bytes = i < 3 ? 0x4000 : 0;
		c->fn.bar_region = 3;
		c->fn.changed = card_changed;
		pci_attach(b->pci, &c->fn);
		assert_int_equal(c->fn.slot, i + 1);
		bus_add_device(&b->f.bus, &c->dev);
	}
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct pci_bench *b = *state;

	bus_free(&b->f.bus);
	free(b);
	return 0;
}

static uint64_t cfg_read(struct pci_bench *b, unsigned slot, unsigned off, unsigned bytes)
{
	out(&b->f, 0xcf8, 4, 0x80000000u | slot << 11 | (off & 0xfc));
	return in(&b->f, 0xcfc + (off & 3), bytes);
}

static void cfg_write(struct pci_bench *b, unsigned slot, unsigned off, unsigned bytes, uint64_t v)
{
	out(&b->f, 0xcf8, 4, 0x80000000u | slot << 11 | (off & 0xfc));
	out(&b->f, 0xcfc + (off & 3), bytes, v);
}

static void test_mechanism(void **state)
{
	struct pci_bench *b = *state;

	assert_int_equal(cfg_read(b, 0, 0, 4), 0x12378086);
	assert_int_equal(cfg_read(b, 0, 0x2c, 4), 0x11001af4);
	assert_int_equal(cfg_read(b, 0, 0x59, 1), 0x10);
	cfg_write(b, 0, 0x59, 1, 0x33);
	assert_int_equal(cfg_read(b, 0, 0x59, 1), 0x10);
	assert_int_equal(cfg_read(b, 2, 0, 2), 0x1af4);
	assert_int_equal(cfg_read(b, 2, 2, 2), 0x1041);
	assert_int_equal(cfg_read(b, 2, 3, 1), 0x10);
	assert_int_equal(cfg_read(b, 2, 0x3d, 1), 1);
	assert_int_equal(cfg_read(b, 5, 0, 4), 0xffffffff);
	assert_int_equal(cfg_read(b, 31, 0, 4), 0xffffffff);
	/* another bus, another function, not enabled */
	out(&b->f, 0xcf8, 4, 0x80010000);
	assert_int_equal(in(&b->f, 0xcfc, 4), 0xffffffff);
	out(&b->f, 0xcf8, 4, 0x80000100);
	assert_int_equal(in(&b->f, 0xcfc, 4), 0xffffffff);
	out(&b->f, 0xcf8, 4, 0x00000000);
	assert_int_equal(in(&b->f, 0xcfc, 4), 0xffffffff);
	/* the address register reads back, by 4 bytes only */
	out(&b->f, 0xcf8, 4, 0xffffffff);
	assert_int_equal(in(&b->f, 0xcf8, 4), 0x80fffffc);
	assert_int_equal(in(&b->f, 0xcf8, 2), 0xffff);
	out(&b->f, 0xcf8, 2, 0);
	assert_int_equal(in(&b->f, 0xcf8, 4), 0x80fffffc);
	assert_int_equal(in(&b->f, 0xcfa, 4), 0xffffffff); /* half address, half data */
	/* interrupt line: all of it; ids: nothing */
	cfg_write(b, 1, 0x3c, 4, 0xffffffff);
	assert_int_equal(cfg_read(b, 1, 0x3c, 4), 0x000001ff);
	cfg_write(b, 1, 0, 4, 0);
	assert_int_equal(cfg_read(b, 1, 0, 4), 0x10401af4);
}

static void test_reset_control(void **state)
{
	struct pci_bench *b = *state;

	outb(&b->f, 0xcf9, 0x02);
	assert_int_equal(b->f.events[MACHINE_RESET], 0);
	outb(&b->f, 0xcf9, 0x06);
	assert_int_equal(b->f.events[MACHINE_RESET], 1);
	outb(&b->f, 0xcf9, 0x06);
	assert_int_equal(b->f.events[MACHINE_RESET], 1);
	assert_int_equal(inb(&b->f, 0xcf9), 0x06);
}

static uint64_t mmio(struct pci_bench *b, uint64_t gpa)
{
	uint64_t v = 0;

	bus_read(&b->f.bus, BUS_MMIO, gpa, &v, 4);
	return v;
}

static void test_bar(void **state)
{
	struct pci_bench *b = *state;
	struct card *c = &b->card[0];

	/* sizing, with decoding on, as some systems do it */
	cfg_write(b, 1, 4, 2, 0x2);
	cfg_write(b, 1, BAR, 4, 0xffffffff);
	assert_int_equal(cfg_read(b, 1, BAR, 4), 0xffffc000);
	assert_false(c->fn.mapped);
	cfg_write(b, 1, BAR, 4, 0xe0000000);
	assert_true(c->fn.mapped);
	assert_int_equal(mmio(b, 0xe0000010), 0x14);
	assert_int_equal(c->nr_reads, 1);
	/* by bytes */
	cfg_write(b, 1, BAR + 3, 1, 0xd0);
	assert_true(c->fn.mapped && c->fn.bar_gpa == 0xd0000000);
	assert_int_equal(mmio(b, 0xe0000010), 0xffffffff);
	cfg_write(b, 1, 4, 2, 0);
	assert_false(c->fn.mapped);
	assert_int_equal(mmio(b, 0xd0000010), 0xffffffff);
	cfg_write(b, 1, 4, 2, 0xffff);
	assert_int_equal(cfg_read(b, 1, 4, 2), 0x546);
	assert_true(c->fn.mapped);

	/* where RAM, the IOAPIC or nothing may be: not mapped */
	const uint32_t outside[] = { 0, 0x4000, 0xbfffc000, 0xfec00000, 0xfee00000, 0xffffc000 };

	for (unsigned i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
		cfg_write(b, 1, BAR, 4, outside[i]);
		assert_false(c->fn.mapped);
	}
	cfg_write(b, 1, BAR, 4, 0xc0000000);
	assert_true(c->fn.mapped);
	cfg_write(b, 1, BAR, 4, 0xfebfc000);
	assert_true(c->fn.mapped);
	/* no other BARs; a card without one */
	cfg_write(b, 1, 0x14, 4, 0xffffffff);
	assert_int_equal(cfg_read(b, 1, 0x14, 4), 0);
	cfg_write(b, 4, BAR, 4, 0xffffffff);
	assert_int_equal(cfg_read(b, 4, BAR, 4), 0);
}

static void test_overlap(void **state)
{
	struct pci_bench *b = *state;
	struct card *a = &b->card[0], *c = &b->card[1];

	cfg_write(b, 1, 4, 2, 2);
	cfg_write(b, 2, 4, 2, 2);
	cfg_write(b, 1, BAR, 4, 0xe0000000);
	cfg_write(b, 2, BAR, 4, 0xe0000000);
	assert_true(a->fn.mapped);
	assert_false(c->fn.mapped);
	mmio(b, 0xe0000000);
	assert_int_equal(a->nr_reads, 1);
	/* the place becomes free: who waited for it gets it */
	cfg_write(b, 1, BAR, 4, 0xe0010000);
	assert_true(a->fn.mapped && c->fn.mapped);
	mmio(b, 0xe0000000);
	assert_int_equal(c->nr_reads, 1);
}

static void test_intx(void **state)
{
	struct pci_bench *b = *state;

	assert_int_equal(PCI_GSI(1), PCI_GSI(2)); /* else this test shares nothing */
	assert_int_not_equal(PCI_GSI(1), PCI_GSI(3));
	pci_set_intx(&b->card[0].fn, true);
	pci_set_intx(&b->card[1].fn, true);
	assert_true(b->f.level[PCI_GSI(1)]);
	assert_false(b->f.level[PCI_GSI(3)]);
	assert_int_equal(b->f.calls[PCI_GSI(1)], 1);
	pci_set_intx(&b->card[0].fn, false);
	assert_true(b->f.level[PCI_GSI(1)]);
	cfg_write(b, 2, 4, 2, 0x400);
	assert_false(b->f.level[PCI_GSI(1)]);
	cfg_write(b, 2, 4, 2, 0);
	assert_true(b->f.level[PCI_GSI(1)]);
	pci_function_reset(&b->card[1].fn);
	assert_false(b->f.level[PCI_GSI(1)]);
	pci_set_intx(&b->card[2].fn, true);
	assert_true(b->f.level[PCI_GSI(3)]);
}

static void test_caps(void **state)
{
	struct pci_bench *b = *state;
	struct pci_function *fn = &b->card[3].fn;

	assert_int_equal(cfg_read(b, 4, 6, 2) & 0x10, 0);
	assert_int_equal(pci_add_cap(fn, 0x11, 12), 0x40);
	assert_int_equal(pci_add_cap(fn, 0x09, 13), 0x4c);
	assert_int_equal(pci_add_cap(fn, 0x09, 16), 0x5c);
	assert_int_equal(cfg_read(b, 4, 6, 2) & 0x10, 0x10);
	assert_int_equal(cfg_read(b, 4, 0x34, 1), 0x40);
	assert_int_equal(cfg_read(b, 4, 0x40, 2), 0x4c11);
	assert_int_equal(cfg_read(b, 4, 0x4c, 2), 0x5c09);
	assert_int_equal(cfg_read(b, 4, 0x5c, 2), 0x0009);
}

static void test_assign(void **state)
{
	struct pci_bench *b = *state;

	pci_assign(b->pci);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(b->card[i].fn.mapped);
		assert_true(b->card[i].fn.bar_gpa == PCI_BAR_WINDOW + i * UINT64_C(0x4000));
		assert_int_equal(cfg_read(b, i + 1, 4, 2), 6);
		assert_int_equal(cfg_read(b, i + 1, 0x3c, 1), PCI_GSI(i + 1));
	}
	for (unsigned i = 0; i < 4; i++)
		pci_function_reset(&b->card[i].fn);
	b->pci->ops->reset(b->pci);
	for (unsigned i = 0; i < 3; i++) {
		assert_false(b->card[i].fn.mapped);
		assert_int_equal(cfg_read(b, i + 1, BAR, 4), 0);
		assert_int_equal(cfg_read(b, i + 1, 0x3c, 1), 0);
	}
}

/* Two cards change places in one load: whichever comes first, both are mapped in the end. */
static void test_apply_swapped(void **state)
{
	struct pci_bench *b = *state;
	struct pci_function *x = &b->card[0].fn, *y = &b->card[1].fn;
	uint8_t saved_x[256], saved_y[256];

	pci_assign(b->pci);
	memcpy(saved_x, x->config, 256);
	memcpy(saved_y, y->config, 256);
	cfg_write(b, 1, BAR, 4, 0xd0000000);
	cfg_write(b, 2, BAR, 4, PCI_BAR_WINDOW);
	cfg_write(b, 1, BAR, 4, PCI_BAR_WINDOW + 0x4000);
	pci_function_apply(x, saved_x);
	pci_function_apply(y, saved_y);
	assert_true(x->mapped && y->mapped);
	assert_true(x->bar_gpa == PCI_BAR_WINDOW);
	assert_true(y->bar_gpa == PCI_BAR_WINDOW + 0x4000);
}

static void test_check(void **state)
{
	struct pci_bench *b = *state;
	struct pci_function *fn = &b->card[0].fn;
	uint8_t saved[256], bad[256];

	pci_assign(b->pci);
	memcpy(saved, fn->config, sizeof(saved));
	assert_int_equal(pci_function_check(fn, saved, NULL), 0);
	for (unsigned bit = 0; bit < 256 * 8; bit++) {
		struct img_error err = { 0 };
		bool writable = fn->writable[bit / 8] >> (bit % 8) & 1;

		memcpy(bad, saved, sizeof(bad));
		bad[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_equal(pci_function_check(fn, bad, &err), writable ? 0 : IMG_E_UNSUPPORTED);
	}
}

static void test_state(void **state)
{
	struct pci_bench *b = *state;
	uint8_t saved[512];
	size_t bytes;

	out(&b->f, 0xcf8, 4, 0x80000810);
	outb(&b->f, 0xcf9, 2);
	bytes = fixture_save(b->pci, saved, sizeof(saved));
	assert_int_equal(bytes, 4 + 1 + PCI_STATE_BYTES);
	b->pci->ops->reset(b->pci);
	assert_int_equal(in(&b->f, 0xcf8, 4), 0);
	assert_int_equal(fixture_load(b->pci, saved, bytes), 0);
	assert_int_equal(in(&b->f, 0xcf8, 4), 0x80000810);
	assert_int_equal(inb(&b->f, 0xcf9), 2);
	fixture_hostile_state(b->pci, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_mechanism, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset_control, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bar, setup, teardown),
		cmocka_unit_test_setup_teardown(test_overlap, setup, teardown),
		cmocka_unit_test_setup_teardown(test_intx, setup, teardown),
		cmocka_unit_test_setup_teardown(test_caps, setup, teardown),
		cmocka_unit_test_setup_teardown(test_assign, setup, teardown),
		cmocka_unit_test_setup_teardown(test_apply_swapped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_check, setup, teardown),
		cmocka_unit_test_setup_teardown(test_state, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
