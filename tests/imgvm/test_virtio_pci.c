/* SPDX-License-Identifier: MIT */
/* The transport, driven through configuration space and registers as a guest does, over a device that echoes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>

#include "virtio_driver.h"

#define ECHO_TAG     STATE_TAG('E', 'C', 'H', 'O')
#define F_INDIRECT   (UINT64_C(1) << 28)
#define F_EVENT_IDX  (UINT64_C(1) << 29)
#define F_OWN	     UINT64_C(0x5) /* what the kind offers */
#define STATE_BYTES  8192u
#define SLOT_OF_ECHO 1u
#define WAIT_MS	     5000
#define NOT_MS	     30 /* to see that nothing happens */

/* Copies what it reads to what it writes. */
struct echo {
	atomic_uint handled;
	atomic_uint entered;
	atomic_bool gate;     /* closed: a request stays in hand */
	atomic_uint later_ns; /* not 0: the next request is put off once by that */
};

static struct echo echo;

static bool echo_handle(struct virtio *v, unsigned queue)
{
	struct virtqueue *vq = virtio_queue(v, queue);
	static struct virtqueue_chain chain;
	struct img_error why = { 0 };
	unsigned later;
	uint8_t buf[256];
	size_t n;
	int got;

	virtqueue_enable_kick(vq, false);
	got = virtqueue_pop(vq, &chain, &why);
	if (got == 0)
		return virtqueue_enable_kick(vq, true);
	if (got < 0) {
		virtio_broken(v, &why);
		return false;
	}
	later = atomic_exchange(&echo.later_ns, 0);
	if (later) {
		virtqueue_unpop(vq);
		virtio_look_later(v, queue, later);
		return false;
	}
	atomic_fetch_add(&echo.entered, 1);
	while (atomic_load(&echo.gate))
		sched_yield();
	n = virtqueue_copy_out(&chain, 0, buf, sizeof(buf));
	n = virtqueue_copy_in(&chain, 0, buf, n);
	virtqueue_push(vq, &chain, (uint32_t)n);
	atomic_fetch_add(&echo.handled, 1);
	virtio_notify_guest(v, queue);
	return true;
}

static void echo_config(struct virtio *v, uint8_t *config)
{
	(void)v;
	for (unsigned i = 0; i < 8; i++)
		config[i] = (uint8_t)(0x11 * (i + 1));
}

static const struct virtio_kind kind = {
	.name = "echo",
	.virtio_id = 9,
	.class_rev = 0x00ff0000,
	.tag = ECHO_TAG,
	.nr_queues = 2,
	.queue_size = 64,
	.features = F_OWN,
	.handle = echo_handle,
	.config = echo_config,
};

struct fixture {
	struct board b;
	struct virtio *v;
	struct driver d;
};

static struct device *dev_of(struct fixture *f)
{
	return f->b.bus.device[f->b.bus.nr_devices - 1];
}

static void build(struct fixture *f)
{
	board_init(&f->b);
	f->v = virtio_create(&kind, &f->b.bus, f->b.pci, &f->b.host, &f->b.mem, NULL, NULL);
	assert_non_null(f->v);
	dev_of(f)->ops->resume(dev_of(f));
	driver_attach(&f->d, &f->b, SLOT_OF_ECHO);
}

static int setup(void **state)
{
	static struct fixture f;

	memset(&echo, 0, sizeof(echo));
	build(&f);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	atomic_store(&echo.gate, false);
	board_free(&f->b);
	return 0;
}

static void set_features(struct fixture *f, uint64_t features)
{
	assert_true(driver_start(&f->d, features));
}

static void offer(struct fixture *f, unsigned queue, const char *text)
{
	uint64_t at = DRIVER_DATA + queue * 0x1000u;
	size_t bytes = strlen(text);

	memcpy(driver_ptr(&f->d, at), text, bytes);
	driver_desc(&f->d, queue, 0, at, (uint32_t)bytes, D_NEXT, 1);
	driver_desc(&f->d, queue, 1, at + 0x800, 100, D_WRITE, 0);
	driver_offer(&f->d, queue, 0);
}

