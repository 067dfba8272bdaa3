/* SPDX-License-Identifier: MIT */
/*
 * Inputs about images: a template, what to make right again, options of the target's own, and changes to the image. So
 * an input is a few bytes, and reaches what lies behind checksums and far from the start of the file.
 *
 *   byte 0     bits 0-2: enum fuzz_fix; bit 7: the image is no template, but what follows the first four bytes
 *   byte 1     template
 *   bytes 2-3  options, which mean what the target says
 *   then patches, each: kind (bits 0-2), FUZZ_AT_FIELD (bit 3), width as a power of two (bits 4-5), the place (a field's
 * number, 2 bytes, or an offset, 4 bytes), and by kind BYTES     length (1), that many bytes FILL      length (2), byte
 *     COPY      offset from which (4), length (2)
 *     ADD       what is added to the number there (2, signed)
 *     SET       which number it becomes (1), see fuzz_value()
 *     TAKE      the field whose number it becomes (2)
 *     RESIZE    nothing: the place is the file's new length
 *
 * Numbers of the encoding are little-endian. Any sequence of bytes is an input: what is missing is zero, what makes no
 * sense does nothing.
 */
#ifndef FUZZ_PATCH_H
#define FUZZ_PATCH_H

#include "template.h"

#define FUZZ_PATCHES_MAX     40u
#define FUZZ_PATCH_DATA_MAX  64u
#define FUZZ_CASE_HEAD_BYTES 4u
#define FUZZ_IMAGE_MAX_BYTES (UINT64_C(1) << 30)
#define FUZZ_CASE_WHOLE	     0x80u

enum fuzz_patch_kind {
	FUZZ_BYTES,
	FUZZ_FILL,
	FUZZ_COPY,
	FUZZ_ADD,
	FUZZ_SET,
	FUZZ_TAKE,
	FUZZ_RESIZE,
	FUZZ_KINDS,
};

struct fuzz_patch {
	enum fuzz_patch_kind kind;
	bool at_field;
	uint8_t width;	 /* power of two of bytes, for ADD, SET and TAKE at an offset; a field has its own */
	uint32_t at;	 /* offset, or number of a field */
	uint32_t from;	 /* COPY: offset; TAKE: field */
	uint16_t length; /* BYTES, FILL, COPY */
	int16_t delta;	 /* ADD */
	uint8_t value;	 /* FILL, SET */
	uint8_t data[FUZZ_PATCH_DATA_MAX];
};

struct fuzz_case {
	unsigned fix; /* enum fuzz_fix */
	unsigned number;
	uint16_t options;
	const uint8_t *whole; /* NULL: a template and patches. Points into the input */
	size_t whole_bytes;
	struct fuzz_patch patch[FUZZ_PATCHES_MAX];
	unsigned nr;
};

void fuzz_case_parse(struct fuzz_case *c, const uint8_t *data, size_t bytes);
/* Bytes written; patches that do not fit are left out. */
size_t fuzz_case_store(const struct fuzz_case *c, uint8_t *out, size_t max);

/* One of the numbers that are likely to matter: old is what stands there, file_bytes the length of the file. */
uint64_t fuzz_value(uint8_t code, uint64_t old, uint64_t file_bytes);

/* Puts the files of t into fs, the image as the case wants it. */
void fuzz_case_put(const struct fuzz_case *c, const struct fuzz_template *t, struct memfs *fs);

#endif
