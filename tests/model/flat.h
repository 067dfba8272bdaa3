/* SPDX-License-Identifier: MIT */
/*
 * The truth that images are compared with: a flat array of bytes. Pages are shared between copies, so that a copy for
 * each snapshot is cheap; a page that is not there is zeros. Running out of memory ends the program.
 */
#ifndef TESTS_FLAT_H
#define TESTS_FLAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FLAT_PAGE 4096u

struct flat_page;
struct flat {
	uint64_t size_bytes;
	struct flat_page **pages; /* one for each FLAT_PAGE of size_bytes */
};

void flat_init(struct flat *f, uint64_t size_bytes);
void flat_free(struct flat *f);
void flat_copy(struct flat *to, const struct flat *from); /* to holds nothing */
void flat_resize(struct flat *f, uint64_t size_bytes);	  /* new bytes are zeros */
/* What lies beyond the end reads as zeros. */
void flat_read(const struct flat *f, void *buf, uint64_t bytes, uint64_t off);
/* Offset within buf of the first byte that is not the truth's, UINT64_MAX if none. */
uint64_t flat_compare(const struct flat *f, const void *buf, uint64_t bytes, uint64_t off);
void flat_write(struct flat *f, const void *buf, uint64_t bytes, uint64_t off);
void flat_zero(struct flat *f, uint64_t bytes, uint64_t off);
/* Offset of the first byte in which they differ, each being followed by zeros without end; UINT64_MAX: the same. */
uint64_t flat_diff(const struct flat *a, const struct flat *b, uint64_t bytes, uint64_t off);
/* Is anything stored in the range? What is not is zeros. */
bool flat_holds(const struct flat *f, uint64_t bytes, uint64_t off);
bool flat_is_zero(const struct flat *f, uint64_t bytes, uint64_t off);

#endif
