/* SPDX-License-Identifier: MIT */
/* The serial port as drivers look at it: how Linux and SeaBIOS recognise it, interrupts, full rings, saved state. */
#include "platform_fixture.h"

#include <sched.h>

#include "platform.h"

#define PORT 0x3f8u
#define GSI  4u
enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };
#define FCR IIR

#define TX_BYTES   65536u
#define WIRE_BYTES 256u

struct serial_bench {
	struct fixture f;
	struct device *serial;
};

static int setup(void **state)
{
	struct serial_bench *b = calloc(1, sizeof(*b));

	fixture_init(&b->f);
	b->serial = serial_create(&b->f.bus, &b->f.host);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct serial_bench *b = *state;

	bus_free(&b->f.bus);
	free(b);
	return 0;
}

static uint8_t get(struct serial_bench *b, unsigned reg)
{
	return inb(&b->f, PORT + reg);
}

static void put(struct serial_bench *b, unsigned reg, unsigned v)
{
	outb(&b->f, PORT + reg, v);
}

static size_t input(struct serial_bench *b, const char *text)
{
	return serial_input(b->serial, &b->f.bus, text, strlen(text));
}

/* What SeaBIOS 1.16 asks before it believes in a port. */
static void test_seabios_detects(void **state)
{
	struct serial_bench *b = *state;

	put(b, IER, 0x02);
	assert_int_equal(get(b, IER), 0x02);
	assert_int_equal(get(b, IIR), 0x02);
	put(b, IER, 0x00);
}

/* What Linux's 8250 driver asks on its way to "16550A". */
static void test_linux_detects(void **state)
{
	struct serial_bench *b = *state;
	uint8_t mcr, with;

	put(b, IER, 0);
	assert_int_equal(get(b, IER) & 0x0f, 0);
	put(b, IER, 0x0f);
	assert_int_equal(get(b, IER) & 0x0f, 0x0f);
	put(b, IER, 0);
	mcr = get(b, MCR);
	put(b, MCR, 0x1a);
	assert_int_equal(get(b, MSR) & 0xf0, 0x90);
	put(b, MCR, mcr);
	put(b, LCR, 0xbf);
	put(b, FCR, 0);
	put(b, LCR, 0);
	put(b, FCR, 1);
	assert_int_equal(get(b, IIR) >> 6, 3);
	/* no EFR, no 64-byte FIFO, no XScale bit */
	put(b, LCR, 0x80);
	assert_int_not_equal(get(b, IIR), 0);
	put(b, LCR, 0xbf);
	assert_int_not_equal(get(b, IIR), 0);
	put(b, LCR, 0);
	put(b, FCR, 0x21);
	with = get(b, IIR) & 0xe0;
	assert_int_equal(with, 0xc0);
	put(b, IER, 0x40);
	assert_int_equal(get(b, IER), 0);
	/* THRE test at startup: each enabling is a request */
	put(b, IER, 0x02);
	assert_int_equal(get(b, IIR) & 0x0f, 0x02);
	put(b, IER, 0);
	put(b, IER, 0x02);
	assert_int_equal(get(b, IIR) & 0x0f, 0x02);
	assert_int_equal(get(b, IIR) & 0x0f, 0x01);
}

static void test_divisor_and_scratch(void **state)
{
	struct serial_bench *b = *state;

	assert_int_equal(get(b, LSR), 0x60);
	put(b, LCR, 0x83);
	put(b, DATA, 0x34);
	put(b, IER, 0x12);
	assert_int_equal(get(b, DATA), 0x34);
	assert_int_equal(get(b, IER), 0x12);
	put(b, LCR, 0x03);
	assert_int_equal(get(b, IER), 0);
	assert_int_equal(get(b, LCR), 0x03);
	put(b, SCR, 0xa5);
	assert_int_equal(get(b, SCR), 0xa5);
	put(b, LSR, 0);
	put(b, MSR, 0);
	assert_int_equal(get(b, LSR), 0x60);
	assert_int_equal(in(&b->f, PORT, 2), 0xffff);
	out(&b->f, PORT, 2, 0x4141);
	assert_int_equal(b->f.events[MACHINE_SERIAL], 0);
}

