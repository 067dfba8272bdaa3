/* SPDX-License-Identifier: MIT */
/* See shadow.h. */
#include "shadow.h"

#include <string.h>

void shadow_read(struct shadow *sh, struct img *img)
{
	uint64_t size = img_size(img);

	sh->bytes = size < SHADOW_BYTES ? size : SHADOW_BYTES;
	for (uint64_t off = 0; off < sh->bytes; off += SHADOW_PIECE) {
		uint64_t part = sh->bytes - off < SHADOW_PIECE ? sh->bytes - off : SHADOW_PIECE;

		sh->known[off / SHADOW_PIECE] = img_pread(img, sh->data + off, part, off, 0, NULL) == 0;
	}
}

void shadow_write(struct shadow *sh, const uint8_t *data, uint64_t bytes, uint64_t off)
{
	for (uint64_t i = off; i < off + bytes && i < sh->bytes; i++) {
		if (data)
			sh->data[i] = data[i - off];
		else
			sh->known[i / SHADOW_PIECE] = 0;
	}
}

void shadow_compare(const struct shadow *sh, struct img *img)
{
	uint8_t buf[SHADOW_PIECE];
	uint64_t size = img_size(img) < sh->bytes ? img_size(img) : sh->bytes;

	for (uint64_t off = 0; off < size; off += SHADOW_PIECE) {
		uint64_t part = size - off < SHADOW_PIECE ? size - off : SHADOW_PIECE;

		if (!sh->known[off / SHADOW_PIECE])
			continue;
		FUZZ_CHECK(img_pread(img, buf, part, off, 0, NULL) == 0);
		FUZZ_CHECK(memcmp(buf, sh->data + off, part) == 0);
	}
}