static void assert_echoed(struct fixture *f, unsigned queue, const char *text)
{
	uint32_t head, len;

	assert_true(driver_wait(&f->d, queue, WAIT_MS, &head, &len));
	assert_int_equal(head, 0);
	assert_int_equal(len, strlen(text));
	assert_memory_equal(driver_ptr(&f->d, DRIVER_DATA + queue * 0x1000u + 0x800), text, len);
}

static void roundtrip(struct fixture *f, unsigned queue, const char *text)
{
	offer(f, queue, text);
	driver_kick(&f->d, queue);
	assert_echoed(f, queue, text);
}

static void assert_nothing(struct fixture *f, unsigned queue)
{
	uint32_t head, len;

	assert_false(driver_wait(&f->d, queue, NOT_MS, &head, &len));
}

/* ---- configuration space ---- */

static void configuration_space(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(config_read(&f->b, 1, 0, 4), 0x10491af4);
	assert_int_equal(config_read(&f->b, 1, 8, 4), 0x00ff0001);
	assert_int_equal(config_read(&f->b, 1, 0x2c, 2), 0x1af4);
	assert_true(config_read(&f->b, 1, 0x2e, 2) >= 0x40);
	assert_int_equal(config_read(&f->b, 1, 0x3d, 1), 1);
	assert_true(config_read(&f->b, 1, 6, 2) & 0x10);
	assert_int_equal(f->d.common, 0);
	assert_int_equal(f->d.isr, 0x1000);
	assert_int_equal(f->d.device, 0x2000);
	assert_int_equal(f->d.notify, 0x3000);
	assert_int_equal(f->d.notify_step, 4);
	/* three vectors; the table at 0x3800, pending bits at 0x3c00, both in BAR 0 */
	assert_int_equal(config_read(&f->b, 1, f->d.msix + 2, 2), 2);
	assert_int_equal(config_read(&f->b, 1, f->d.msix + 4, 4), 0x3800);
	assert_int_equal(config_read(&f->b, 1, f->d.msix + 8, 4), 0x3c00);
	config_write(&f->b, 1, 0x10, 4, 0xffffffff);
	assert_int_equal(config_read(&f->b, 1, 0x10, 4), 0xffffc000);
}

static void widths(void **state)
{
	static const struct {
		unsigned off, bytes;
	} reg[] = { { R_FEATURE_SELECT, 4 }, { R_FEATURE, 4 },	    { R_DRIVER_FEATURE, 4 }, { R_CONFIG_VECTOR, 2 },
		    { R_NUM_QUEUES, 2 },     { R_STATUS, 1 },	    { R_GENERATION, 1 },     { R_QUEUE_SELECT, 2 },
		    { R_QUEUE_SIZE, 2 },     { R_QUEUE_VECTOR, 2 }, { R_QUEUE_ENABLE, 2 },   { R_NOTIFY_OFF, 2 },
		    { R_DESC, 4 },	     { R_DESC + 4, 4 },	    { R_DEVICE + 4, 4 } };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(reg) / sizeof(reg[0]); i++) {
		uint64_t before = reg_read(&f->d, reg[i].off, reg[i].bytes);

		assert_int_not_equal(before, UINT64_MAX >> (64 - 8 * reg[i].bytes) == before ? 0 : UINT64_MAX);
		for (unsigned bytes = 1; bytes <= 8; bytes *= 2) {
			if (bytes == reg[i].bytes)
				continue;
			assert_int_equal(reg_read(&f->d, reg[i].off, bytes), UINT64_MAX >> (64 - 8 * bytes));
			reg_write(&f->d, reg[i].off, bytes, 1);
		}
		assert_int_equal(reg_read(&f->d, reg[i].off, reg[i].bytes), before);
	}
	/* between two registers, behind the last one, and in what is reserved */
	assert_int_equal(reg_read(&f->d, R_FEATURE + 2, 2), 0xffff);
	assert_int_equal(reg_read(&f->d, 0x38, 4), 0xffffffff);
	assert_int_equal(reg_read(&f->d, 0xfff, 1), 0xff);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.notify, 2), 0xffff);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 2), 0xffff);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr + 1, 1), 0xff);
	/* the device's own: 1, 2 and 4 bytes, aligned */
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.device + 4, 4), 0x88776655);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.device + 2, 2), 0x4433);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.device + 1, 1), 0x22);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.device + 1, 2), 0xffff);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.device, 8), UINT64_MAX);
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.device + 64, 4), 0xffffffff);
}

