/* SPDX-License-Identifier: MIT */
/* See fail.h. */
#define TOOLS_FAIL_C
#include "fail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(struct img_error *err, int code, int sys_errno, const char *fmt, va_list ap)
{
	size_t used;

	if (!err || err->code != IMG_OK)
		return;
	memset(err, 0, sizeof(*err));
	err->code = code;
	err->sys_errno = sys_errno;
	err->offset = UINT64_MAX;
	strcpy(err->layer, "tools");
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	used = strlen(err->msg);
	if (sys_errno)
		snprintf(err->msg + used, sizeof(err->msg) - used, ": %s", strerror(sys_errno));
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
