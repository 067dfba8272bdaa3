/* SPDX-License-Identifier: MIT */
/* qcow2: the header cannot be written when the refcount table has moved: the table that it names is not given up. */
#include "inside.h"

#define SIZE (12 * MIB)

static unsigned nr_headers, fails_at;

static int fail_header(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	if (off == 0 && ++nr_headers == fails_at)
		return error_set(err, IMG_E_IO, EIO, 0, "test", "the header cannot be written");
	return fault_driver.pwrite(n, buf, bytes, off, flags, err);
}

static void header_fails(void **state)
{
	static struct img_driver hooked;
	static uint8_t data[MIB];
	bool failed = true;

	(void)state;
	memset(data, 7, sizeof(data));
	hooked = fault_driver;
	hooked.pwrite = fail_header;
	inside_create("fresh", "qcow2", SIZE, "cluster_size=512");
	for (fails_at = 1; failed; fails_at++) {
		struct img *img;
		int first = 0, ret;

		inside_copy("fresh", "a");
		img = inside_open("a", IMG_OPEN_WRITE);
		nr_headers = 0;
		img->top->file->drv = &hooked;
		for (uint64_t off = 0; off < SIZE && first == 0; off += sizeof(data))
			first = img_pwrite(img, data, sizeof(data), off, 0, NULL);
		ret = img_flush(img, 0, NULL);
		first = first == 0 ? ret : first;
		ret = img_close(img, NULL);
		failed = nr_headers >= fails_at;
		assert_int_equal(failed, first != 0 || ret != 0);
		inside_expect_undamaged("a");
	}
	assert_true(fails_at > 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(header_fails, inside_setup, inside_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