static void test_output(void **state)
{
	struct serial_bench *b = *state;
	char buf[16];

	put(b, DATA, 'a');
	put(b, DATA, 'b');
	put(b, DATA, 'c');
	assert_int_equal(b->f.events[MACHINE_SERIAL], 1); /* only when the first byte came */
	assert_int_equal(serial_fetch(b->serial, buf, 2), 2);
	assert_memory_equal(buf, "ab", 2);
	put(b, DATA, 'd');
	assert_int_equal(b->f.events[MACHINE_SERIAL], 1);
	assert_int_equal(serial_fetch(b->serial, buf, sizeof(buf)), 2);
	assert_memory_equal(buf, "cd", 2);
	assert_int_equal(serial_fetch(b->serial, buf, sizeof(buf)), 0);
	put(b, DATA, 'e');
	assert_int_equal(b->f.events[MACHINE_SERIAL], 2);
	/* reset and load do not take away what was said */
	b->serial->ops->reset(b->serial);
	assert_int_equal(serial_fetch(b->serial, buf, sizeof(buf)), 1);
	assert_int_equal(b->f.calls[GSI], 0); /* nobody asked for interrupts */
}

/* A driver that sends by interrupt gets an edge for each FIFO it fills. */
static void test_output_by_interrupt(void **state)
{
	struct serial_bench *b = *state;
	char buf[64];

	put(b, FCR, 1);
	put(b, IER, 0x02);
	assert_int_equal(b->f.edges[GSI], 1);
	for (unsigned round = 1; round <= 3; round++) {
		assert_int_equal(get(b, IIR), 0xc2);
		assert_false(b->f.level[GSI]);
		for (unsigned i = 0; i < 16; i++)
			put(b, DATA, 'x');
		assert_true(b->f.level[GSI]);
		assert_int_equal(b->f.edges[GSI], round + 1);
	}
	assert_int_equal(b->f.calls[GSI], 7); /* two calls for 16 bytes */
	put(b, IER, 0);
	assert_false(b->f.level[GSI]);
	assert_int_equal(serial_fetch(b->serial, buf, sizeof(buf)), 48);
}

static void test_full_output(void **state)
{
	struct serial_bench *b = *state;
	static char buf[TX_BYTES];
	unsigned edges;

	put(b, IER, 0x02);
	for (unsigned i = 0; i < TX_BYTES; i++) {
		assert_int_equal(get(b, LSR), 0x60);
		put(b, DATA, i * 7 & 0xff);
	}
	assert_int_equal(get(b, LSR), 0);
	assert_false(b->f.level[GSI]);
	put(b, DATA, 0x55); /* does not look: lost */
	edges = b->f.edges[GSI];
	assert_int_equal(serial_fetch(b->serial, buf, 100), 100);
	assert_int_equal(get(b, LSR), 0); /* not for a few bytes */
	assert_int_equal(serial_fetch(b->serial, buf + 100, TX_BYTES / 2), TX_BYTES / 2);
	assert_int_equal(get(b, LSR), 0x60);
	assert_int_equal(b->f.edges[GSI], edges + 1);
	/* the end of the ring and its start */
	for (unsigned i = 0; i < 1000; i++)
		put(b, DATA, (TX_BYTES + i) * 7 & 0xff);
	for (unsigned i = 0; i < 100 + TX_BYTES / 2; i++)
		assert_int_equal((uint8_t)buf[i], i * 7 & 0xff);
	assert_int_equal(serial_fetch(b->serial, buf, TX_BYTES), TX_BYTES / 2 - 100 + 1000);
	for (unsigned i = 0; i < TX_BYTES / 2 - 100 + 1000; i++)
		assert_int_equal((uint8_t)buf[i], (100 + TX_BYTES / 2 + i) * 7 & 0xff);
}

