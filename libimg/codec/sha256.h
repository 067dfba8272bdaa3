/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 by OpenSSL's libcrypto, which is loaded when a digest is begun and let go with it: linked, it would cost
 * every process that opens an image a millisecond at its start and 1.6 MiB of resident memory (measured), and a runner
 * beside a guest pays for neither.
 *
 * Threads: one digest belongs to one thread at a time; distinct ones are independent.
 */
#ifndef CODEC_SHA256_H
#define CODEC_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32u

struct sha256; /* opaque */

/* 0; IMG_E_NOMEM; IMG_E_UNSUPPORTED: there is no libcrypto of the version that this was built with. */
int sha256_new(struct sha256 **out);
/* 0 or IMG_E_IO: the library refused. */
int sha256_add(struct sha256 *sha, const void *data, size_t bytes);
int sha256_finish(struct sha256 *sha, uint8_t out[SHA256_BYTES]);
void sha256_free(struct sha256 *sha); /* NULL is allowed */

/* The file that is looked for, for messages: "libcrypto.so.3". */
const char *sha256_library(void);

#endif
