/* SPDX-License-Identifier: MIT */
/*
 * Filling struct img_error. The structure is fixed in size and belongs to the caller, so that reporting a failure can
 * itself neither fail nor allocate. The first failure of a chain of calls stays; whoever is further out only puts a
 * prefix before it.
 *
 * What is too long for it is names: a path has up to 4096 bytes, and messages have two of them before they come to what
 * went wrong and what to do. So the longest words of a message give way, in their middle, and the sentence stays.
 */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define CORE_ERROR_C
#include "error.h"

#define TEXT_BYTES (3u * PATH_MAX + 1024u) /* on stacks, while an error is filled */
#define GAP	   "..."
#define GAP_BYTES  (sizeof(GAP) - 1)
#define SHORTEST   24u /* no word is cut to less */

/* Messages are one line whatever a file name in them contains. */
static void keep_one_line(char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c < 0x20 || c == 0x7f)
			*text = '?';
	}
}

/* ---- messages that are too long ---- */

static bool inside_character(char c)
{
	return ((unsigned char)c & 0xc0) == 0x80; /* of UTF-8 */
}

/* Writes text, or its ends and a gap where it is longer than room, which is then more than SHORTEST. Returns the
 * length; out may be NULL. */
static size_t cut_middle(char *out, const char *text, size_t len, size_t room)
{
	size_t head = (room - GAP_BYTES) / 3, tail = room - GAP_BYTES - head;

	if (len <= room) {
		if (out)
			memcpy(out, text, len);
		return len;
	}
	while (head > 0 && inside_character(text[head]))
		head--;
	while (tail > 0 && inside_character(text[len - tail]))
		tail--;
	if (out) {
		memcpy(out, text, head);
		memcpy(out + head, GAP, GAP_BYTES);
		memcpy(out + head + GAP_BYTES, text + len - tail, tail);
	}
	return head + GAP_BYTES + tail;
}

/* The same with each word of text. */
static size_t cut_words(char *out, const char *text, size_t room)
{
	size_t len = 0;

	while (*text) {
		size_t word = strcspn(text, " "), spaces = strspn(text + word, " ");

		len += cut_middle(out ? out + len : NULL, text, word, room);
		if (out)
			memcpy(out + len, text + word, spaces);
		len += spaces;
		text += word + spaces;
	}
	return len;
}

static void set_msg(struct img_error *err, char *text)
{
	const size_t room = sizeof(err->msg) - 1;
	size_t word = room, len = strlen(text);

	keep_one_line(text);
	if (len > room)
		while (word >= SHORTEST && cut_words(NULL, text, word) > room)
			word -= word / 16 + 1;
	/* a sentence that is too long without long words */
	len = word >= SHORTEST ? cut_words(err->msg, text, word) : cut_middle(err->msg, text, len, room);
	err->msg[len] = '\0';
}

static char shown(char c)
{
	char text[2] = { c, '\0' };

	keep_one_line(text);
	return text[0];
}

/* How many characters of msg are those of path. */
static size_t common_length(const char *msg, const char *path)
{
	size_t i = 0;

	while (path[i] && msg[i] == shown(path[i]))
		i++;
	return i;
}

static const char *behind(const char *msg)
{
	return *msg == ':' ? msg + 1 + strspn(msg + 1, " ") : NULL;
}

const char *img_error_reason(const struct img_error *err, const char *path)
{
	size_t len = strlen(path), begin = common_length(err->msg, path);

	if (len == 0)
		return NULL;
	if (begin == len)
		return behind(err->msg + len);
	for (const char *gap = strstr(err->msg, GAP); gap; gap = strstr(gap + 1, GAP)) {
		const char *rest = gap + GAP_BYTES;
		size_t head = (size_t)(gap - err->msg);

		if (head == 0 || head > begin)
			continue;
		for (size_t tail = len - head; tail-- > 1;)
			if (common_length(rest, path + len - tail) == tail && rest[tail] == ':')
				return behind(rest + tail);
	}
	return NULL;
}

/* ---- filling ---- */

