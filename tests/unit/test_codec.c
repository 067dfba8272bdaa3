/* SPDX-License-Identifier: MIT */
/* Codecs: round trips, exactness of results, and every kind of malformed input that codec.h names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include "codec.h"
#include "libimg.h"

#define PLAIN_BYTES (128u * 1024)
#define ROOM	    (2 * PLAIN_BYTES)

struct fixture {
	struct codec_ctx *ctx;
	uint8_t plain[PLAIN_BYTES], packed[ROOM], back[ROOM];
};

static const enum codec_id ids[] = { CODEC_ZSTD, CODEC_DEFLATE, CODEC_DEFLATE_4K, CODEC_ZLIB };
#define NR_IDS (sizeof(ids) / sizeof(ids[0]))

static uint32_t next_random(uint32_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	*seed ^= *seed << 5;
	return *seed;
}

/* Words of a small vocabulary: compresses, but not to nothing. */
static void fill_text(uint8_t *buf, size_t bytes, uint32_t seed)
{
	for (size_t i = 0; i < bytes; i++)
		buf[i] = (uint8_t)("etaoin shrdlu\n"[next_random(&seed) % 14]);
}

static void fill_noise(uint8_t *buf, size_t bytes, uint32_t seed)
{
	for (size_t i = 0; i < bytes; i++)
		buf[i] = (uint8_t)(next_random(&seed) >> 11);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->ctx = codec_ctx_new();
	assert_non_null(f->ctx);
	fill_text(f->plain, sizeof(f->plain), 7);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	codec_ctx_free(f->ctx);
	free(f);
	return 0;
}

static size_t pack(struct fixture *f, enum codec_id id, int level, size_t bytes)
{
	size_t out = 0;

	assert_int_equal(codec_compress(f->ctx, id, level, f->plain, bytes, f->packed, ROOM, &out), 0);
	assert_true(out > 0 && out <= ROOM);
	return out;
}

static void round_trips(void **state)
{
	static const size_t sizes[] = { 1, 511, 4096, 65536, PLAIN_BYTES };
	struct fixture *f = *state;

	for (size_t i = 0; i < NR_IDS; i++) {
		for (int level = 0; level <= 9; level += 3) {
			for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
				size_t n = pack(f, ids[i], level, sizes[s]);

				memset(f->back, 0xa5, sizeof(f->back));
				assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, n, f->back, sizes[s]), 0);
				assert_memory_equal(f->back, f->plain, sizes[s]);
				assert_int_equal(f->back[sizes[s]], 0xa5); /* nothing past the end */
			}
		}
		assert_true(pack(f, ids[i], 0, PLAIN_BYTES) < PLAIN_BYTES * 3 / 4);
	}
}

static void higher_levels_are_used(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(f->plain); i++) /* long repeats that only a deeper search finds well */
		f->plain[i] = (uint8_t)("abcdefgh"[(i * i / 97) % 8]);
	assert_true(pack(f, CODEC_ZSTD, 19, PLAIN_BYTES) < pack(f, CODEC_ZSTD, 1, PLAIN_BYTES));
	assert_true(pack(f, CODEC_DEFLATE, 9, PLAIN_BYTES) < pack(f, CODEC_DEFLATE, 1, PLAIN_BYTES));
}

static void noise_does_not_fit(void **state)
{
	struct fixture *f = *state;
	size_t out = 0;

	fill_noise(f->plain, sizeof(f->plain), 99);
	for (size_t i = 0; i < NR_IDS; i++) {
		assert_int_equal(codec_compress(f->ctx, ids[i], 0, f->plain, PLAIN_BYTES, f->packed, PLAIN_BYTES - 4096,
						&out),
				 1);
		assert_int_equal(codec_compress(f->ctx, ids[i], 0, f->plain, PLAIN_BYTES, f->packed, 1, &out), 1);
	}
	/* The context is whole afterwards. */
	fill_text(f->plain, sizeof(f->plain), 3);
	round_trips(state);
}

static void stays_inside_dst_cap(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < NR_IDS; i++) {
		size_t n = pack(f, ids[i], 0, PLAIN_BYTES), out = 0;

		memset(f->packed, 0x5a, ROOM);
		assert_int_equal(codec_compress(f->ctx, ids[i], 0, f->plain, PLAIN_BYTES, f->packed, n - 1, &out), 1);
		assert_int_equal(f->packed[n - 1], 0x5a);
	}
}

