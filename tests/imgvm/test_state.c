/* SPDX-License-Identifier: MIT */
/* Sections come back as they were written; nothing that is cut, changed or added is taken for machine state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "state.h"

#define TAG_A	      STATE_TAG('A', 'A', 'A', 'A')
#define TAG_B	      STATE_TAG('B', ' ', 0x01, 'B')
#define HEADER_BYTES  32u
#define SECTION_BYTES 24u

/* Three sections: 15 bytes, none, 300 bytes. */
static size_t sample(uint8_t *buf, size_t cap)
{
	struct img_error err = { 0 };
	struct state_writer w;
	uint8_t raw[300];
	size_t bytes = 0;

	for (unsigned i = 0; i < sizeof(raw); i++)
		raw[i] = (uint8_t)(i * 7);
	state_start(&w, buf, cap);
	state_begin(&w, TAG_A, 0, 1);
	state_put8(&w, 0x12);
	state_put16(&w, 0x3456);
	state_put32(&w, 0x789abcde);
	state_put64(&w, UINT64_C(0xf00f123456789abc));
	state_end(&w);
	state_begin(&w, TAG_A, 1, 2);
	state_end(&w);
	state_begin(&w, TAG_B, 0, 1);
	state_put(&w, raw, sizeof(raw));
	state_end(&w);
	assert_int_equal(state_finish(&w, &bytes, &err), 0);
	return bytes;
}

static int parse(struct state *st, const uint8_t *buf, size_t bytes, struct img_error *err)
{
	*err = (struct img_error){ 0 };
	return state_parse(st, buf, bytes, err);
}

static void test_round_trip(void **unused)
{
	static uint8_t buf[1024];
	size_t bytes = sample(buf, sizeof(buf));
	struct img_error err = { 0 };
	struct state_reader r;
	struct state st;
	uint8_t raw[300];

	(void)unused;
	assert_int_equal(bytes, HEADER_BYTES + 3 * SECTION_BYTES + 15 + 300);
	/* the area behind it is zeros and no part of it */
	assert_int_equal(parse(&st, buf, sizeof(buf), &err), 0);
	assert_int_equal(st.bytes, bytes);
	assert_int_equal(st.nr_sections, 3);

	assert_int_equal(state_open(&st, TAG_A, 0, 1, &r, &err), 0);
	assert_int_equal(state_left(&r), 15);
	assert_int_equal(state_get8(&r), 0x12);
	assert_int_equal(state_get16(&r), 0x3456);
	assert_int_equal(state_get32(&r), 0x789abcde);
	assert_int_not_equal(state_done(&r, "a", NULL), 0);
	assert_true(state_get64(&r) == UINT64_C(0xf00f123456789abc));
	assert_int_equal(state_done(&r, "a", &err), 0);
	assert_int_equal(state_all_taken(&st, &err), IMG_E_UNSUPPORTED);
	assert_non_null(strstr(err.msg, "'AAAA' 1"));

	err = (struct img_error){ 0 };
	assert_int_equal(state_open(&st, TAG_A, 1, 2, &r, &err), 0);
	assert_int_equal(r.version, 2);
	assert_int_equal(state_done(&r, "empty", &err), 0);
	assert_int_equal(state_open(&st, TAG_B, 0, 1, &r, &err), 0);
	state_get(&r, raw, sizeof(raw));
	assert_int_equal(raw[299], (uint8_t)(299 * 7));
	assert_int_equal(state_done(&r, "b", &err), 0);
	assert_int_equal(state_all_taken(&st, &err), 0);
}