static void test_input(void **state)
{
	struct serial_bench *b = *state;

	put(b, FCR, 0x81); /* FIFO, trigger at 8 */
	put(b, IER, 0x01);
	assert_int_equal(input(b, "1234567"), 7);
	assert_true(b->f.level[GSI]);
	assert_int_equal(get(b, IIR), 0xcc); /* below the trigger: timed out */
	assert_int_equal(input(b, "8"), 1);
	assert_int_equal(get(b, IIR), 0xc4);
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(get(b, LSR), 0x61);
		assert_int_equal(get(b, DATA), '1' + i);
	}
	assert_int_equal(get(b, LSR), 0x60);
	assert_false(b->f.level[GSI]);
	assert_int_equal(get(b, IIR), 0xc1);
	assert_int_equal(get(b, DATA), 0);
	/* the receiver comes before the transmitter */
	put(b, IER, 0x03);
	input(b, "x");
	assert_int_equal(get(b, IIR), 0xcc);
	get(b, DATA);
	assert_int_equal(get(b, IIR), 0xc2);
	/* clearing drops what a FIFO holds, not what is on its way */
	input(b, "0123456789abcdefGH");
	put(b, FCR, 0x03);
	assert_int_equal(get(b, DATA), 'G');
}

static void test_full_input(void **state)
{
	struct serial_bench *b = *state;
	char text[WIRE_BYTES + 50];

	memset(text, 'z', sizeof(text));
	assert_int_equal(serial_input(b->serial, &b->f.bus, text, sizeof(text)), WIRE_BYTES);
	assert_int_equal(serial_input(b->serial, &b->f.bus, text, 1), 0);
	for (unsigned i = 0; i < WIRE_BYTES / 2 - 1; i++)
		get(b, DATA);
	assert_int_equal(b->f.events[MACHINE_SERIAL], 0);
	get(b, DATA);
	assert_int_equal(b->f.events[MACHINE_SERIAL], 1);
	for (unsigned i = 0; i < WIRE_BYTES / 2; i++)
		assert_int_equal(get(b, DATA), 'z');
	assert_int_equal(b->f.events[MACHINE_SERIAL], 1); /* asked once, told once */
	assert_int_equal(get(b, LSR), 0x60);
}

static void test_loopback(void **state)
{
	struct serial_bench *b = *state;
	char buf[4];

	put(b, MCR, 0x10);
	put(b, DATA, 0xae);
	assert_int_equal(get(b, LSR), 0x61);
	assert_int_equal(get(b, DATA), 0xae);
	assert_int_equal(serial_fetch(b->serial, buf, sizeof(buf)), 0);
	assert_int_equal(input(b, "x"), 0);
	get(b, MSR);
	put(b, IER, 0x08);
	put(b, MCR, 0x15); /* DTR, OUT1: DSR, RI */
	assert_int_equal(get(b, IIR), 0x00);
	assert_int_equal(get(b, MSR), 0x62); /* RI's delta only when it goes */
	assert_int_equal(get(b, IIR), 0x01);
	put(b, MCR, 0x10);
	assert_int_equal(get(b, MSR), 0x06);
	put(b, MCR, 0);
	assert_int_equal(get(b, MSR) & 0xf0, 0xb0);
	assert_int_equal(input(b, "x"), 1);
}