static void wrong_sizes_are_corrupt(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < NR_IDS; i++) {
		size_t n = pack(f, ids[i], 0, 65536);

		assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, n, f->back, 65535), IMG_E_CORRUPT);
		assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, n, f->back, 65537), IMG_E_CORRUPT);
		f->packed[n] = 0; /* trailing input */
		assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, n + 1, f->back, 65536), IMG_E_CORRUPT);
		assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, 0, f->back, 65536), IMG_E_CORRUPT);
		for (size_t cut = 1; cut < n; cut += 1 + n / 50)
			assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, cut, f->back, 65536), IMG_E_CORRUPT);
		/* And the context still works. */
		assert_int_equal(codec_expand(f->ctx, ids[i], f->packed, n, f->back, 65536), 0);
		assert_memory_equal(f->back, f->plain, 65536);
	}
}

static void damage_never_overruns(void **state)
{
	struct fixture *f = *state;
	uint32_t seed = 4711;

	for (size_t i = 0; i < NR_IDS; i++) {
		size_t n = pack(f, ids[i], 0, 16384);

		assert_int_not_equal(n, 0);
		for (unsigned round = 0; round < 2000; round++) {
			size_t at = next_random(&seed) % n;
			uint8_t old = f->packed[at];
			int r;

			f->packed[at] = (uint8_t)(old ^ 1u << next_random(&seed) % 8);
			memset(f->back + 16384, 0xa5, 64);
			r = codec_expand(f->ctx, ids[i], f->packed, n, f->back, 16384);
			assert_true(r == 0 || r == IMG_E_CORRUPT);
			for (size_t k = 0; k < 64; k++)
				assert_int_equal(f->back[16384 + k], 0xa5);
			f->packed[at] = old;
		}
	}
}

static void zstd_takes_one_frame_only(void **state)
{
	static const uint8_t skippable[] = { 0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4 };
	struct fixture *f = *state;
	size_t n = pack(f, CODEC_ZSTD, 0, 4096), out = 0;

	assert_int_equal(codec_compress(f->ctx, CODEC_ZSTD, 0, f->plain + 4096, 4096, f->packed + n, ROOM - n, &out),
			 0);
	assert_int_equal(codec_expand(f->ctx, CODEC_ZSTD, f->packed, n + out, f->back, 8192), IMG_E_CORRUPT);
	memmove(f->packed + sizeof(skippable), f->packed, n);
	memcpy(f->packed, skippable, sizeof(skippable));
	assert_int_equal(codec_expand(f->ctx, CODEC_ZSTD, f->packed, n + sizeof(skippable), f->back, 4096),
			 IMG_E_CORRUPT);
}

static void a_prefix_has_no_known_end(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < NR_IDS; i++) {
		size_t n = pack(f, ids[i], 0, 65536);

		fill_noise(f->packed + n, 512, 5);
		memset(f->back, 0xa5, sizeof(f->back));
		assert_int_equal(codec_expand_prefix(f->ctx, ids[i], f->packed, n + 512, f->back, 65536), 0);
		assert_memory_equal(f->back, f->plain, 65536);
		assert_int_equal(f->back[65536], 0xa5);
		assert_int_equal(codec_expand_prefix(f->ctx, ids[i], f->packed, n, f->back, 65536), 0);
		/* What makes too little is damage, and so is what ends too early. */
		assert_int_equal(codec_expand_prefix(f->ctx, ids[i], f->packed, n, f->back, 65537), IMG_E_CORRUPT);
		for (size_t cut = 0; cut < n - 16; cut += 1 + n / 50)
			assert_int_equal(codec_expand_prefix(f->ctx, ids[i], f->packed, cut, f->back, 65536),
					 IMG_E_CORRUPT);
	}
}

static void a_prefix_may_be_several_frames(void **state)
{
	struct fixture *f = *state;
	size_t n = pack(f, CODEC_ZSTD, 0, 4096), out = 0;

	assert_int_equal(codec_compress(f->ctx, CODEC_ZSTD, 0, f->plain + 4096, 4096, f->packed + n, ROOM - n, &out),
			 0);
	assert_int_equal(codec_expand_prefix(f->ctx, CODEC_ZSTD, f->packed, n + out, f->back, 8192), 0);
	assert_memory_equal(f->back, f->plain, 8192);
	assert_int_equal(codec_expand_prefix(f->ctx, CODEC_ZSTD, f->packed, n + out, f->back, 4096), 0);
	assert_int_equal(codec_expand_prefix(f->ctx, CODEC_ZSTD, f->packed, n + out, f->back, 6000), IMG_E_CORRUPT);
	assert_int_equal(codec_expand_prefix(f->ctx, CODEC_ZSTD, f->packed, n + out, f->back, 8193), IMG_E_CORRUPT);
}