/* Every place of the BAR in every width, with several values, in several states: nothing but survival is asked for. */
static void every_register(void **state)
{
	static const uint64_t values[] = { 0, 1, 2, 0x80, UINT64_MAX };
	struct fixture *f = *state;

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned off = 0; off < VIRTIO_BAR_BYTES; off++) {
			for (unsigned bytes = 1; bytes <= 8; bytes *= 2) {
				mmio_read(&f->b, f->d.bar + off, bytes);
				for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
					mmio_write(&f->b, f->d.bar + off, bytes, values[i]);
			}
		}
		set_features(f, F_EVENT_IDX);
	}
	set_features(f, 0);
	roundtrip(f, 0, "alive");
}

/* ---- features and status ---- */

static void features(void **state)
{
	struct fixture *f = *state;
	uint64_t offered = driver_offered(&f->d);

	assert_int_equal(offered, F_VERSION_1 | F_INDIRECT | F_EVENT_IDX | F_OWN);
	reg_write(&f->d, R_FEATURE_SELECT, 4, 2);
	assert_int_equal(reg_read(&f->d, R_FEATURE, 4), 0);
	assert_false(driver_negotiate(&f->d, F_OWN) & S_FEATURES_OK);
	assert_false(driver_negotiate(&f->d, F_VERSION_1 | 2) & S_FEATURES_OK);
	assert_int_equal(virtio_features(f->v), 0);
	/* and what is refused leads nowhere */
	reg_write(&f->d, R_STATUS, 1, 7);
	assert_int_equal(reg_read(&f->d, R_STATUS, 1), 3);
	assert_true(driver_negotiate(&f->d, F_VERSION_1 | 1) & S_FEATURES_OK);
	assert_int_equal(virtio_features(f->v), F_VERSION_1 | 1);
	/* frozen from here on */
	reg_write(&f->d, R_DRIVER_SELECT, 4, 0);
	reg_write(&f->d, R_DRIVER_FEATURE, 4, 5);
	assert_int_equal(reg_read(&f->d, R_DRIVER_FEATURE, 4), 1);
	/* bits of the status do not go, and NEEDS_RESET is the device's */
	reg_write(&f->d, R_STATUS, 1, 0x71);
	assert_int_equal(reg_read(&f->d, R_STATUS, 1), 11);
	reg_write(&f->d, R_STATUS, 1, 0);
	assert_int_equal(reg_read(&f->d, R_STATUS, 1), 0);
	assert_int_equal(virtio_features(f->v), 0);
}

static void queue_registers(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(reg_read(&f->d, R_NUM_QUEUES, 2), 2);
	reg_write(&f->d, R_QUEUE_SELECT, 2, 2);
	assert_int_equal(reg_read(&f->d, R_QUEUE_SIZE, 2), 0);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 0);
	reg_write(&f->d, R_QUEUE_SIZE, 2, 4);
	reg_write(&f->d, R_QUEUE_VECTOR, 2, 1);
	reg_write(&f->d, R_QUEUE_ENABLE, 2, 1);
	driver_set_address(&f->d, R_DESC, 0x1000);
	reg_write(&f->d, R_QUEUE_SELECT, 2, 1);
	assert_int_equal(reg_read(&f->d, R_QUEUE_SIZE, 2), 64);
	assert_int_equal(reg_read(&f->d, R_NOTIFY_OFF, 2), 1);
	assert_int_equal(reg_read(&f->d, R_DESC, 4), 0);
	/* not before FEATURES_OK */
	driver_queue(&f->d, 1);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 0);
	assert_true(driver_negotiate(&f->d, F_VERSION_1) & S_FEATURES_OK);
	reg_write(&f->d, R_QUEUE_SELECT, 2, 1);
	assert_int_equal(reg_read(&f->d, R_QUEUE_SIZE, 2), 64);
	reg_write(&f->d, R_QUEUE_ENABLE, 2, 2);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 0);
	driver_queue(&f->d, 1);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 1);
	/* frozen, and enabled for good */
	reg_write(&f->d, R_QUEUE_SIZE, 2, 4);
	driver_set_address(&f->d, R_DESC, UINT64_C(0x123456789000));
	reg_write(&f->d, R_QUEUE_ENABLE, 2, 0);
	assert_int_equal(reg_read(&f->d, R_QUEUE_SIZE, 2), RING_SIZE);
	assert_int_equal(reg_read(&f->d, R_DESC, 4), RING_DESC(1));
	assert_int_equal(reg_read(&f->d, R_DESC + 4, 4), 0);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 1);
	/* after DRIVER_OK a queue that was left out stays out */
	reg_write(&f->d, R_STATUS, 1, 15);
	driver_queue(&f->d, 0);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 0);
	assert_int_equal(reg_read(&f->d, R_DESC, 4), 0);
}

