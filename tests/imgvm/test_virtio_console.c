/* SPDX-License-Identifier: MIT */
/* The console, and the source of random numbers beside it: what goes out, what comes in, and what a guest may not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "virtio_driver.h"

#define WAIT_MS 5000
#define NOT_MS	30

enum { RECEIVE, TRANSMIT };

struct fixture {
	struct board b;
	struct virtio *console;
	struct driver d, rng;
	pthread_mutex_t lock;
	char out[1 << 16]; /* lock */
	size_t nr_out;	   /* lock */
};

static void take_output(void *ctx, const void *data, size_t bytes)
{
	struct fixture *f = ctx;

	pthread_mutex_lock(&f->lock);
	assert_true(f->nr_out + bytes <= sizeof(f->out));
	memcpy(f->out + f->nr_out, data, bytes);
	f->nr_out += bytes;
	pthread_mutex_unlock(&f->lock);
}

static int setup(void **state)
{
	static struct fixture f;
	struct virtio_console_options opts = { .out = take_output, .ctx = &f };

	memset(&f, 0, sizeof(f));
	pthread_mutex_init(&f.lock, NULL);
	board_init(&f.b);
	f.console = virtio_console_create(&opts, &f.b.bus, f.b.pci, &f.b.host, &f.b.mem, NULL);
	assert_non_null(f.console);
	f.b.no_ioeventfd = true;
	assert_non_null(virtio_rng_create(&f.b.bus, f.b.pci, &f.b.host, &f.b.mem, NULL));
	for (unsigned i = 0; i < f.b.bus.nr_devices; i++) {
		if (f.b.bus.device[i]->ops->resume)
			f.b.bus.device[i]->ops->resume(f.b.bus.device[i]);
	}
	driver_attach(&f.d, &f.b, 1);
	driver_attach(&f.rng, &f.b, 2);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	board_free(&f->b);
	pthread_mutex_destroy(&f->lock);
	return 0;
}

static void send(struct fixture *f, uint64_t gpa, uint32_t bytes)
{
	uint32_t head, len;

	driver_desc(&f->d, TRANSMIT, 0, gpa, bytes, 0, 0);
	driver_offer(&f->d, TRANSMIT, 0);
	driver_kick(&f->d, TRANSMIT);
	assert_true(driver_wait(&f->d, TRANSMIT, WAIT_MS, &head, &len));
	assert_int_equal(len, 0);
}

static void give_buffer(struct fixture *f, uint32_t bytes)
{
	driver_desc(&f->d, RECEIVE, 0, DRIVER_DATA, bytes, D_WRITE, 0);
	driver_offer(&f->d, RECEIVE, 0);
	driver_kick(&f->d, RECEIVE);
}

static void identity(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(config_read(&f->b, 1, 0, 4), 0x10431af4);
	assert_int_equal(config_read(&f->b, 2, 0, 4), 0x10441af4);
	assert_int_equal(reg_read(&f->d, R_NUM_QUEUES, 2), 2);
	assert_int_equal(reg_read(&f->rng, R_NUM_QUEUES, 2), 1);
}

static void output(void **state)
{
	struct fixture *f = *state;

	assert_true(driver_start(&f->d, 0));
	memcpy(driver_ptr(&f->d, DRIVER_DATA), "hello, world", 12);
	send(f, DRIVER_DATA, 5);
	send(f, DRIVER_DATA + 5, 7);
	assert_int_equal(f->nr_out, 12);
	assert_memory_equal(f->out, "hello, world", 12);
	memset(driver_ptr(&f->d, DRIVER_DATA), 'x', 5000);
	send(f, DRIVER_DATA, 5000);
	assert_int_equal(f->nr_out, 5012);
	assert_int_equal(f->out[5011], 'x');
}

static void endless_output(void **state)
{
	struct fixture *f = *state;
	struct img_error why;

	assert_true(driver_start(&f->d, 0));
	driver_desc(&f->d, TRANSMIT, 0, DRIVER_DATA, 2 << 20, 0, 0);
	driver_offer(&f->d, TRANSMIT, 0);
	driver_kick(&f->d, TRANSMIT);
	assert_true(DRIVER_UNTIL(virtio_is_broken(f->console, &why), WAIT_MS));
	assert_int_equal(f->nr_out, 0);
}

