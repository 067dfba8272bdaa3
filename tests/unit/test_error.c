/* SPDX-License-Identifier: MIT */
/* Errors: the first failure stays, prefixes go before it, nothing overflows, messages are one line. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
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
	assert_true(strlen(err.msg) < sizeof(err.msg));
}

/* A path of this length, whose ends can be told; spaces make words of it. */
static const char *long_path(size_t len, bool spaces)
{
	static char path[4096];

	assert_true(len < sizeof(path));
	for (size_t i = 0; i < len; i++)
		path[i] = spaces && i % 7 == 6 ? ' ' : (char)('a' + i % 26);
	path[0] = '/';
	memcpy(path + len - 4, "/end", 5);
	return path;
}

/* The reason stays behind a path of any length, and is found there by who names the file himself. */
static void test_long_path_keeps_the_reason(void **state)
{
	const char *why = strerror(ENOENT), *path;

	(void)state;
	for (size_t len = 100; len < 4096; len += 7) {
		struct img_error err = { 0 };

		path = long_path(len, false);
		error_errno(&err, ENOENT, NO_OFFSET, "file", "%s: cannot open", path);
		assert_true(strlen(err.msg) < sizeof(err.msg));
		assert_non_null(strstr(err.msg, "/end: cannot open: "));
		assert_string_equal(err.msg + strlen(err.msg) - strlen(why), why);
		assert_non_null(img_error_reason(&err, path));
		assert_int_equal(strncmp(img_error_reason(&err, path), "cannot open: ", 13), 0);
		assert_null(img_error_reason(&err, path + 1));
		/* a second name, and a layer further out */
		error_clear(&err);
		error_set(&err, IMG_E_CHANGED, 0, NO_OFFSET, "image", "'%s', named by %s, is not it: use the other one",
			  path, path);
		error_prefix(&err, "%s", path);
		assert_true(strlen(err.msg) < sizeof(err.msg));
		assert_non_null(strstr(err.msg, "/end, is not it: use the other one"));
		assert_non_null(strstr(err.msg, "', named by /"));
		assert_int_equal(err.msg[0], '/');
		/* where no word is long */
		error_clear(&err);
		path = long_path(len, true);
		error_errno(&err, ENOENT, NO_OFFSET, "file", "%s: cannot open", path);
		assert_non_null(strstr(err.msg, "/end: cannot open: "));
		assert_string_equal(err.msg + strlen(err.msg) - strlen(why), why);
	}
}

static void test_characters_are_not_cut(void **state)
{
	(void)state;
	for (size_t shift = 0; shift < 3; shift++) {
		struct img_error err = { 0 };
		char name[2000];

		for (size_t i = 0; i < sizeof(name) - 3; i += 3)
			memcpy(name + i, "\xe2\x82\xac", 4);
		error_set(&err, IMG_E_IO, 0, NO_OFFSET, "file", "%.*s%s: lost", (int)shift, "xy", name);
		for (const char *at = err.msg; *at; at += (*at & 0x80) ? 3 : 1)
			if (*at & 0x80)
				assert_memory_equal(at, "\xe2\x82\xac", 3);
		assert_non_null(strstr(err.msg, "..."));
		assert_non_null(strstr(err.msg, ": lost"));
	}
}

static void test_reason(void **state)
{
	struct img_error err = { 0 };

	(void)state;
	assert_null(img_error_reason(&err, "a"));
	assert_int_equal(img_error_set(&err, IMG_E_IO, EIO, "tools", "a\nb: cannot read"), IMG_E_IO);
	assert_int_equal(img_error_set(&err, IMG_E_BUSY, 0, "tools", "later"), IMG_E_BUSY);
	assert_int_equal(img_error_set(NULL, IMG_E_BUSY, 0, "tools", "nobody"), IMG_E_BUSY);
	assert_true(err.offset == NO_OFFSET);
	assert_string_equal(err.layer, "tools");
	assert_int_equal(strncmp(err.msg, "a?b: cannot read: ", 18), 0);
	assert_ptr_equal(img_error_reason(&err, "a\nb"), err.msg + 5);
	assert_null(img_error_reason(&err, "a"));
	assert_null(img_error_reason(&err, ""));
	assert_null(img_error_reason(&err, "a\nb: cannot read:"));
	/* names that hold what stands for what was left out */
	error_clear(&err);
	error_set(&err, IMG_E_IO, 0, NO_OFFSET, "file", "a...b: whole");
	assert_string_equal(img_error_reason(&err, "a...b"), "whole");
	assert_string_equal(img_error_reason(&err, "a.....b"), "whole");
	assert_null(img_error_reason(&err, "c...b"));
	assert_null(img_error_reason(&err, "a...c"));
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
		cmocka_unit_test(test_long_path_keeps_the_reason),
		cmocka_unit_test(test_characters_are_not_cut),
		cmocka_unit_test(test_reason),
		cmocka_unit_test(test_one_line),
		cmocka_unit_test(test_null_is_allowed),
		cmocka_unit_test(test_every_code_has_a_text),
		cmocka_unit_test(test_version),
	};

	return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
