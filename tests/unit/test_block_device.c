/* SPDX-License-Identifier: MIT */
/* The file protocol on a block device: a loop device with sectors of 512 and of 4096 bytes. Needs root and the loop
 * driver. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "error.h"
#include "node.h"

#define DEVICE_BYTES (4u << 20)

extern const struct img_driver file_driver;

struct device {
	char file[64], path[64];
	int fd; /* keeps the device: it goes with its last user */
};

/* false: not here. */
static bool device_make(struct device *d, uint32_t sector_bytes)
{
	struct loop_config config = { .block_size = sector_bytes, .info = { .lo_flags = LO_FLAGS_AUTOCLEAR } };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), number, file, ret = -1;

	if (control < 0) {
		print_message("SKIPPED: /dev/loop-control: %s\n", strerror(errno));
		return false;
	}
	strcpy(d->file, "test-device-XXXXXX");
	file = mkstemp(d->file);
	assert_true(file >= 0);
	assert_int_equal(ftruncate(file, DEVICE_BYTES), 0);
	/* Somebody else may take the free one first. */
	for (int tries = 0; tries < 10 && ret < 0; tries++) {
		number = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(d->path, sizeof(d->path), "/dev/loop%d", number);
		d->fd = number >= 0 ? open(d->path, O_RDWR | O_CLOEXEC) : -1;
		config.fd = (unsigned)file;
		ret = d->fd >= 0 ? ioctl(d->fd, LOOP_CONFIGURE, &config) : -1;
		if (ret < 0 && d->fd >= 0)
			close(d->fd);
	}
	if (ret < 0)
		print_message("SKIPPED: no loop device to be had: %s\n", strerror(errno));
	close(file);
	close(control);
	unlink(d->file);
	return ret >= 0;
}

static struct node *device_open(const struct device *d, bool direct)
{
	struct host_open args = {
		.writable = true, .direct = direct, .use = SHARE_WRITER_USE, .forbid = SHARE_WRITER_FORBID
	};
	struct img_error err = { 0 };
	struct node *node = node_new(&file_driver, d->path, &err);
	int fd = open(d->path, O_RDWR | O_CLOEXEC);

	assert_non_null(node);
	assert_true(fd >= 0);
	if (node_open_fd(node, fd, &args, &err) != 0)
		fail_msg("%s", err.msg);
	return node;
}

static void check_all(struct node *node, const uint8_t *model)
{
	static uint8_t in[DEVICE_BYTES];

	assert_int_equal(node_pread(node, in, DEVICE_BYTES, 0, 0, NULL), 0);
	assert_memory_equal(in, model, DEVICE_BYTES);
}

static void use_device(uint32_t sector_bytes, bool direct)
{
	static uint8_t model[DEVICE_BYTES];
	struct status_extent e;
	struct host_stat sb;
	struct device d;
	struct node *node;
	uint32_t rng = sector_bytes;
	size_t nr;

	if (!device_make(&d, sector_bytes))
		skip();
	node = device_open(&d, direct);
	assert_int_equal(node_size(node), DEVICE_BYTES);
	for (size_t i = 0; i < sizeof(model); i++)
		model[i] = (uint8_t)(i * 7 + (i >> 9));
	assert_int_equal(node_pwrite(node, model, sizeof(model), 0, 0, NULL), 0);
	/* Any offset and length: the device's sectors are the kernel's business. */
	for (int i = 0; i < 100; i++) {
		uint32_t off, n;

		rng = rng * 1664525 + 1013904223;
		off = (rng >> 8) % DEVICE_BYTES;
		rng = rng * 1664525 + 1013904223;
		n = (rng >> 8) % 20000 + 1;
		if (i % 2) {
			off &= ~4095u;
			n = (n + 4095) & ~4095u;
		}
		if (n > DEVICE_BYTES - off)
			n = DEVICE_BYTES - off;
		if (i % 3 == 0) {
			memset(model + off, 0, n);
			assert_int_equal(node_zero(node, n, off, i % 4 ? 0 : IMG_IO_NO_UNMAP, NULL), 0);
		} else {
			memset(model + off, i, n);
			assert_int_equal(node_pwrite(node, model + off, n, off, 0, NULL), 0);
		}
	}
	assert_int_equal(node_flush(node, 0, NULL), 0);
	check_all(node, model);
	/* What is not discarded stays. */
	assert_int_equal(node_discard(node, 1 << 20, (1 << 20) + 100, 0, NULL), 0);
	assert_int_equal(node_pread(node, model + (1 << 20), (1 << 20) + 4096, 1 << 20, 0, NULL), 0);
	check_all(node, model);
	assert_int_equal(node_status(node, DEVICE_BYTES, 0, &e, 1, &nr, NULL), 0);
	assert_int_equal(e.kind, STATUS_DATA);
	assert_int_equal(e.bytes, DEVICE_BYTES);
	assert_int_equal(node_stat(node, &sb, NULL), 0);
	assert_true(sb.is_block_device);
	assert_int_equal(sb.file_bytes, DEVICE_BYTES);
	/* It has an end. */
	assert_int_equal(node_pwrite(node, model, 8192, DEVICE_BYTES - 4096, 0, NULL), IMG_E_NOSPC);
	assert_int_equal(node_zero(node, 8192, DEVICE_BYTES - 4096, 0, NULL), IMG_E_NOSPC);
	assert_int_equal(node_allocate(node, 4096, DEVICE_BYTES, NULL), IMG_E_NOSPC);
	assert_int_equal(node_allocate(node, 4096, 0, NULL), 0);
	assert_int_equal(node_resize(node, DEVICE_BYTES, NULL), 0);
	assert_int_equal(node_resize(node, DEVICE_BYTES / 2, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_resize(node, DEVICE_BYTES * 2, NULL), IMG_E_NOSPC); /* as on a full disk */
	check_all(node, model);
	assert_int_equal(node_close(node, NULL), 0);
	/* Through the other kind of descriptor. */
	node = device_open(&d, !direct);
	check_all(node, model);
	node_close(node, NULL);
	close(d.fd);
}

static void test_sectors_of_512(void **state)
{
	(void)state;
	use_device(512, false);
}

static void test_sectors_of_512_direct(void **state)
{
	(void)state;
	use_device(512, true);
}

static void test_sectors_of_4096(void **state)
{
	(void)state;
	use_device(4096, false);
}

static void test_sectors_of_4096_direct(void **state)
{
	(void)state;
	use_device(4096, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sectors_of_512),
		cmocka_unit_test(test_sectors_of_512_direct),
		cmocka_unit_test(test_sectors_of_4096),
		cmocka_unit_test(test_sectors_of_4096_direct),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