static void test_state(void **state)
{
	struct serial_bench *b = *state;
	uint8_t saved[512];
	size_t bytes;

	put(b, LCR, 0x80);
	put(b, DATA, 1);
	put(b, LCR, 0x03);
	put(b, FCR, 0x41);
	put(b, MCR, 0x0b);
	put(b, IER, 0x05);
	put(b, SCR, 0x77);
	input(b, "typed ahead");
	get(b, DATA);
	bytes = fixture_save(b->serial, saved, sizeof(saved));
	b->serial->ops->reset(b->serial);
	assert_int_equal(get(b, LSR), 0x60);
	assert_false(b->f.level[GSI]);
	assert_int_equal(get(b, MCR), 0);
	assert_int_equal(fixture_load(b->serial, saved, bytes), 0);
	assert_true(b->f.level[GSI]);
	assert_int_equal(get(b, MCR), 0x0b);
	assert_int_equal(get(b, IER), 0x05);
	assert_int_equal(get(b, SCR), 0x77);
	assert_int_equal(get(b, LCR), 0x03);
	assert_int_equal(get(b, IIR), 0xc4);
	assert_int_equal(get(b, DATA), 'y');
	put(b, LCR, 0x80);
	assert_int_equal(get(b, DATA), 1);
	put(b, LCR, 0);
	fixture_hostile_state(b->serial, 0);
}

/* Saved while nobody fetched: where it is loaded there is room, and the guest must hear of it. */
static void test_state_of_full_output(void **state)
{
	struct serial_bench *b = *state;
	static char buf[TX_BYTES];
	uint8_t saved[512];
	size_t bytes;

	put(b, IER, 0x02);
	for (unsigned i = 0; i < TX_BYTES; i++)
		put(b, DATA, 'x');
	bytes = fixture_save(b->serial, saved, sizeof(saved));
	/* into the same: still full */
	assert_int_equal(fixture_load(b->serial, saved, bytes), 0);
	assert_int_equal(get(b, LSR), 0);
	assert_false(b->f.level[GSI]);
	assert_int_equal(serial_fetch(b->serial, buf, sizeof(buf)), TX_BYTES);
	assert_true(b->f.level[GSI]);
	assert_int_equal(get(b, IIR), 0x02);
	assert_false(b->f.level[GSI]);
	/* into an empty one */
	assert_int_equal(fixture_load(b->serial, saved, bytes), 0);
	assert_true(b->f.level[GSI]);
	assert_int_equal(get(b, LSR), 0x60);
}

struct fetcher {
	struct serial_bench *bench;
	unsigned nr_bytes, nr_wrong;
};

static void *fetch_all(void *arg)
{
	struct fetcher *f = arg;
	uint8_t buf[777];

	for (unsigned at = 0; at < f->nr_bytes;) {
		size_t nr = serial_fetch(f->bench->serial, buf, sizeof(buf));

		for (size_t i = 0; i < nr; i++, at++)
			f->nr_wrong += buf[i] != (uint8_t)(at * 7 >> 2);
		if (nr == 0)
			sched_yield();
	}
	return NULL;
}

/* A guest that waits for THRE and a host that fetches when it likes: nothing is lost, and both come to an end. */
static void test_threads(void **state)
{
	struct serial_bench *b = *state;
	struct fetcher f = { .bench = b, .nr_bytes = 4 * TX_BYTES + 123 };
	pthread_t thread;

	put(b, IER, 0x02);
	assert_int_equal(pthread_create(&thread, NULL, fetch_all, &f), 0);
	for (unsigned i = 0; i < f.nr_bytes; i++) {
		while (!(get(b, LSR) & 0x20))
			sched_yield();
		put(b, DATA, i * 7 >> 2 & 0xff);
	}
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(f.nr_wrong, 0);
	assert_true(b->f.level[GSI]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_seabios_detects, setup, teardown),
		cmocka_unit_test_setup_teardown(test_linux_detects, setup, teardown),
		cmocka_unit_test_setup_teardown(test_divisor_and_scratch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_output, setup, teardown),
		cmocka_unit_test_setup_teardown(test_output_by_interrupt, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_output, setup, teardown),
		cmocka_unit_test_setup_teardown(test_input, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_input, setup, teardown),
		cmocka_unit_test_setup_teardown(test_loopback, setup, teardown),
		cmocka_unit_test_setup_teardown(test_state, setup, teardown),
		cmocka_unit_test_setup_teardown(test_state_of_full_output, setup, teardown),
		cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
