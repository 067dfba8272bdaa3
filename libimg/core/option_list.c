/* SPDX-License-Identifier: MIT */
/* Creation options: what all formats do with their text. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "option_list.h"

/* Takes one "key=value" off *at: it ends at a comma, and two of them are one of its own. NULL: there is none left. */
static char *next_option(char **at)
{
	char *from = *at, *to;

	while (*from == ',')
		from++;
	if (*from == '\0')
		return NULL;
	for (to = *at = from; **at; *to++ = *(*at)++) {
		if (**at == ',' && *++*at != ',')
			break;
	}
	*to = '\0'; /* to is behind *at wherever that is not the end */
	return from;
}

int option_each(const char *text, const char *layer, option_fn fn, void *ctx, struct img_error *err)
{
	char *copy = strdup(text ? text : ""), *at = copy, *kv;
	int ret = 0;

	if (!copy)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, layer, "out of memory");
	while (ret == 0 && (kv = next_option(&at))) {
		char *eq = strchr(kv, '=');

		if (eq) {
			*eq = '\0';
			ret = fn(ctx, kv, eq + 1, err);
		} else {
			ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, layer, "option '%.32s' has no value", kv);
		}
	}
	free(copy);
	return ret;
}

int option_wrong(const char *layer, const char *key, const char *range, const char *value, struct img_error *err)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, layer, "%s is %s, not '%.40s'", key, range, value);
}

uint64_t option_bytes(const char *value, uint64_t max)
{
	static const char letters[] = "KMGT";
	unsigned long long n;
	unsigned shift = 0;
	const char *letter;
	char *end;

	if (*value < '0' || *value > '9')
		return 0;
	n = strtoull(value, &end, 10);
	letter = *end ? strchr(letters, *end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end) : NULL;
	if (letter) {
		shift = 10 * (unsigned)(letter - letters + 1);
		end++;
	}
	return *end || n > max >> shift ? 0 : (uint64_t)n << shift;
}

uint64_t option_power(const char *value, uint64_t min, uint64_t max)
{
	uint64_t n = option_bytes(value, max);

	return n >= min && (n & (n - 1)) == 0 ? n : 0;
}

bool option_bool(const char *value, bool *out)
{
	*out = !strcmp(value, "on") || !strcmp(value, "true") || !strcmp(value, "yes");
	return *out || !strcmp(value, "off") || !strcmp(value, "false") || !strcmp(value, "no");
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool option_uuid(const char *value, uint8_t out[16])
{
	unsigned n = 0;

	for (; *value; value++) {
		int digit = hex_value(*value);

		if (*value == '-' && (n == 8 || n == 12 || n == 16 || n == 20))
			continue;
		if (digit < 0 || n >= 32)
			return false;
		out[n / 2] = (uint8_t)(n % 2 ? (unsigned)out[n / 2] | (unsigned)digit : (unsigned)digit << 4);
		n++;
	}
	return n == 32;
}