static void test_bytes_on_disk(void **unused)
{
	/* the document's example: the format must not drift with the host or the compiler */
	static const uint8_t expect[] = { 'I', 'M', 'G', 'V', 'M', 0x1a, 0x0d, 0x0a, 1, 0, 0, 0,    1,	 0, 0,
					  0,   58,  0,	 0,   0,   0,	 0,    0,    0, 0, 0, 0,    0,	 0, 0,
					  0,   0,   'T', 'E', 'S', 'T',	 3,    0,    0, 0, 1, 0,    0,	 0, 0,
					  0,   0,   0,	 2,   0,   0,	 0,    0,    0, 0, 0, 0x34, 0x12 };
	struct img_error err = { 0 };
	struct state_writer w;
	uint8_t buf[64];
	size_t bytes;

	(void)unused;
	state_start(&w, buf, sizeof(buf));
	state_begin(&w, STATE_TAG('T', 'E', 'S', 'T'), 3, 1);
	state_put16(&w, 0x1234);
	state_end(&w);
	assert_int_equal(state_finish(&w, &bytes, &err), 0);
	assert_int_equal(bytes, sizeof(expect));
	assert_memory_equal(buf, expect, sizeof(expect));
}

static void test_reading_past_the_end(void **unused)
{
	static uint8_t buf[1024];
	size_t bytes = sample(buf, sizeof(buf));
	struct img_error err = { 0 };
	struct state_reader r;
	struct state st;
	uint8_t raw[16];

	(void)unused;
	assert_int_equal(parse(&st, buf, bytes, &err), 0);
	assert_int_equal(state_open(&st, TAG_A, 0, 1, &r, &err), 0);
	memset(raw, 0xff, sizeof(raw));
	state_get(&r, raw, sizeof(raw)); /* one more than there are */
	for (unsigned i = 0; i < sizeof(raw); i++)
		assert_int_equal(raw[i], 0);
	assert_int_equal(state_get8(&r), 0);
	assert_int_equal(state_left(&r), 0);
	assert_int_equal(state_done(&r, "what", &err), IMG_E_CORRUPT);
	assert_non_null(strstr(err.msg, "what"));
	/* a version or a section that this program does not have */
	err = (struct img_error){ 0 };
	assert_int_equal(state_open(&st, TAG_A, 1, 1, &r, &err), IMG_E_UNSUPPORTED);
	err = (struct img_error){ 0 };
	assert_int_equal(state_open(&st, TAG_A, 2, 1, &r, &err), IMG_E_CORRUPT);
	assert_int_equal(state_get32(&r), 0);
}

/* In memory of exactly that size, so that a sanitizer sees a read behind it. */
static int parse_copy(const uint8_t *buf, size_t bytes, struct img_error *err)
{
	uint8_t *copy = malloc(bytes ? bytes : 1);
	struct state st;
	int rc;

	assert_non_null(copy);
	memcpy(copy, buf, bytes);
	rc = parse(&st, copy, bytes, err);
	if (rc)
		assert_int_equal(st.nr_sections, 0);
	for (unsigned i = 0; i < st.nr_sections; i++)
		assert_true(st.section[i].off <= bytes && st.section[i].bytes <= bytes - st.section[i].off);
	free(copy);
	return rc;
}

static void test_every_truncation(void **unused)
{
	static uint8_t buf[1024];
	size_t bytes = sample(buf, sizeof(buf));
	struct img_error err;

	(void)unused;
	for (size_t cut = 0; cut < bytes; cut++) {
		int rc = parse_copy(buf, cut, &err);

		assert_int_equal(rc, cut < 8 ? IMG_E_FORMAT : IMG_E_CORRUPT);
		assert_true(err.msg[0] != 0);
	}
	assert_int_equal(parse_copy(buf, bytes, &err), 0);
	buf[bytes + 100] = 1;
	assert_int_equal(parse_copy(buf, bytes + 100, &err), 0);
	assert_int_equal(parse_copy(buf, bytes + 101, &err), IMG_E_CORRUPT);
}

