/* SPDX-License-Identifier: MIT */
/* Failures travel in our own code as libimg's do: a negative enum img_code, and one line in a struct img_error. */
#ifndef TOOLS_FAIL_H
#define TOOLS_FAIL_H

#include "libimg.h"

/* Fills err (may be NULL) unless it holds a failure already. Returns code. */
int fail(struct img_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* As fail() with IMG_E_IO and errno, whose text is added: "what: text". NOMEM for ENOMEM, BUSY for EBUSY. */
int fail_errno(struct img_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Static analysis looks at one file at a time: here it learns that these never return success. */
#if (defined(__clang_analyzer__) || defined(IMG_ANALYZER)) && !defined(TOOLS_FAIL_C)
#define fail(err, code, ...) ((void)fail(err, code, __VA_ARGS__), (code))
#define fail_errno(...)	     ((void)fail_errno(__VA_ARGS__), IMG_E_IO)
#endif

#endif
