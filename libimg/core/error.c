/* SPDX-License-Identifier: MIT */
/*
 * Filling struct img_error. The structure is fixed in size and belongs to the caller, so that reporting a failure can
 * itself neither fail nor allocate. The first failure of a chain of calls stays; whoever is further out only puts a
 * prefix before it.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CORE_ERROR_C
#include "error.h"

/* Messages are one line whatever a file name in them contains. */
static void keep_one_line(char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c < 0x20 || c == 0x7f)
			*text = '?';
	}
}

__attribute__((format(printf, 6, 0))) static void fill(struct img_error *err, int code, int sys_errno, uint64_t offset,
						       const char *layer, const char *fmt, va_list args)
{
	err->code = code;
	err->sys_errno = sys_errno;
	err->offset = offset;
	(void)snprintf(err->layer, sizeof(err->layer), "%s", layer ? layer : "");
	(void)vsnprintf(err->msg, sizeof(err->msg), fmt, args);
	keep_one_line(err->msg);
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
	char text[64];
	size_t len;
	va_list args;

	if (!err || err->code != IMG_OK)
		return code;
	va_start(args, fmt);
	fill(err, code, sys_errno, offset, layer, fmt, args);
	va_end(args);
	len = strlen(err->msg);
	(void)snprintf(err->msg + len, sizeof(err->msg) - len, ": %s", strerror_r(sys_errno, text, sizeof(text)));
	return code;
}

void error_prefix(struct img_error *err, const char *fmt, ...)
{
	char text[sizeof(err->msg)];
	char old[sizeof(err->msg)];
	size_t len;
	va_list args;

	if (!err || err->code == IMG_OK)
		return;
	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	keep_one_line(text);
	memcpy(old, err->msg, sizeof(old));
	/* What went wrong first says more than where: a long prefix gives way, down to a quarter of the room. */
	len = strlen(old) + 2 < sizeof(text) * 3 / 4 ? sizeof(text) - strlen(old) - 3 : sizeof(text) / 4;
	(void)snprintf(err->msg, sizeof(err->msg), "%.*s: ", (int)len, text);
	len = strlen(err->msg);
	(void)snprintf(err->msg + len, sizeof(err->msg) - len, "%s", old);
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