static void bad_queue(void **state)
{
	struct fixture *f = *state;
	struct img_error why;

	assert_true(driver_negotiate(&f->d, F_VERSION_1) & S_FEATURES_OK);
	assert_false(virtio_is_broken(f->v, &why));
	reg_write(&f->d, R_QUEUE_SELECT, 2, 0);
	reg_write(&f->d, R_QUEUE_SIZE, 2, 48);
	reg_write(&f->d, R_QUEUE_ENABLE, 2, 1);
	assert_int_equal(reg_read(&f->d, R_QUEUE_ENABLE, 2), 0);
	assert_true(reg_read(&f->d, R_STATUS, 1) & S_NEEDS_RESET);
	assert_true(virtio_is_broken(f->v, &why));
	assert_memory_equal(why.msg, "VQ-1", 4);
	set_features(f, 0);
	assert_false(virtio_is_broken(f->v, &why));
	roundtrip(f, 0, "healed");
}

/* ---- requests and interrupts ---- */

static void before_driver_ok(void **state)
{
	struct fixture *f = *state;

	assert_true(driver_negotiate(&f->d, F_VERSION_1) & S_FEATURES_OK);
	driver_queue(&f->d, 0);
	offer(f, 0, "early");
	driver_kick(&f->d, 0);
	assert_nothing(f, 0);
	/* and at once with DRIVER_OK, without another kick */
	reg_write(&f->d, R_STATUS, 1, 15);
	assert_echoed(f, 0, "early");
}

static void pin(void **state)
{
	struct fixture *f = *state;
	unsigned gsi = PCI_GSI(SLOT_OF_ECHO);

	set_features(f, F_EVENT_IDX);
	assert_false(board_line(&f->b, gsi));
	roundtrip(f, 1, "by pin");
	assert_true(DRIVER_UNTIL(board_line(&f->b, gsi), WAIT_MS));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 1);
	assert_false(board_line(&f->b, gsi));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 0);
	virtio_config_changed(f->v);
	assert_true(board_line(&f->b, gsi));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 2);
	/* a reset lowers it as well */
	virtio_config_changed(f->v);
	reg_write(&f->d, R_STATUS, 1, 0);
	assert_false(board_line(&f->b, gsi));
	assert_int_equal(board_nr_msi(&f->b), 0);
}

static void set_vector(struct fixture *f, unsigned i, uint64_t addr, uint32_t data, bool masked)
{
	uint64_t at = f->d.bar + 0x3800 + i * 16u;

	mmio_write(&f->b, at, 4, (uint32_t)addr);
	mmio_write(&f->b, at + 4, 4, addr >> 32);
	mmio_write(&f->b, at + 8, 4, data);
	mmio_write(&f->b, at + 12, 4, masked);
}

static uint16_t use_vector(struct fixture *f, unsigned queue, unsigned vector)
{
	reg_write(&f->d, R_QUEUE_SELECT, 2, queue);
	reg_write(&f->d, R_QUEUE_VECTOR, 2, vector);
	return (uint16_t)reg_read(&f->d, R_QUEUE_VECTOR, 2);
}

