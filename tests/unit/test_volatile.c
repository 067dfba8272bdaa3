/* SPDX-License-Identifier: MIT */
/*
 * IMG_CREATE_VOLATILE and IMG_OPEN_VOLATILE: no disk is waited for, whatever is done; without them it is. The C
 * library's calls are counted on their way.
 */
#include "image_fixture.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"

static _Atomic unsigned syncs;

static int passed_on(const char *name, int fd)
{
	int (*real)(int fd) = NULL;
	void *found = dlsym(RTLD_NEXT, name);

	memcpy(&real, &found, sizeof(real));
	atomic_fetch_add(&syncs, 1);
	return real(fd);
}

int fsync(int fd)
{
	return passed_on("fsync", fd);
}

int fdatasync(int fildes)
{
	return passed_on("fdatasync", fildes);
}

int syncfs(int fd)
{
	return passed_on("syncfs", fd);
}

static unsigned taken(void)
{
	return atomic_exchange(&syncs, 0);
}

static void create(const char *name, const char *format, unsigned flags)
{
	struct img_create_options o = {
		.struct_size = sizeof(o), .format = format, .size_bytes = 4u << 20, .flags = flags
	};

	assert_ok(img_create(in_dir(name), &o, ERR));
}

/* Everything that writes. snapshots: the format has them. */
static void use(const char *name, const char *format, unsigned flags)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = format, .flags = IMG_OPEN_WRITE | flags };
	bool snapshots = strcmp(format, "raw") != 0;
	static uint8_t buf[65536];
	struct img *img;

	memset(buf, 7, sizeof(buf));
	assert_ok(img_open(in_dir(name), &o, &img, ERR));
	assert_ok(img_pwrite(img, buf, sizeof(buf), 8192, 0, ERR));
	assert_ok(img_pwrite(img, buf, 4096, 0, IMG_IO_FUA, ERR));
	assert_ok(img_flush(img, 0, ERR));
	assert_ok(img_flush(img, IMG_FLUSH_CHECKPOINT, ERR));
	if (snapshots) {
		assert_ok(img_snapshot_create(img, "s", 0, ERR));
		assert_ok(img_pwrite(img, buf, sizeof(buf), 4096, 0, ERR));
		assert_ok(img_snapshot_revert(img, "s", ERR));
		assert_ok(img_snapshot_delete(img, "s", ERR));
	}
	assert_ok(img_resize(img, 5u << 20, 0, ERR));
	assert_ok(img_close(img, ERR));
}

static void try_format(const char *format)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = format };
	struct img *img;
	char byte;

	if (registry_find(format) == NULL)
		return;
	(void)taken();
	create("firm", format, 0);
	assert_true(taken() > 0);
	use("firm", format, 0);
	assert_true(taken() > 0);
	create("loose", format, IMG_CREATE_VOLATILE);
	assert_int_equal(taken(), 0);
	use("loose", format, IMG_OPEN_VOLATILE);
	assert_int_equal(taken(), 0);
	/* What was written is there for the next who opens it, all the same. */
	assert_ok(img_open(in_dir("loose"), &o, &img, ERR));
	assert_ok(img_pread(img, &byte, 1, 8192, 0, ERR));
	assert_int_equal(byte, 7);
	assert_ok(img_close(img, ERR));
}

static void test_limg(void **unused)
{
	(void)unused;
	try_format("limg");
}

static void test_qcow2(void **unused)
{
	(void)unused;
	try_format("qcow2");
}

static void test_raw(void **unused)
{
	(void)unused;
	try_format("raw");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_limg, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_qcow2, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_raw, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