/* Every bit of header and table: all but those of tag, instance and version of a section are noticed. */
static void test_every_bit(void **unused)
{
	static uint8_t buf[1024];
	size_t bytes = sample(buf, sizeof(buf));
	size_t section[3] = { HEADER_BYTES, HEADER_BYTES + SECTION_BYTES + 15, HEADER_BYTES + 2 * SECTION_BYTES + 15 };
	struct img_error err;

	(void)unused;
	for (size_t bit = 0; bit < HEADER_BYTES * 8; bit++) {
		buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_not_equal(parse_copy(buf, bytes, &err), 0);
		buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	for (unsigned s = 0; s < 3; s++)
		for (size_t bit = 0; bit < SECTION_BYTES * 8; bit++) {
			uint8_t *byte = &buf[section[s] + bit / 8];
			int rc;

			*byte ^= (uint8_t)(1u << bit % 8);
			rc = parse_copy(buf, bytes, &err);
			if (bit / 8 >= 12)
				assert_int_equal(rc, IMG_E_CORRUPT);
			*byte ^= (uint8_t)(1u << bit % 8);
		}
	/* two names for one section */
	buf[section[1] + 4] = 0;
	assert_int_equal(parse_copy(buf, bytes, &err), IMG_E_CORRUPT);
	assert_non_null(strstr(err.msg, "twice"));
	buf[section[1] + 4] = 1;
	/* versions of the whole and of a section */
	buf[8] = 2;
	assert_int_equal(parse_copy(buf, bytes, &err), IMG_E_UNSUPPORTED);
	buf[8] = 0;
	assert_int_equal(parse_copy(buf, bytes, &err), IMG_E_CORRUPT);
	buf[8] = 1;
	buf[section[0] + 8] = 0;
	assert_int_equal(parse_copy(buf, bytes, &err), IMG_E_CORRUPT);
	buf[section[0] + 8] = 1;
	/* a length that wraps around */
	memset(buf + section[2] + 16, 0xff, 8);
	assert_int_equal(parse_copy(buf, bytes, &err), IMG_E_CORRUPT);
}

static void test_writer_that_runs_full(void **unused)
{
	static uint8_t buf[1024], guard[1024];
	size_t need = sample(buf, sizeof(buf)), bytes;
	struct img_error err;

	(void)unused;
	for (size_t cap = 0; cap <= need; cap++) {
		struct state_writer w;
		uint8_t *small = malloc(cap ? cap : 1);

		assert_non_null(small);
		err = (struct img_error){ 0 };
		state_start(&w, small, cap);
		state_begin(&w, TAG_A, 0, 1);
		state_put(&w, guard, 15);
		state_end(&w);
		state_begin(&w, TAG_A, 1, 1);
		state_end(&w);
		state_begin(&w, TAG_B, 1, 1);
		for (unsigned i = 0; i < 300; i++)
			state_put8(&w, 1);
		state_end(&w);
		assert_int_equal(state_finish(&w, &bytes, &err), cap < need ? IMG_E_LIMIT : 0);
		free(small);
	}
}

static void test_as_many_sections_as_allowed(void **unused)
{
	static uint8_t buf[HEADER_BYTES + (STATE_MAX_SECTIONS + 1) * SECTION_BYTES];
	struct img_error err;
	struct state st;
	size_t bytes;

	(void)unused;
	for (unsigned nr = STATE_MAX_SECTIONS; nr <= STATE_MAX_SECTIONS + 1; nr++) {
		struct state_writer w;

		err = (struct img_error){ 0 };
		state_start(&w, buf, sizeof(buf));
		for (unsigned i = 0; i < nr; i++) {
			state_begin(&w, TAG_A, i, 1);
			state_end(&w);
		}
		assert_int_equal(state_finish(&w, &bytes, &err), nr > STATE_MAX_SECTIONS ? IMG_E_LIMIT : 0);
		if (nr == STATE_MAX_SECTIONS)
			assert_int_equal(parse(&st, buf, bytes, &err), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_bytes_on_disk),
		cmocka_unit_test(test_reading_past_the_end),
		cmocka_unit_test(test_every_truncation),
		cmocka_unit_test(test_every_bit),
		cmocka_unit_test(test_writer_that_runs_full),
		cmocka_unit_test(test_as_many_sections_as_allowed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