static void msix(void **state)
{
	struct fixture *f = *state;
	uint64_t pba = f->d.bar + 0x3c00;

	/* masked after power-on */
	assert_int_equal(mmio_read(&f->b, f->d.bar + 0x3800 + 12, 4), 1);
	config_write(&f->b, 1, f->d.msix + 2, 2, 0x8000);
	assert_int_equal(config_read(&f->b, 1, f->d.msix + 2, 2), 0x8002);
	set_vector(f, 0, 0xfee00000, 0x40, false);
	set_vector(f, 1, UINT64_C(0x1fee01000), 0x41, false);
	assert_int_equal(mmio_read(&f->b, f->d.bar + 0x3810, 8), UINT64_C(0x1fee01000));
	assert_int_equal(mmio_read(&f->b, f->d.bar + 0x3810, 2), 0xffff);
	assert_int_equal(mmio_read(&f->b, f->d.bar + 0x3830, 4), 0xffffffff);
	set_features(f, 0);
	assert_int_equal(use_vector(f, 0, 3), 0xffff);
	assert_int_equal(use_vector(f, 0, 1), 1);
	reg_write(&f->d, R_CONFIG_VECTOR, 2, 0x1234);
	assert_int_equal(reg_read(&f->d, R_CONFIG_VECTOR, 2), 0xffff);
	reg_write(&f->d, R_CONFIG_VECTOR, 2, 0);
	roundtrip(f, 0, "by message");
	assert_true(DRIVER_UNTIL(board_nr_msi(&f->b) == 1, WAIT_MS));
	assert_int_equal(f->b.msi[0].addr, UINT64_C(0x1fee01000));
	assert_int_equal(f->b.msi[0].data, 0x41);
	assert_false(board_line(&f->b, PCI_GSI(1)));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 0);
	virtio_config_changed(f->v);
	assert_int_equal(board_nr_msi(&f->b), 2);
	assert_int_equal(f->b.msi[1].data, 0x40);
	/* behind a mask it waits, once, and comes when the mask goes */
	mmio_write(&f->b, f->d.bar + 0x3800 + 12, 4, 1);
	virtio_config_changed(f->v);
	virtio_config_changed(f->v);
	assert_int_equal(board_nr_msi(&f->b), 2);
	assert_int_equal(mmio_read(&f->b, pba, 8), 1);
	mmio_write(&f->b, pba, 8, 0);
	assert_int_equal(mmio_read(&f->b, pba, 4), 1);
	mmio_write(&f->b, f->d.bar + 0x3800 + 12, 4, 0);
	assert_int_equal(board_nr_msi(&f->b), 3);
	assert_int_equal(mmio_read(&f->b, pba, 8), 0);
	/* the mask of all */
	config_write(&f->b, 1, f->d.msix + 2, 2, 0xc000);
	virtio_config_changed(f->v);
	assert_int_equal(board_nr_msi(&f->b), 3);
	config_write(&f->b, 1, f->d.msix + 2, 2, 0x8000);
	assert_int_equal(board_nr_msi(&f->b), 4);
	/* NO_VECTOR says nothing */
	reg_write(&f->d, R_CONFIG_VECTOR, 2, 0xffff);
	virtio_config_changed(f->v);
	assert_int_equal(board_nr_msi(&f->b), 4);
	/* the reset of the device takes the vectors, not the table */
	reg_write(&f->d, R_CONFIG_VECTOR, 2, 0);
	reg_write(&f->d, R_STATUS, 1, 0);
	assert_int_equal(reg_read(&f->d, R_CONFIG_VECTOR, 2), 0xffff);
	assert_int_equal(mmio_read(&f->b, f->d.bar + 0x3808, 4), 0x40);
}

static void generation(void **state)
{
	struct fixture *f = *state;
	uint64_t before = reg_read(&f->d, R_GENERATION, 1);

	virtio_config_changed(f->v);
	assert_int_equal(reg_read(&f->d, R_GENERATION, 1), (before + 1) & 0xff);
	/* a driver that is not there yet is not interrupted */
	assert_false(board_line(&f->b, PCI_GSI(1)));
}

