/* SPDX-License-Identifier: MIT */
/*
 * For the msan preset only: the memory sanitizer knows what instrumented code writes, and takes what libzstd, zlib,
 * libxxhash and libcrypto write for uninitialised. Each function here stands before one of theirs (ld --wrap) and says
 * what it has filled in. fstat() and its kin are here because clang 14 does not know their names in glibc 2.33 and
 * later.
 */
#include <openssl/evp.h>
#include <sanitizer/msan_interface.h>
#include <sys/stat.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

/* Declares the real function, and the wrapper so that it is not "missing". */
#define WRAP(type, name, ...)            \
	type __real_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__)

/* A result in a register carries the shadow of whatever instrumented call came last. */
#define RETURN(value)                                     \
	do {                                              \
		__typeof__(value) result = (value);       \
		__msan_unpoison(&result, sizeof(result)); \
		return result;                            \
	} while (0)

static int filled_stat(int status, struct stat *st)
{
	__msan_unpoison(&status, sizeof(status));
	if (status == 0)
		__msan_unpoison(st, sizeof(*st));
	return status;
}

WRAP(int, fstat64, int fd, struct stat *st)
{
	return filled_stat(__real_fstat64(fd, st), st);
}

WRAP(int, stat64, const char *path, struct stat *st)
{
	return filled_stat(__real_stat64(path, st), st);
}

WRAP(int, lstat64, const char *path, struct stat *st)
{
	return filled_stat(__real_lstat64(path, st), st);
}

WRAP(int, fstatat64, int fd, const char *path, struct stat *st, int flags)
{
	return filled_stat(__real_fstatat64(fd, path, st, flags), st);
}

static size_t filled_buffer(size_t bytes, void *dst)
{
	__msan_unpoison(&bytes, sizeof(bytes));
	if (!ZSTD_isError(bytes))
		__msan_unpoison(dst, bytes);
	return bytes;
}

WRAP(size_t, ZSTD_compress2, ZSTD_CCtx *ctx, void *dst, size_t cap, const void *src, size_t bytes)
{
	return filled_buffer(__real_ZSTD_compress2(ctx, dst, cap, src, bytes), dst);
}

WRAP(size_t, ZSTD_decompressDCtx, ZSTD_DCtx *ctx, void *dst, size_t cap, const void *src, size_t bytes)
{
	return filled_buffer(__real_ZSTD_decompressDCtx(ctx, dst, cap, src, bytes), dst);
}

WRAP(size_t, ZSTD_findFrameCompressedSize, const void *src, size_t bytes)
{
	RETURN(__real_ZSTD_findFrameCompressedSize(src, bytes));
}

static int filled_stream(int status, z_stream *stream, Bytef *from)
{
	__msan_unpoison(&status, sizeof(status));
	__msan_unpoison(stream, sizeof(*stream));
	__msan_unpoison(from, (size_t)(stream->next_out - from));
	return status;
}

/* Of the tests. */
WRAP(int, compress, Bytef *dst, uLongf *bytes, const Bytef *src, uLong src_bytes)
{
	int status = __real_compress(dst, bytes, src, src_bytes);

	__msan_unpoison(&status, sizeof(status));
	__msan_unpoison(bytes, sizeof(*bytes));
	__msan_unpoison(dst, *bytes);
	return status;
}

WRAP(int, deflate, z_stream *stream, int flush)
{
	Bytef *from = stream->next_out;

	return filled_stream(__real_deflate(stream, flush), stream, from);
}

WRAP(int, inflate, z_stream *stream, int flush)
{
	Bytef *from = stream->next_out;

	return filled_stream(__real_inflate(stream, flush), stream, from);
}

WRAP(XXH64_hash_t, XXH3_64bits, const void *src, size_t bytes)
{
	__msan_check_mem_is_initialized(src, bytes);
	RETURN(__real_XXH3_64bits(src, bytes));
}

WRAP(XXH64_hash_t, XXH3_64bits_withSeed, const void *src, size_t bytes, XXH64_hash_t seed)
{
	__msan_check_mem_is_initialized(src, bytes);
	RETURN(__real_XXH3_64bits_withSeed(src, bytes, seed));
}

WRAP(XXH128_hash_t, XXH3_128bits, const void *src, size_t bytes)
{
	__msan_check_mem_is_initialized(src, bytes);
	RETURN(__real_XXH3_128bits(src, bytes));
}

WRAP(XXH128_hash_t, XXH3_128bits_digest, const XXH3_state_t *state)
{
	RETURN(__real_XXH3_128bits_digest(state));
}

WRAP(void, XXH128_canonicalFromHash, XXH128_canonical_t *dst, XXH128_hash_t hash)
{
	__real_XXH128_canonicalFromHash(dst, hash);
	__msan_unpoison(dst, sizeof(*dst));
}

WRAP(XXH64_hash_t, XXH64, const void *src, size_t bytes, XXH64_hash_t seed)
{
	__msan_check_mem_is_initialized(src, bytes);
	RETURN(__real_XXH64(src, bytes, seed));
}

WRAP(int, EVP_DigestFinal_ex, EVP_MD_CTX *ctx, unsigned char *out, unsigned *bytes)
{
	int status = __real_EVP_DigestFinal_ex(ctx, out, bytes);
	unsigned filled = (unsigned)EVP_MD_CTX_size(ctx);

	__msan_unpoison(&status, sizeof(status));
	__msan_unpoison(&filled, sizeof(filled));
	__msan_unpoison(out, filled);
	if (bytes)
		__msan_unpoison(bytes, sizeof(*bytes));
	return status;
}

/* Inside libcrypto everything calls strcmp() and such on memory of unknown shadow. */
WRAP(int, EVP_DigestInit_ex, EVP_MD_CTX *ctx, const EVP_MD *type, ENGINE *engine)
{
	int status;

	__msan_scoped_disable_interceptor_checks();
	status = __real_EVP_DigestInit_ex(ctx, type, engine);
	__msan_scoped_enable_interceptor_checks();
	RETURN(status);
}

WRAP(int, EVP_DigestUpdate, EVP_MD_CTX *ctx, const void *src, size_t bytes)
{
	__msan_check_mem_is_initialized(src, bytes);
	RETURN(__real_EVP_DigestUpdate(ctx, src, bytes));
}

WRAP(unsigned char *, SHA256, const unsigned char *src, size_t bytes, unsigned char *out)
{
	__msan_check_mem_is_initialized(src, bytes);
	__msan_scoped_disable_interceptor_checks();
	__real_SHA256(src, bytes, out);
	__msan_scoped_enable_interceptor_checks();
	__msan_unpoison(out, 32);
	return out;
}
