/* SPDX-License-Identifier: MIT */
/* Filling struct img_error. See libimg.h for the model: first failure wins, outer layers prefix. */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include "libimg.h"

#define NO_OFFSET UINT64_MAX

/* Fills err (may be NULL) unless it is already filled by this call chain, and returns code. One line, no newline. */
int error_set(struct img_error *err, int code, int sys_errno, uint64_t offset, const char *layer, const char *fmt, ...)
	__attribute__((format(printf, 6, 7)));

/* Host failure: maps sys_errno (ENOSPC, EDQUOT, EFBIG: NOSPC; ENOENT: NOENT; ENOMEM: NOMEM; EEXIST: EXISTS; else IO)
 * and appends strerror(). Returns the code. */
int error_errno(struct img_error *err, int sys_errno, uint64_t offset, const char *layer, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));

/* Puts "text: " before the message. Returns err->code, or IMG_E_IO where err is NULL or empty: callers pass on the code
 * that they have. */
void error_prefix(struct img_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Makes err empty (code IMG_OK) before a new chain of calls. err may be NULL. */
void error_clear(struct img_error *err);

/* Static analysis looks at one file at a time: here it learns that these never return success. */
#if (defined(__clang_analyzer__) || defined(IMG_ANALYZER)) && !defined(CORE_ERROR_C)
#define error_set(err, code, ...) ((void)error_set(err, code, __VA_ARGS__), (code))
#define error_errno(...)	  ((void)error_errno(__VA_ARGS__), IMG_E_IO)
#endif

#endif