/* zlib's own readers take what is packed for them, whatever packed it; noise is stored, unless it repeats. */
static void zlib_reads_zlib(void **state)
{
	struct fixture *f = *state;

	for (unsigned kind = 0; kind < 3; kind++) {
		uLongf n = ROOM;
		size_t packed;

		if (kind == 0)
			fill_text(f->plain, sizeof(f->plain), 12);
		else
			fill_noise(f->plain, sizeof(f->plain), 17);
		if (kind == 2)
			memcpy(f->plain + 65536 + 512, f->plain + 40960, 20480); /* within the window */
		packed = pack(f, CODEC_ZLIB, 0, PLAIN_BYTES);
		if (kind == 1)
			assert_int_equal(packed, PLAIN_BYTES + 6 + 3 * 5);
		else
			assert_true(packed < PLAIN_BYTES - 19000);
		assert_int_equal(uncompress(f->back, &n, f->packed, (uLong)packed), Z_OK);
		assert_int_equal(n, PLAIN_BYTES);
		assert_memory_equal(f->back, f->plain, PLAIN_BYTES);
		f->packed[packed - 1] ^= 1; /* the checksum is looked at */
		assert_int_equal(codec_expand(f->ctx, CODEC_ZLIB, f->packed, packed, f->back, PLAIN_BYTES),
				 IMG_E_CORRUPT);
	}
	fill_text(f->plain, sizeof(f->plain), 7);
}

/* A reader with a window of 4 KiB, as there are. */
static int expands_in_4k(struct fixture *f, size_t n)
{
	z_stream z = { .next_in = f->packed, .avail_in = (uInt)n, .next_out = f->back, .avail_out = PLAIN_BYTES };
	uint8_t *to = f->back;
	int r;

	assert_int_equal(inflateInit2(&z, -12), Z_OK);
	do { /* in small pieces, or the output itself would serve as the window */
		z.next_out = to;
		z.avail_out = 512;
		r = inflate(&z, Z_NO_FLUSH);
		to += 512 - z.avail_out;
	} while (r == Z_OK && to < f->back + PLAIN_BYTES);
	inflateEnd(&z);
	return (r == Z_OK || r == Z_STREAM_END) && memcmp(f->back, f->plain, PLAIN_BYTES) == 0;
}

static void deflate_4k_looks_back_no_further(void **state)
{
	struct fixture *f = *state;

	fill_noise(f->plain, 8192, 31);
	for (size_t at = 8192; at < PLAIN_BYTES; at += 8192) /* repeats at a distance of 8 KiB */
		memcpy(f->plain + at, f->plain, 8192);
	assert_false(expands_in_4k(f, pack(f, CODEC_DEFLATE, 0, PLAIN_BYTES))); /* else this tests nothing */
	assert_true(expands_in_4k(f, pack(f, CODEC_DEFLATE_4K, 0, PLAIN_BYTES)));
}

/* A frame with a window descriptor, made by the streaming interface, which does not know the size of the content. */
static size_t frame_with_window(struct fixture *f, int window_log)
{
	ZSTD_CCtx *cctx = ZSTD_createCCtx();
	ZSTD_inBuffer in = { f->plain, PLAIN_BYTES, 0 };
	ZSTD_outBuffer out = { f->packed, ROOM, 0 };

	assert_non_null(cctx);
	assert_false(ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_windowLog, window_log)));
	assert_false(ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_contentSizeFlag, 0)));
	while (in.pos < in.size)
		assert_false(ZSTD_isError(ZSTD_compressStream2(cctx, &out, &in, ZSTD_e_continue)));
	assert_int_equal(ZSTD_compressStream2(cctx, &out, &in, ZSTD_e_end), 0);
	ZSTD_freeCCtx(cctx);
	assert_int_equal(f->packed[4] & 0x20, 0); /* else this tests nothing */
	return out.pos;
}

static void zstd_bounds_the_window(void **state)
{
	struct fixture *f = *state;
	size_t n = frame_with_window(f, 23);

	assert_int_equal(codec_expand(f->ctx, CODEC_ZSTD, f->packed, n, f->back, PLAIN_BYTES), 0);
	assert_memory_equal(f->back, f->plain, PLAIN_BYTES);
	f->packed[5] |= 1; /* 9 MiB */
	assert_int_equal(codec_expand(f->ctx, CODEC_ZSTD, f->packed, n, f->back, PLAIN_BYTES), IMG_E_CORRUPT);
	n = frame_with_window(f, 24);
	assert_int_equal(codec_expand(f->ctx, CODEC_ZSTD, f->packed, n, f->back, PLAIN_BYTES), IMG_E_CORRUPT);
}

