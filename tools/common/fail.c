/* SPDX-License-Identifier: MIT */
/* See fail.h. */
#define TOOLS_FAIL_C
#include "fail.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

static void fill(struct img_error *err, int code, int sys_errno, const char *fmt, va_list ap)
{
	char text[2 * PATH_MAX + 1024]; /* the library makes it fit, and keeps the reason */

	if (!err || err->code != IMG_OK)
		return;
	vsnprintf(text, sizeof(text), fmt, ap);
	(void)img_error_set(err, code, sys_errno, "tools", text);
}

int fail(struct img_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fill(err, code, 0, fmt, ap);
	va_end(ap);
	return code;
}

int fail_errno(struct img_error *err, const char *fmt, ...)
{
	int sys_errno = errno;
	int code = sys_errno == ENOMEM ? IMG_E_NOMEM : sys_errno == EBUSY ? IMG_E_BUSY : IMG_E_IO;
	va_list ap;

	va_start(ap, fmt);
	fill(err, code, sys_errno, fmt, ap);
	va_end(ap);
	return code;
}
