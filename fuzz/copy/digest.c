/* SPDX-License-Identifier: MIT */
/* Digests by others, after the words of libimg.h. */
#include <openssl/sha.h>
#include <string.h>
#include <xxhash.h>

#include "copy.h"

#define PIECE (1u << 20)

void digest_of(const struct flat *truth, enum img_digest algo, uint8_t *out, size_t *bytes)
{
	static uint8_t buf[MAX_BACKED_BYTES];
	XXH128_canonical_t piece, all;
	uint8_t message[sizeof(piece) + 8];
	size_t n = 0;

	_Static_assert(MAX_BACKED_BYTES <= PIECE, "all is one piece");
	flat_read(truth, buf, truth->size_bytes, 0);
	if (algo == IMG_DIGEST_SHA256) {
		SHA256(buf, truth->size_bytes, out);
		*bytes = SHA256_DIGEST_LENGTH;
		return;
	}
	if (truth->size_bytes > 0) {
		XXH128_canonicalFromHash(&piece, XXH3_128bits(buf, truth->size_bytes));
		memcpy(message, &piece, sizeof(piece));
		n = sizeof(piece);
	}
	for (unsigned i = 0; i < 8; i++)
		message[n++] = (uint8_t)(truth->size_bytes >> (8 * i));
	XXH128_canonicalFromHash(&all, XXH3_128bits(message, n));
	memcpy(out, &all, sizeof(all));
	*bytes = sizeof(all);
}
