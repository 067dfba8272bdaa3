/* SPDX-License-Identifier: MIT */
/* See alloc_fault.h. What the C library and other libraries allocate inside themselves is not reached. */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "alloc_fault.h"

static _Atomic uint64_t seen, nth_fails, failed;
static _Atomic bool fails_on;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t nr, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_reallocarray(void *p, size_t nr, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
int __real_posix_memalign(void **out, size_t align, size_t bytes);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t nr, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_reallocarray(void *p, size_t nr, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
int __wrap_posix_memalign(void **out, size_t align, size_t bytes);
char *__wrap_strdup(const char *text);
int __wrap_asprintf(char **out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void alloc_fault_arm(uint64_t nth, bool for_good)
{
	atomic_store(&seen, 0);
	atomic_store(&failed, 0);
	atomic_store(&fails_on, for_good);
	atomic_store(&nth_fails, nth);
}

void alloc_fault_disarm(void)
{
	atomic_store(&nth_fails, 0);
}

uint64_t alloc_fault_failed(void)
{
	return atomic_load(&failed);
}

static bool fails(void)
{
	uint64_t nth = atomic_load(&nth_fails), now;

	if (nth == 0)
		return false;
	now = atomic_fetch_add(&seen, 1) + 1;
	if (now != nth && !(now > nth && atomic_load(&fails_on)))
		return false;
	atomic_fetch_add(&failed, 1);
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t bytes)
{
	return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t nr, size_t bytes)
{
	return fails() ? NULL : __real_calloc(nr, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
	return fails() ? NULL : __real_realloc(p, bytes);
}

void *__wrap_reallocarray(void *p, size_t nr, size_t bytes)
{
	return fails() ? NULL : __real_reallocarray(p, nr, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
	return fails() ? NULL : __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **out, size_t align, size_t bytes)
{
	return fails() ? ENOMEM : __real_posix_memalign(out, align, bytes);
}

char *__wrap_strdup(const char *text)
{
	size_t bytes = strlen(text) + 1;
	char *copy = __wrap_malloc(bytes);

	return copy != NULL ? memcpy(copy, text, bytes) : NULL;
}

int __wrap_asprintf(char **out, const char *fmt, ...)
{
	va_list args;
	int n;

	*out = NULL;
	if (fails())
		return -1;
	va_start(args, fmt);
	n = vasprintf(out, fmt, args);
	va_end(args);
	return n;
}
