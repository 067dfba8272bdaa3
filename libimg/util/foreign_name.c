/* SPDX-License-Identifier: MIT */
/*
 * A parent's name: UTF-16 of the format, UTF-8 here; paths of Windows as paths of this host and back.
 *
 * A relative path means the same on both sides, but for its separators. A drive or a server is nothing that this host
 * could look at: of such a path the last part stays, a file beside the child; that it is the right one its identity
 * says.
 */
#include <stdio.h>
#include <string.h>

#include "foreign_name.h"

/* ---- UTF-16 ------------------------------------------------------------------------------------------------------ */

static uint32_t unit_at(const uint8_t *p, bool big_endian)
{
	return big_endian ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static size_t put_utf8(uint32_t c, uint8_t out[4])
{
	if (c < 0x80) {
		out[0] = (uint8_t)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (uint8_t)(0xc0 | c >> 6);
		out[1] = (uint8_t)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (uint8_t)(0xe0 | c >> 12);
		out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
		out[2] = (uint8_t)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (uint8_t)(0xf0 | c >> 18);
	out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
	out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
	out[3] = (uint8_t)(0x80 | (c & 0x3f));
	return 4;
}

bool name_from_utf16(const uint8_t *text, size_t bytes, bool big_endian, char *out, size_t room)
{
	size_t n = 0;

	for (size_t i = 0; i + 1 < bytes; i += 2) {
		uint32_t c = unit_at(text + i, big_endian);
		uint8_t utf8[4];
		size_t len;

		if (c == 0)
			break;
		if (c >= 0xdc00 && c < 0xe000)
			return false;
		if (c >= 0xd800 && c < 0xdc00) {
			uint32_t low = i + 3 < bytes ? unit_at(text + i + 2, big_endian) : 0;

			if (low < 0xdc00 || low >= 0xe000)
				return false;
			c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
			i += 2;
		}
		len = put_utf8(c, utf8);
		if (n + len >= room)
			return false;
		memcpy(out + n, utf8, len);
		n += len;
	}
	out[n] = '\0';
	return true;
}

/* One character, shortest form only. Returns its length; 0: no UTF-8. */
static size_t get_utf8(const uint8_t *p, uint32_t *out)
{
	static const uint32_t lowest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t len = p[0] < 0x80		 ? 1 :
		     p[0] >= 0xc2 && p[0] < 0xe0 ? 2 :
		     p[0] >= 0xe0 && p[0] < 0xf0 ? 3 :
		     p[0] >= 0xf0 && p[0] < 0xf5 ? 4 :
						   0;
	uint32_t c = len == 1 ? p[0] : len == 2 ? p[0] & 0x1f : len == 3 ? p[0] & 0x0f : p[0] & 0x07;

	for (size_t i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	if (len > 1 && (c < lowest[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)))
		return 0;
	*out = c;
	return len;
}

static void put_unit(uint8_t *out, uint32_t unit, bool big_endian)
{
	out[big_endian ? 0 : 1] = (uint8_t)(unit >> 8);
	out[big_endian ? 1 : 0] = (uint8_t)unit;
}

bool name_to_utf16(const char *text, bool big_endian, uint8_t *out, size_t room, size_t *bytes)
{
	const uint8_t *p = (const uint8_t *)text;
	size_t n = 0;

	while (*p) {
		uint32_t c;
		size_t len = get_utf8(p, &c), units = len == 4 ? 2 : 1;

		if (len == 0 || n + 2 * units > room)
			return false;
		if (units == 2) {
			put_unit(out + n, 0xd800 + ((c - 0x10000) >> 10), big_endian);
			put_unit(out + n + 2, 0xdc00 + ((c - 0x10000) & 0x3ff), big_endian);
		} else {
			put_unit(out + n, c, big_endian);
		}
		n += 2 * units;
		p += len;
	}
	*bytes = n;
	return true;
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

/* Would the broker take it for more than a path? */
static bool has_colon_first(const char *path)
{
	return path[strcspn(path, ":/")] == ':';
}

static bool has_drive(const char *path)
{
	return ((path[0] >= 'A' && path[0] <= 'Z') || (path[0] >= 'a' && path[0] <= 'z')) && path[1] == ':';
}

void name_from_windows(const char *windows, bool relative, char out[NAME_PATH_MAX])
{
	bool of_windows = has_drive(windows) || windows[0] == '\\';
	const char *from;

	(void)snprintf(out, NAME_PATH_MAX, "%s", windows);
	for (char *p = out; *p; p++)
		if (*p == '\\')
			*p = '/';
	from = out;
	if (!relative && of_windows) {
		const char *slash = strrchr(out, '/');

		from = slash ? slash + 1 : out + (has_drive(out) ? 2 : 0);
	}
	while (strncmp(from, "./", 2) == 0 && !has_colon_first(from + 2)) {
		from += 2;
		while (*from == '/')
			from++;
	}
	memmove(out, from, strlen(from) + 1);
}

void name_to_windows(const char *host, char out[NAME_PATH_MAX + 2])
{
	if (host[0] == '/') {
		(void)snprintf(out, NAME_PATH_MAX + 2, "%s", host);
		return;
	}
	(void)snprintf(out, NAME_PATH_MAX + 2, "%s%s", strncmp(host, "./", 2) == 0 ? "" : ".\\", host);
	for (char *p = out; *p; p++)
		if (*p == '/')
			*p = '\\';
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool name_from_url(const char *url, char out[NAME_PATH_MAX])
{
	static const char scheme[] = "file://", host[] = "localhost/";
	size_t n = 0;

	if (strncmp(url, scheme, sizeof(scheme) - 1) != 0)
		return false;
	url += sizeof(scheme) - 1;
	if (strncmp(url, host, sizeof(host) - 1) == 0)
		url += sizeof(host) - 2; /* the path's slash stays */
	if (url[0] != '/' && url[0] != '.')
		return false;
	for (; *url; url++) {
		int c = (uint8_t)*url;

		if (c == '%') {
			int high = hex_digit(url[1]), low = high < 0 ? -1 : hex_digit(url[2]);

			if (low < 0)
				return false;
			c = high << 4 | low;
			url += 2;
		}
		if (c == 0 || n + 1 >= NAME_PATH_MAX)
			return false;
		out[n++] = (char)c;
	}
	out[n] = '\0';
	return true;
}
