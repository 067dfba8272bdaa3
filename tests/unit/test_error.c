/* SPDX-License-Identifier: MIT */
/* Errors: the first failure stays, prefixes go before it, nothing overflows, messages are one line. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"

static void test_first_failure_stays(void **state)
{
	struct img_error err = { 0 };

	(void)state;
	assert_int_equal(error_set(&err, IMG_E_CORRUPT, 0, 0x200, "limg", "%s: bad magic", "a.limg"), IMG_E_CORRUPT);
	assert_int_equal(error_set(&err, IMG_E_IO, EIO, 0, "file", "second"), IMG_E_IO);
	assert_int_equal(error_errno(&err, ENOSPC, 0, "file", "third"), IMG_E_NOSPC);
	assert_int_equal(err.code, IMG_E_CORRUPT);
	assert_int_equal(err.offset, 0x200);
	assert_string_equal(err.layer, "limg");
	assert_string_equal(err.msg, "a.limg: bad magic");
}

static void test_clear_makes_room(void **state)
{
	struct img_error err = { 0 };

	(void)state;
	error_set(&err, IMG_E_CORRUPT, EIO, 5, "limg", "first");
	error_clear(&err);
	assert_int_equal(err.code, IMG_OK);
	assert_int_equal(err.sys_errno, 0);
	assert_true(err.offset == NO_OFFSET);
	assert_string_equal(err.msg, "");
	error_set(&err, IMG_E_BUSY, 0, NO_OFFSET, "file", "second");
	assert_int_equal(err.code, IMG_E_BUSY);
}

static void test_errno_is_mapped(void **state)
{
	static const struct {
		int sys_errno, code;
	} table[] = {
		{ ENOSPC, IMG_E_NOSPC }, { EDQUOT, IMG_E_NOSPC },  { EFBIG, IMG_E_NOSPC }, { ENOENT, IMG_E_NOENT },
		{ ENOMEM, IMG_E_NOMEM }, { EEXIST, IMG_E_EXISTS }, { EIO, IMG_E_IO },	   { EACCES, IMG_E_IO },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct img_error err = { 0 };

		assert_int_equal(error_errno(&err, table[i].sys_errno, 7, "file", "x: cannot read"), table[i].code);
		assert_int_equal(err.code, table[i].code);
		assert_int_equal(err.sys_errno, table[i].sys_errno);
		assert_non_null(strstr(err.msg, "x: cannot read: "));
		assert_non_null(strstr(err.msg, strerror(table[i].sys_errno)));
	}
}

static void test_prefix(void **state)
{
	struct img_error err = { 0 };

	(void)state;
	error_prefix(&err, "nothing failed");
	assert_string_equal(err.msg, "");
	error_set(&err, IMG_E_IO, 0, NO_OFFSET, "file", "inner");
	error_prefix(&err, "outer %d", 1);
	error_prefix(&err, "outermost");
	assert_string_equal(err.msg, "outermost: outer 1: inner");
	assert_int_equal(err.code, IMG_E_IO);
}

static void test_long_prefix_gives_way(void **state)
{
	struct img_error err = { 0 };
	char name[1000];

	(void)state;
	memset(name, 'p', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	error_set(&err, IMG_E_IO, 0, NO_OFFSET, "file", "what went wrong");
	error_prefix(&err, "%s", name);
	assert_true(strlen(err.msg) < sizeof(err.msg));
	assert_non_null(strstr(err.msg, ": what went wrong"));
	/* And a message that fills the room keeps its beginning. */
	error_clear(&err);
	error_set(&err, IMG_E_IO, 0, NO_OFFSET, "file", "begin %s", name);
	error_prefix(&err, "%s", name);
	assert_non_null(strstr(err.msg, ": begin ppp"));
	assert_int_equal(strlen(err.msg), sizeof(err.msg) - 1);
}

static void test_one_line(void **state)
{
	struct img_error err = { 0 };

	(void)state;
	error_set(&err, IMG_E_IO, 0, NO_OFFSET, "file", "evil\nname\x1b[31m\x7f");
	error_prefix(&err, "more\revil");
	assert_string_equal(err.msg, "more?evil: evil?name?[31m?");
}

static void test_null_is_allowed(void **state)
{
	(void)state;
	assert_int_equal(error_set(NULL, IMG_E_IO, 0, NO_OFFSET, "file", "x"), IMG_E_IO);
	assert_int_equal(error_errno(NULL, ENOENT, NO_OFFSET, "file", "x"), IMG_E_NOENT);
	error_prefix(NULL, "x");
	error_clear(NULL);
}

static void test_every_code_has_a_text(void **state)
{
	(void)state;
	for (int code = IMG_OK; code >= IMG_E_CANCELLED; code--) {
		assert_non_null(img_strerror(code));
		assert_string_not_equal(img_strerror(code), "unknown error");
		for (int other = IMG_OK; other > code; other--)
			assert_string_not_equal(img_strerror(code), img_strerror(other));
	}
	assert_string_equal(img_strerror(12345), "unknown error");
	assert_string_equal(img_strerror(IMG_E_CANCELLED - 1), "unknown error");
}

static void test_version(void **state)
{
	char text[32];

	(void)state;
	(void)snprintf(text, sizeof(text), "%d.%d.%d", IMG_VERSION_MAJOR, IMG_VERSION_MINOR, IMG_VERSION_PATCH);
	assert_string_equal(img_version(), text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_first_failure_stays),
		cmocka_unit_test(test_clear_makes_room),
		cmocka_unit_test(test_errno_is_mapped),
		cmocka_unit_test(test_prefix),
		cmocka_unit_test(test_long_prefix_gives_way),
		cmocka_unit_test(test_one_line),
		cmocka_unit_test(test_null_is_allowed),
		cmocka_unit_test(test_every_code_has_a_text),
		cmocka_unit_test(test_version),
	};

	return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
