/* SPDX-License-Identifier: MIT */
/* See sha256.h. */
#include "sha256.h"

#include <dlfcn.h>
#include <openssl/evp.h>
#include <stdlib.h>

#include "libimg.h"

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define FILLED(p, n) __msan_unpoison(p, n) /* by a library that is not instrumented */
#endif
#endif
#ifndef FILLED
#define FILLED(p, n) ((void)0)
#endif

#define TEXT_OF(x) #x
#define TEXT(x)	   TEXT_OF(x)
#define LIBRARY	   "libcrypto.so." TEXT(OPENSSL_SHLIB_VERSION)

struct sha256 {
	void *library;
	EVP_MD_CTX *ctx;
	/* the library's, with the types of its header */
	__typeof__(&EVP_MD_CTX_new) ctx_new;
	__typeof__(&EVP_MD_CTX_free) ctx_free;
	__typeof__(&EVP_sha256) md;
	__typeof__(&EVP_DigestInit_ex) init;
	__typeof__(&EVP_DigestUpdate) update;
	__typeof__(&EVP_DigestFinal_ex) final;
};

const char *sha256_library(void)
{
	return LIBRARY;
}

/* POSIX has it that an object pointer holds a function's. */
static int find(struct sha256 *s)
{
	*(void **)&s->ctx_new = dlsym(s->library, "EVP_MD_CTX_new");
	*(void **)&s->ctx_free = dlsym(s->library, "EVP_MD_CTX_free");
	*(void **)&s->md = dlsym(s->library, "EVP_sha256");
	*(void **)&s->init = dlsym(s->library, "EVP_DigestInit_ex");
	*(void **)&s->update = dlsym(s->library, "EVP_DigestUpdate");
	*(void **)&s->final = dlsym(s->library, "EVP_DigestFinal_ex");
	return s->ctx_new && s->ctx_free && s->md && s->init && s->update && s->final ? 0 : IMG_E_UNSUPPORTED;
}

int sha256_new(struct sha256 **out)
{
	struct sha256 *s = calloc(1, sizeof(*s));
	int ret;

	*out = NULL;
	if (!s)
		return IMG_E_NOMEM;
	s->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	ret = s->library ? find(s) : IMG_E_UNSUPPORTED;
	if (ret == 0) {
		s->ctx = s->ctx_new();
		ret = s->ctx && s->init(s->ctx, s->md(), NULL) == 1 ? 0 : IMG_E_NOMEM;
	}
	if (ret != 0) {
		sha256_free(s);
		return ret;
	}
	*out = s;
	return 0;
}

int sha256_add(struct sha256 *s, const void *data, size_t bytes)
{
	return s->update(s->ctx, data, bytes) == 1 ? 0 : IMG_E_IO;
}

int sha256_finish(struct sha256 *s, uint8_t out[SHA256_BYTES])
{
	unsigned nr = 0;
	int ok = s->final(s->ctx, out, &nr);

	FILLED(&nr, sizeof(nr));
	FILLED(out, SHA256_BYTES);
	return ok == 1 && nr == SHA256_BYTES ? 0 : IMG_E_IO;
}

void sha256_free(struct sha256 *s)
{
	if (!s)
		return;
	if (s->ctx)
		s->ctx_free(s->ctx);
	if (s->library)
		dlclose(s->library);
	free(s);
}