static void input(void **state)
{
	struct fixture *f = *state;
	char many[10000];
	uint32_t head, len;

	/* without a driver it goes nowhere, and does not fill anything up */
	assert_int_equal(virtio_console_input(f->console, "lost", 4), 4);
	assert_true(driver_start(&f->d, 0));
	give_buffer(f, 8);
	assert_false(driver_wait(&f->d, RECEIVE, NOT_MS, &head, &len));
	assert_int_equal(virtio_console_input(f->console, "ab", 2), 2);
	assert_true(driver_wait(&f->d, RECEIVE, WAIT_MS, &head, &len));
	assert_int_equal(len, 2);
	assert_memory_equal(driver_ptr(&f->d, DRIVER_DATA), "ab", 2);
	/* more than a buffer, and more than we keep */
	for (unsigned i = 0; i < sizeof(many); i++)
		many[i] = (char)i;
	assert_int_equal(virtio_console_input(f->console, many, sizeof(many)), 4096);
	assert_int_equal(virtio_console_input(f->console, many, sizeof(many)), 0);
	give_buffer(f, 1000);
	assert_true(driver_wait(&f->d, RECEIVE, WAIT_MS, &head, &len));
	assert_int_equal(len, 1000);
	/* around the end of the ring */
	assert_int_equal(virtio_console_input(f->console, many + 4096, 1000), 1000);
	give_buffer(f, 8000);
	assert_true(driver_wait(&f->d, RECEIVE, WAIT_MS, &head, &len));
	assert_int_equal(len, 4096);
	assert_memory_equal(driver_ptr(&f->d, DRIVER_DATA), many + 1000, 4096);
}

static void random_numbers(void **state)
{
	static const uint8_t zero[64];
	struct fixture *f = *state;
	uint32_t head, len;

	assert_true(driver_start(&f->rng, 0));
	for (unsigned i = 0; i < 3; i++) {
		const uint32_t asked[] = { 64, 256, 100000 };

		memset(driver_ptr(&f->rng, DRIVER_DATA), 0, 0x1000);
		driver_desc(&f->rng, 0, 0, DRIVER_DATA, asked[i], D_WRITE, 0);
		driver_offer(&f->rng, 0, 0);
		driver_kick(&f->rng, 0);
		assert_true(driver_wait(&f->rng, 0, WAIT_MS, &head, &len));
		assert_in_range(len, 64, asked[i]);
		assert_memory_not_equal(driver_ptr(&f->rng, DRIVER_DATA), zero, 64);
	}
}

/* The two may share a line: it is high until both are content. */
static void lines(void **state)
{
	struct fixture *f = *state;
	uint32_t head, len;

	assert_true(driver_start(&f->d, 0));
	assert_true(driver_start(&f->rng, 0));
	memcpy(driver_ptr(&f->d, DRIVER_DATA), "x", 1);
	send(f, DRIVER_DATA, 1);
	driver_desc(&f->rng, 0, 0, DRIVER_DATA, 64, D_WRITE, 0);
	driver_offer(&f->rng, 0, 0);
	driver_kick(&f->rng, 0);
	assert_true(driver_wait(&f->rng, 0, WAIT_MS, &head, &len));
	/* an interrupt comes a moment after the used index */
	usleep(NOT_MS * 1000);
	assert_true(board_line(&f->b, PCI_GSI(1)));
	assert_true(board_line(&f->b, PCI_GSI(2)));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 1);
	assert_true(board_line(&f->b, PCI_GSI(2)));
	assert_int_equal(board_line(&f->b, PCI_GSI(1)), PCI_GSI(1) == PCI_GSI(2));
	assert_int_equal(mmio_read(&f->b, f->rng.bar + f->rng.isr, 1), 1);
	assert_false(board_line(&f->b, PCI_GSI(1)));
	assert_false(board_line(&f->b, PCI_GSI(2)));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	static const struct CMUnitTest tests[] = {
		TEST(identity), TEST(output), TEST(endless_output), TEST(input), TEST(random_numbers), TEST(lines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