static void zstd_refuses_dictionaries(void **state)
{
	/* Frame with a one-byte dictionary id, and one raw block of no bytes. */
	static const uint8_t frame[] = { 0x28, 0xb5, 0x2f, 0xfd, 0x21, 0x07, 0x01, 0x09, 0x00, 0x00, 'x' };
	struct fixture *f = *state;

	assert_int_equal(codec_expand(f->ctx, CODEC_ZSTD, frame, sizeof(frame), f->back, 1), IMG_E_CORRUPT);
}

static void unknown_codecs_are_invalid(void **state)
{
	struct fixture *f = *state;
	size_t out;

	assert_int_equal(codec_compress(f->ctx, CODEC_NONE, 0, f->plain, 16, f->packed, ROOM, &out), IMG_E_INVALID);
	assert_int_equal(codec_expand(f->ctx, (enum codec_id)7, f->plain, 16, f->back, 16), IMG_E_INVALID);
	assert_int_equal(codec_compress(f->ctx, CODEC_ZSTD, 23, f->plain, 16, f->packed, ROOM, &out), IMG_E_INVALID);
	assert_int_equal(codec_compress(f->ctx, CODEC_DEFLATE, 10, f->plain, 16, f->packed, ROOM, &out), IMG_E_INVALID);
	assert_int_equal(codec_compress(f->ctx, CODEC_DEFLATE, -1, f->plain, 16, f->packed, ROOM, &out), IMG_E_INVALID);
}

static void names(void **state)
{
	static const struct {
		const char *text;
		enum codec_id id;
		int level;
	} good[] = {
		{ "none", CODEC_NONE, 0 },     { "zstd", CODEC_ZSTD, 0 },    { "zstd:1", CODEC_ZSTD, 1 },
		{ "zstd:22", CODEC_ZSTD, 22 }, { "zlib", CODEC_DEFLATE, 0 }, { "zlib:9", CODEC_DEFLATE, 9 },
	};
	static const char *const bad[] = {
		"",	   "zst",     "zstd ",	 "zstd:",   "zstd:0", "zstd:23", "zstd:-1",
		"zstd:+3", "zstd: 3", "zstd:3x", "zlib:10", "none:1", "ZSTD",	 "zstd:99999999999999999999"
	};
	enum codec_id id;
	int level;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(codec_parse(good[i].text, &id, &level), 0);
		assert_int_equal(id, good[i].id);
		assert_int_equal(level, good[i].level);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(codec_parse(bad[i], &id, &level), -1);
	assert_string_equal(codec_name(CODEC_NONE), "none");
	assert_string_equal(codec_name(CODEC_ZSTD), "zstd");
	assert_string_equal(codec_name(CODEC_DEFLATE), "zlib");
	assert_string_equal(codec_name((enum codec_id)9), "unknown");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(round_trips, setup, teardown),
		cmocka_unit_test_setup_teardown(higher_levels_are_used, setup, teardown),
		cmocka_unit_test_setup_teardown(noise_does_not_fit, setup, teardown),
		cmocka_unit_test_setup_teardown(stays_inside_dst_cap, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_sizes_are_corrupt, setup, teardown),
		cmocka_unit_test_setup_teardown(damage_never_overruns, setup, teardown),
		cmocka_unit_test_setup_teardown(zstd_takes_one_frame_only, setup, teardown),
		cmocka_unit_test_setup_teardown(a_prefix_has_no_known_end, setup, teardown),
		cmocka_unit_test_setup_teardown(a_prefix_may_be_several_frames, setup, teardown),
		cmocka_unit_test_setup_teardown(zlib_reads_zlib, setup, teardown),
		cmocka_unit_test_setup_teardown(deflate_4k_looks_back_no_further, setup, teardown),
		cmocka_unit_test_setup_teardown(zstd_bounds_the_window, setup, teardown),
		cmocka_unit_test_setup_teardown(zstd_refuses_dictionaries, setup, teardown),
		cmocka_unit_test_setup_teardown(unknown_codecs_are_invalid, setup, teardown),
		cmocka_unit_test(names),
	};

	return cmocka_run_group_tests_name("codec", tests, NULL, NULL);
}
