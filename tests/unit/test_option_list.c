/* SPDX-License-Identifier: MIT */
/* Creation options as text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"
#include "option_list.h"

static char seen[256];

static int note(void *ctx, const char *key, const char *value, struct img_error *err)
{
	size_t at = strlen(seen);

	snprintf(seen + at, sizeof(seen) - at, "[%s|%s]", key, value);
	return strcmp(key, (const char *)ctx) == 0 ? error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "test", "stop") : 0;
}

static int each(const char *text)
{
	struct img_error err = { 0 };

	seen[0] = '\0';
	return option_each(text, "test", note, "stop", &err);
}

static void test_each(void **state)
{
	static const struct {
		const char *text, *pairs;
		int ret;
	} table[] = {
		{ NULL, "", 0 },
		{ "", "", 0 },
		{ "a=1", "[a|1]", 0 },
		{ "a=1,b=2", "[a|1][b|2]", 0 },
		{ "a=,b==", "[a|][b|=]", 0 },
		{ "a=1,", "[a|1]", 0 },
		{ ",a=1", "[a|1]", 0 },
		{ "a=x,,y", "[a|x,y]", 0 },
		{ "a=x,,,b=2", "[a|x,][b|2]", 0 },
		{ "a=,,,,", "[a|,,]", 0 },
		{ "a=,,x,,,,y,b=,,", "[a|,x,,y][b|,]", 0 },
		{ ",,,a=1", "[a|1]", 0 },
		{ "a", "", IMG_E_INVALID },
		{ "a=1,b", "[a|1]", IMG_E_INVALID },
		{ "a=1,,b", "[a|1,b]", 0 },
		{ "stop=1,a=2", "[stop|1]", IMG_E_INVALID },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (each(table[i].text) != table[i].ret || strcmp(seen, table[i].pairs) != 0)
			fail_msg("'%s' gives %s", table[i].text, seen);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_each) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