static void broken_ring(void **state)
{
	struct fixture *f = *state;
	struct img_error why;

	set_features(f, 0);
	driver_desc(&f->d, 0, 0, UINT64_MAX, 8, 0, 0);
	driver_offer(&f->d, 0, 0);
	driver_kick(&f->d, 0);
	assert_true(DRIVER_UNTIL(reg_read(&f->d, R_STATUS, 1) & S_NEEDS_RESET, WAIT_MS));
	assert_true(virtio_is_broken(f->v, &why));
	assert_memory_equal(why.msg, "VQ-8", 4);
	assert_true(DRIVER_UNTIL(board_line(&f->b, PCI_GSI(1)), WAIT_MS));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 2);
	/* all queues rest */
	offer(f, 1, "no");
	driver_kick(&f->d, 1);
	assert_nothing(f, 1);
	set_features(f, 0);
	roundtrip(f, 0, "healed");
}

/* ---- kicks, pauses, resets ---- */

static void ioeventfds(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(f->b.nr_ioeventfds, 2);
	assert_int_equal(f->b.ioeventfd_gpa[1], f->d.bar + 0x3004);
	config_write(&f->b, 1, 0x10, 4, 0xe8000000);
	assert_int_equal(f->b.nr_ioeventfds, 2);
	assert_int_equal(f->b.ioeventfd_gpa[0], 0xe8003000);
	f->d.bar = 0xe8000000;
	set_features(f, 0);
	offer(f, 1, "from the kernel");
	assert_int_equal(write(f->b.ioeventfd[1], &(uint64_t){ 1 }, 8), 8);
	assert_echoed(f, 1, "from the kernel");
	config_write(&f->b, 1, 4, 2, 4);
	assert_int_equal(f->b.nr_ioeventfds, 0);
	assert_int_equal(reg_read(&f->d, R_STATUS, 1), 0xff);
	config_write(&f->b, 1, 4, 2, 6);
	assert_int_equal(f->b.nr_ioeventfds, 2);
	/* a host without them */
	config_write(&f->b, 1, 4, 2, 4);
	f->b.no_ioeventfd = true;
	config_write(&f->b, 1, 4, 2, 6);
	roundtrip(f, 0, "by hand");
}

static void pause_and_resume(void **state)
{
	struct fixture *f = *state;

	set_features(f, F_EVENT_IDX);
	dev_of(f)->ops->pause(dev_of(f));
	offer(f, 0, "wait");
	driver_kick(&f->d, 0);
	assert_nothing(f, 0);
	assert_int_equal(atomic_load(&echo.handled), 0);
	dev_of(f)->ops->resume(dev_of(f));
	assert_echoed(f, 0, "wait");
	/* what came without any kick is seen on resume */
	dev_of(f)->ops->pause(dev_of(f));
	offer(f, 1, "silent");
	dev_of(f)->ops->resume(dev_of(f));
	assert_echoed(f, 1, "silent");
}

static void *open_gate(void *arg)
{
	(void)arg;
	usleep(NOT_MS * 1000);
	atomic_store(&echo.gate, false);
	return NULL;
}

static void enter_request(struct fixture *f)
{
	atomic_store(&echo.gate, true);
	offer(f, 0, "in hand");
	driver_kick(&f->d, 0);
	assert_true(DRIVER_UNTIL(atomic_load(&echo.entered) == 1, WAIT_MS));
}

static void reset_waits(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;

	set_features(f, 0);
	enter_request(f);
	assert_int_equal(pthread_create(&thread, NULL, open_gate, NULL), 0);
	assert_int_equal(atomic_load(&echo.handled), 0);
	reg_write(&f->d, R_STATUS, 1, 0);
	assert_int_equal(atomic_load(&echo.handled), 1);
	pthread_join(thread, NULL);
}

static void pause_waits(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;

	set_features(f, 0);
	enter_request(f);
	assert_int_equal(pthread_create(&thread, NULL, open_gate, NULL), 0);
	dev_of(f)->ops->pause(dev_of(f));
	assert_int_equal(atomic_load(&echo.handled), 1);
	pthread_join(thread, NULL);
}

/* A guest that never leaves the worker without work does not keep it from pausing. */
static void pause_busy(void **state)
{
	struct fixture *f = *state;

	set_features(f, 0);
	for (unsigned i = 0; i < 200; i++) {
		offer(f, 0, "x");
		offer(f, 1, "y");
		driver_kick(&f->d, 0);
		dev_of(f)->ops->pause(dev_of(f));
		dev_of(f)->ops->resume(dev_of(f));
		assert_echoed(f, 0, "x");
		assert_echoed(f, 1, "y");
	}
}