__attribute__((format(printf, 6, 0))) static void fill(struct img_error *err, int code, int sys_errno, uint64_t offset,
						       const char *layer, const char *fmt, va_list args)
{
	char text[TEXT_BYTES];

	err->code = code;
	err->sys_errno = sys_errno;
	err->offset = offset;
	(void)snprintf(err->layer, sizeof(err->layer), "%s", layer ? layer : "");
	(void)vsnprintf(text, sizeof(text), fmt, args);
	set_msg(err, text);
}

int error_set(struct img_error *err, int code, int sys_errno, uint64_t offset, const char *layer, const char *fmt, ...)
{
	va_list args;

	if (!err || err->code != IMG_OK)
		return code;
	va_start(args, fmt);
	fill(err, code, sys_errno, offset, layer, fmt, args);
	va_end(args);
	return code;
}

static int code_of_errno(int sys_errno)
{
	switch (sys_errno) {
	case ENOSPC:
	case EDQUOT:
	case EFBIG: return IMG_E_NOSPC;
	case ENOENT: return IMG_E_NOENT;
	case ENOMEM: return IMG_E_NOMEM;
	case EEXIST: return IMG_E_EXISTS;
	default: return IMG_E_IO;
	}
}

int error_errno(struct img_error *err, int sys_errno, uint64_t offset, const char *layer, const char *fmt, ...)
{
	int code = code_of_errno(sys_errno);
	char text[TEXT_BYTES], why[64];
	va_list args;

	if (!err || err->code != IMG_OK)
		return code;
	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text) - sizeof(why), fmt, args);
	va_end(args);
	return error_set(err, code, sys_errno, offset, layer, "%s: %s", text, strerror_r(sys_errno, why, sizeof(why)));
}

void error_prefix(struct img_error *err, const char *fmt, ...)
{
	char text[TEXT_BYTES];
	size_t len;
	va_list args;

	if (!err || err->code == IMG_OK)
		return;
	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text) - sizeof(err->msg) - 2, fmt, args);
	va_end(args);
	len = strlen(text);
	(void)snprintf(text + len, sizeof(text) - len, ": %s", err->msg);
	set_msg(err, text);
}

int img_error_set(struct img_error *err, int code, int sys_errno, const char *layer, const char *msg)
{
	char why[64];

	if (sys_errno == 0)
		return error_set(err, code, 0, NO_OFFSET, layer, "%s", msg);
	return error_set(err, code, sys_errno, NO_OFFSET, layer, "%s: %s", msg,
			 strerror_r(sys_errno, why, sizeof(why)));
}

void error_clear(struct img_error *err)
{
	if (!err)
		return;
	memset(err, 0, sizeof(*err));
	err->offset = NO_OFFSET;
}

const char *img_strerror(int code)
{
	switch (code) {
	case IMG_OK: return "success";
	case IMG_E_INVALID: return "invalid argument";
	case IMG_E_IO: return "input/output error on the host";
	case IMG_E_NOMEM: return "out of memory";
	case IMG_E_NOSPC: return "no space left on the host";
	case IMG_E_NOENT: return "no such file or snapshot";
	case IMG_E_EXISTS: return "the name is taken";
	case IMG_E_CORRUPT: return "image is damaged";
	case IMG_E_FORMAT: return "not an image of a known format";
	case IMG_E_BUSY: return "image is in use";
	case IMG_E_REFUSED: return "refused by policy";
	case IMG_E_CHANGED: return "backing file has changed";
	case IMG_E_UNSUPPORTED: return "not supported";
	case IMG_E_LIMIT: return "a limit is exceeded";
	case IMG_E_KEY: return "key is missing or wrong";
	case IMG_E_POISONED: return "an earlier failure forbids further changes";
	case IMG_E_READONLY: return "image is read-only";
	case IMG_E_CANCELLED: return "cancelled";
	default: return "unknown error";
	}
}

#define STRINGIFY_(x) #x
#define STRINGIFY(x)  STRINGIFY_(x)

const char *img_version(void)
{
	return STRINGIFY(IMG_VERSION_MAJOR) "." STRINGIFY(IMG_VERSION_MINOR) "." STRINGIFY(IMG_VERSION_PATCH);
}
