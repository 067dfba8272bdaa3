/* SPDX-License-Identifier: MIT */
/* See output.h. */
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "cli.h"

/* ---- text -------------------------------------------------------------------------------------------------------- */

/* Decodes one UTF-8 character in its shortest form. Returns its length, or 0 if there is none. */
static size_t utf8_decode(const unsigned char *s, uint32_t *out)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t bytes = s[0] < 0x80 ? 1 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	uint32_t c = s[0];

	if (bytes == 1) {
		*out = c;
		return 1;
	}
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	c &= 0x7fu >> bytes;
	for (size_t i = 1; i < bytes; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < least[bytes] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	*out = c;
	return bytes;
}

/* Characters that take no room, change direction or break lines: two names that differ only in them look alike. */
static bool is_deceptive(uint32_t c)
{
	return (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) ||
	       c == 0xad || c == 0x61c || c == 0x180e || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) ||
	       (c >= 0xe0000 && c <= 0xe0fff);
}

/* Escapes the character at s into buf. Returns how many bytes of s it took; 0 at the end. */
static size_t escape_char(const char *s, char buf[16])
{
	uint32_t c;
	size_t bytes;

	if (*s == '\0')
		return 0;
	bytes = utf8_decode((const unsigned char *)s, &c);
	if (bytes == 0 || c < 0x20 || c == 0x7f) {
		snprintf(buf, 16, "\\x%02x", (unsigned char)*s);
		return 1;
	}
	if (c == '\\') {
		memcpy(buf, "\\\\", 3);
		return 1;
	}
	if ((c >= 0x80 && c < 0xa0) || is_deceptive(c)) {
		snprintf(buf, 16, "\\u{%" PRIx32 "}", c);
		return bytes;
	}
	memcpy(buf, s, bytes);
	buf[bytes] = '\0';
	return bytes;
}

int output_escaped(FILE *out, const char *text)
{
	char buf[16];
	int columns = 0;
	size_t step;

	for (; (step = escape_char(text, buf)) != 0; text += step) {
		fputs(buf, out);
		columns += buf[0] == '\\' ? (int)strlen(buf) : 1;
	}
	return columns;
}

const char *output_size(uint64_t bytes, char buf[SIZE_TEXT_BYTES])
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned unit = 0;
	double value = (double)bytes;

	for (; value >= 1024 && unit + 1 < ARRAY_LEN(units); unit++)
		value /= 1024;
	if (value == (double)(uint64_t)value)
		snprintf(buf, SIZE_TEXT_BYTES, "%.0f %s", value, units[unit]);
	else
		snprintf(buf, SIZE_TEXT_BYTES, "%.*f %s", value >= 100 ? 0 : value >= 10 ? 1 : 2, value, units[unit]);
	return buf;
}

const char *output_hex(const uint8_t *data, size_t nr_bytes, char buf[HEX_TEXT_BYTES])
{
	buf[0] = '\0';
	for (size_t i = 0; i < nr_bytes && i < 32; i++)
		snprintf(buf + 2 * i, 3, "%02x", data[i]);
	return buf;
}

const char *output_uuid(const uint8_t uuid[16], char buf[UUID_TEXT_BYTES])
{
	char *at = buf;

	for (unsigned i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*at++ = '-';
		snprintf(at, 3, "%02x", uuid[i]);
		at += 2;
	}
	return buf;
}

const char *output_time(int64_t ns, char buf[TIME_TEXT_BYTES])
{
	time_t seconds = (time_t)(ns / 1000000000 - (ns % 1000000000 < 0));
	struct tm tm;

	if (!gmtime_r(&seconds, &tm) || strftime(buf, TIME_TEXT_BYTES, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
		memcpy(buf, "?", 2); /* a year with more digits than buf has room for */
	return buf;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *json_escaped(const char *text)
{
	char *escaped = NULL, buf[16];
	size_t bytes, step;
	json_t *string;
	FILE *out = open_memstream(&escaped, &bytes);

	if (!out)
		return NULL;
	for (; (step = escape_char(text, buf)) != 0; text += step)
		fputs(buf, out);
	string = fclose(out) == 0 ? json_string(escaped) : NULL;
	free(escaped);
	return string;
}

json_t *output_json_text(const char *text)
{
	json_t *string;

	if (!text)
		return json_null();
	string = json_string(text); /* NULL where text is not UTF-8 */
	return string ? string : json_escaped(text);
}

json_t *output_json_size(uint64_t bytes)
{
	return bytes <= INT64_MAX ? json_integer((json_int_t)bytes) : json_null();
}

/* Pure ASCII: no character of a name reaches the terminal. */
int output_json(json_t *object)
{
	int status = EXIT_DONE;

	if (!object || json_dumpf(object, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII) != 0) {
		errno = object ? EIO : ENOMEM;
		status = cli_fail_errno("stdout", "JSON");
	} else {
		putchar('\n');
	}
	json_decref(object);
	return status;
}

int output_finish(int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	cli_message("stdout", "%s", strerror(errno ? errno : EIO));
	return EXIT_SYSTEM;
}