static void later(void **state)
{
	struct fixture *f = *state;
	uint64_t start;

	set_features(f, 0);
	atomic_store(&echo.later_ns, 40000000);
	start = driver_now_ns();
	roundtrip(f, 0, "after a while");
	assert_true(driver_now_ns() - start >= 40000000);
	/* neither a pause nor the end waits for it */
	atomic_store(&echo.later_ns, 4000000000u);
	offer(f, 0, "paused");
	driver_kick(&f->d, 0);
	assert_true(DRIVER_UNTIL(!atomic_load(&echo.later_ns), WAIT_MS));
	start = driver_now_ns();
	dev_of(f)->ops->pause(dev_of(f));
	assert_true(driver_now_ns() - start < 2000000000);
	dev_of(f)->ops->resume(dev_of(f));
	assert_echoed(f, 0, "paused");
	atomic_store(&echo.later_ns, 4000000000u);
	offer(f, 0, "never");
	driver_kick(&f->d, 0);
	assert_true(DRIVER_UNTIL(!atomic_load(&echo.later_ns), WAIT_MS));
}

static void power_on_again(void **state)
{
	struct fixture *f = *state;

	set_features(f, 0);
	set_vector(f, 0, 0xfee00000, 1, false);
	dev_of(f)->ops->pause(dev_of(f));
	dev_of(f)->ops->reset(dev_of(f));
	assert_int_equal(f->b.nr_ioeventfds, 0);
	assert_int_equal(config_read(&f->b, 1, 0x10, 4), 0);
	dev_of(f)->ops->resume(dev_of(f));
	driver_attach(&f->d, &f->b, 1);
	assert_int_equal(reg_read(&f->d, R_STATUS, 1), 0);
	assert_int_equal(mmio_read(&f->b, f->d.bar + 0x380c, 4), 1);
	set_features(f, 0);
	roundtrip(f, 0, "again");
}

/* ---- saved state ---- */

static size_t save(struct fixture *f, uint8_t *buf)
{
	struct state_writer w;
	size_t bytes = 0;

	state_start(&w, buf, STATE_BYTES);
	dev_of(f)->ops->save(dev_of(f), &w);
	assert_int_equal(state_finish(&w, &bytes, NULL), 0);
	return bytes;
}

static int load(struct fixture *f, const uint8_t *buf, size_t bytes, struct img_error *err)
{
	struct state_reader r;
	struct state st;
	int code;

	*err = (struct img_error){ 0 };
	code = state_parse(&st, buf, bytes, err);
	code = code ? code : state_open(&st, ECHO_TAG, 0, 1, &r, err);
	return code ? code : dev_of(f)->ops->load(dev_of(f), &r, err);
}

static void running_with_msix(struct fixture *f)
{
	config_write(&f->b, 1, f->d.msix + 2, 2, 0x8000);
	set_vector(f, 1, 0xfee00000, 0x31, false);
	set_vector(f, 2, 0xfee00000, 0x32, true);
	set_features(f, F_EVENT_IDX | F_INDIRECT);
	use_vector(f, 0, 1);
	use_vector(f, 1, 2);
	roundtrip(f, 0, "before");
	roundtrip(f, 1, "before"); /* pending behind its mask */
	assert_true(DRIVER_UNTIL(mmio_read(&f->b, f->d.bar + 0x3c00, 4) == 4, WAIT_MS));
	dev_of(f)->ops->pause(dev_of(f));
}

