/* SPDX-License-Identifier: MIT */
/* SHA-256 against the examples of its standard and against OpenSSL's, whole and in pieces, by both ways through a
 * block. */
#include "image_fixture.h"

#include <openssl/sha.h>

#include "sha256.h"

static void digest(const void *data, size_t bytes, bool portable, uint8_t out[SHA256_BYTES])
{
	struct sha256 s;

	sha256_init(&s);
	if (portable)
		s.blocks = sha256_blocks_portable;
	sha256_update(&s, data, bytes);
	sha256_final(&s, out);
}

static void assert_hex(const uint8_t *found, const char *hex)
{
	char text[2 * SHA256_BYTES + 1];

	for (unsigned i = 0; i < SHA256_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", found[i]);
	assert_string_equal(text, hex);
}

/* FIPS 180-2, appendix B; and the digest of nothing. */
static void examples(void **state)
{
	const char *two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
	char *million = malloc(1000000);
	uint8_t out[SHA256_BYTES];

	(void)state;
	assert_non_null(million);
	memset(million, 'a', 1000000);
	for (unsigned portable = 0; portable < 2; portable++) {
		digest("", 0, portable, out);
		assert_hex(out, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
		digest("abc", 3, portable, out);
		assert_hex(out, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
		digest(two, strlen(two), portable, out);
		assert_hex(out, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
		digest(million, 1000000, portable, out);
		assert_hex(out, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
	}
	free(million);
}

/* Every length around the ends of blocks, cut anywhere. */
static void pieces(void **state)
{
	static uint8_t data[3000];
	uint8_t expected[SHA256_BYTES], found[SHA256_BYTES];

	(void)state;
	pattern(data, sizeof(data), 7);
	for (size_t bytes = 0; bytes < 600; bytes++) {
		size_t total = bytes < 300 ? bytes : random_below(sizeof(data));
		struct sha256 s;

		SHA256(data, total, expected);
		sha256_init(&s);
		if (bytes % 2)
			s.blocks = sha256_blocks_portable;
		for (size_t at = 0, n; at < total; at += n) {
			n = random_below(random_below(2) ? 20 : 400);
			n = n < total - at ? n : total - at;
			sha256_update(&s, data + at, n);
		}
		sha256_final(&s, found);
		assert_memory_equal(found, expected, SHA256_BYTES);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(examples), cmocka_unit_test(pieces) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
