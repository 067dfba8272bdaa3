/* SPDX-License-Identifier: MIT */
/*
 * What imgtool has no verb for, for tests that work on one image in turns with another program: requests,
 * one after the other, through one handle.
 *
 *   image-io [-f FORMAT] FILE COMMAND...
 *
 *   w OFF BYTES FILL    write the byte FILL            W OFF BYTES FILL    the same, compressed where whole units are
 * written r OFF BYTES SEED    write random bytes             z OFF BYTES         zeros; Z: keep the space d OFF BYTES
 * discard                        p OFF BYTES FILL    read, which must give FILL everywhere f                   flush
 *
 * Numbers are decimal. Exits 0; 1 where a call fails, or a read finds something else; 2 on wrong usage.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libimg.h"

#define MAX_BYTES (UINT64_C(64) << 20)

struct command {
	char what;
	uint64_t off, bytes, value;
};

/* splitmix64: python makes the same bytes. */
static void fill_random(uint8_t *buf, uint64_t bytes, uint64_t seed)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);

		z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
		z ^= z >> 31;
		for (unsigned k = 0; k < 8 && i + k < bytes; k++)
			buf[i + k] = (uint8_t)(z >> 8 * k);
	}
}

static bool parse(const char *text, struct command *c)
{
	int nr = sscanf(text, "%c %" SCNu64 " %" SCNu64 " %" SCNu64, &c->what, &c->off, &c->bytes, &c->value);

	if (nr < 1 || c->bytes > MAX_BYTES)
		return false;
	if (strchr("wWrp", c->what))
		return nr == 4;
	return strchr("zZd", c->what) ? nr == 3 : c->what == 'f' && nr == 1;
}

static int wrong_byte(const struct command *c, const uint8_t *buf)
{
	for (uint64_t i = 0; i < c->bytes; i++) {
		if (buf[i] != (uint8_t)c->value) {
			fprintf(stderr, "image-io: byte 0x%" PRIx64 " is 0x%02x, not 0x%02x\n", c->off + i, buf[i],
				(unsigned)(uint8_t)c->value);
			return 1;
		}
	}
	return 0;
}

static int run(struct img *img, const struct command *c, uint8_t *buf, struct img_error *err)
{
	switch (c->what) {
	case 'w':
	case 'W':
		memset(buf, (int)(c->value & 255), (size_t)c->bytes);
		return img_pwrite(img, buf, c->bytes, c->off, c->what == 'W' ? IMG_IO_COMPRESS : 0, err);
	case 'r': fill_random(buf, c->bytes, c->value); return img_pwrite(img, buf, c->bytes, c->off, 0, err);
	case 'z': return img_zero(img, c->bytes, c->off, 0, err);
	case 'Z': return img_zero(img, c->bytes, c->off, IMG_IO_NO_UNMAP, err);
	case 'd': return img_discard(img, c->bytes, c->off, 0, err);
	case 'p': return img_pread(img, buf, c->bytes, c->off, 0, err);
	default: return img_flush(img, 0, err);
	}
}

static int run_all(struct img *img, char **commands, uint8_t *buf)
{
	struct img_error err = { 0 };

	for (; *commands; commands++) {
		struct command c = { 0 };

		if (!parse(*commands, &c)) {
			fprintf(stderr, "image-io: no command: %s\n", *commands);
			return 2;
		}
		if (run(img, &c, buf, &err) != 0) {
			fprintf(stderr, "image-io: %s: %s\n", *commands, err.msg);
			return 1;
		}
		if (c.what == 'p' && wrong_byte(&c, buf))
			return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .flags = IMG_OPEN_WRITE };
	struct img_error err = { 0 };
	uint8_t *buf = malloc(MAX_BYTES);
	struct img *img;
	int status;

	if (argc > 3 && strcmp(argv[1], "-f") == 0) {
		opts.format = argv[2];
		argv += 2;
	}
	if (!buf || !argv[1] || !argv[2]) {
		fputs("usage: image-io [-f FORMAT] FILE COMMAND...\n", stderr);
		free(buf);
		return 2;
	}
	if (img_open(argv[1], &opts, &img, &err) != 0) {
		fprintf(stderr, "image-io: open: %s\n", err.msg);
		free(buf);
		return 1;
	}
	status = run_all(img, argv + 2, buf);
	if (img_close(img, &err) != 0 && status == 0) {
		fprintf(stderr, "image-io: close: %s\n", err.msg);
		status = 1;
	}
	free(buf);
	return status;
}