static void save_and_load(void **state)
{
	static uint8_t buf[STATE_BYTES], again[STATE_BYTES];
	struct fixture *f = *state;
	static struct fixture to;
	struct img_error err;
	size_t bytes;

	running_with_msix(f);
	offer(f, 0, "on the other side");
	bytes = save(f, buf);
	build(&to);
	dev_of(&to)->ops->pause(dev_of(&to));
	dev_of(&to)->ops->reset(dev_of(&to));
	memcpy(to.b.mem.base, f->b.mem.base, DRIVER_RAM_BYTES);
	assert_int_equal(load(&to, buf, bytes, &err), 0);
	assert_int_equal(save(&to, again), bytes);
	assert_memory_equal(buf, again, bytes);
	assert_int_equal(to.b.nr_ioeventfds, 2);
	to.d = f->d;
	to.d.b = &to.b;
	dev_of(&to)->ops->resume(dev_of(&to));
	assert_echoed(&to, 0, "on the other side");
	assert_true(DRIVER_UNTIL(board_nr_msi(&to.b) == 1, WAIT_MS));
	assert_int_equal(to.b.msi[0].data, 0x31);
	/* what was pending comes when its mask goes */
	mmio_write(&to.b, to.d.bar + 0x3800 + 2 * 16 + 12, 4, 0);
	assert_int_equal(board_nr_msi(&to.b), 2);
	assert_int_equal(to.b.msi[1].data, 0x32);
	board_free(&to.b);
}

static void load_pin(void **state)
{
	static uint8_t buf[STATE_BYTES];
	struct fixture *f = *state;
	struct img_error err;
	size_t bytes;

	set_features(f, 0);
	roundtrip(f, 0, "by pin");
	assert_true(DRIVER_UNTIL(board_line(&f->b, PCI_GSI(1)), WAIT_MS));
	dev_of(f)->ops->pause(dev_of(f));
	bytes = save(f, buf);
	dev_of(f)->ops->reset(dev_of(f));
	assert_false(board_line(&f->b, PCI_GSI(1)));
	assert_int_equal(load(f, buf, bytes, &err), 0);
	assert_true(board_line(&f->b, PCI_GSI(1)));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1), 1);
}

/* Each byte of the section becomes each of some others: it is taken, and says the same when saved again, or it is
 * refused, and the device is as before. */
static void load_changed(void **state)
{
	static const uint8_t flips[] = { 0x01, 0x80, 0xff, 0x40, 0x04 };
	static uint8_t buf[STATE_BYTES], before[STATE_BYTES], after[STATE_BYTES];
	struct fixture *f = *state;
	struct img_error err;
	unsigned refused = 0;
	size_t bytes;

	running_with_msix(f);
	bytes = save(f, buf);
	for (size_t at = 56; at < bytes; at++) {
		for (size_t i = 0; i < sizeof(flips); i++) {
			size_t now = save(f, before);

			buf[at] ^= flips[i];
			if (load(f, buf, bytes, &err) == 0) {
				assert_int_equal(save(f, after), bytes);
				assert_memory_equal(after, buf, bytes);
			} else {
				assert_int_not_equal(err.code, 0);
				assert_int_equal(save(f, after), now);
				assert_memory_equal(after, before, now);
				refused++;
			}
			buf[at] ^= flips[i];
		}
	}
	assert_true(refused > 100);
	assert_int_equal(load(f, buf, bytes, &err), 0);
	dev_of(f)->ops->resume(dev_of(f));
	roundtrip(f, 0, "still alive");
}

static void load_other_length(void **state)
{
	static uint8_t buf[STATE_BYTES];
	struct fixture *f = *state;
	struct state_reader r;
	struct state st;
	size_t bytes;

	running_with_msix(f);
	bytes = save(f, buf);
	assert_int_equal(state_parse(&st, buf, bytes, NULL), 0);
	for (int change = -300; change <= 1; change++) {
		if (!change)
			continue;
		st.section[0].taken = false;
		assert_int_equal(state_open(&st, ECHO_TAG, 0, 1, &r, NULL), 0);
		r.end += change;
		assert_int_equal(dev_of(f)->ops->load(dev_of(f), &r, NULL), IMG_E_CORRUPT);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	static const struct CMUnitTest tests[] = {
		TEST(configuration_space),
		TEST(widths),
		TEST(every_register),
		TEST(features),
		TEST(queue_registers),
		TEST(bad_queue),
		TEST(before_driver_ok),
		TEST(pin),
		TEST(msix),
		TEST(generation),
		TEST(broken_ring),
		TEST(ioeventfds),
		TEST(pause_and_resume),
		TEST(reset_waits),
		TEST(pause_waits),
		TEST(pause_busy),
		TEST(later),
		TEST(power_on_again),
		TEST(save_and_load),
		TEST(load_pin),
		TEST(load_changed),
		TEST(load_other_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
