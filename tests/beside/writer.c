/* SPDX-License-Identifier: MIT */
/*
 * The writer of the beside test: one process that has an image open for a long time and writes, flushes, checkpoints,
 * creates, deletes and reverts snapshots, but leaves the one called "keep" alone. After each revert and now and then it
 * says on stdout how many operations it has done. Ends after the given time, or with 1 and a message at the first
 * failure.
 *
 *   beside-writer FILE SECONDS SEED
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libimg.h"

#define MAX_SNAPS 6
#define BUF_BYTES (1u << 20)

static uint64_t rng;

static uint64_t next(void)
{
	uint64_t z = rng += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static void must(int ret, const char *what, const struct img_error *err)
{
	if (ret == 0)
		return;
	fprintf(stderr, "beside-writer: %s: %s\n", what, err->msg);
	exit(1);
}

static void write_some(struct img *img, uint8_t *buf)
{
	struct img_error err = { 0 };
	uint64_t size = img_size(img), r = next(), bytes = 1 + r % (r >> 40 & 7 ? 20000 : BUF_BYTES), off;

	if (bytes > size)
		return;
	off = next() % (size - bytes + 1);
	if (r >> 44 & 1)
		off = off / 4096 * 4096;
	for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
		uint64_t v = r >> 45 & 1 ? r : next();

		memcpy(buf + i, &v, 8);
	}
	if ((r >> 46 & 7) == 0)
		must(img_zero(img, bytes, off, 0, &err), "zero", &err);
	else if ((r >> 46 & 7) == 1)
		must(img_discard(img, bytes, off, 0, &err), "discard", &err);
	else
		must(img_pwrite(img, buf, bytes, off, r >> 50 & 1 ? IMG_IO_COMPRESS : 0, &err), "write", &err);
}

static void snapshots(struct img *img)
{
	static char names[MAX_SNAPS][16];
	static unsigned seq;
	struct img_error err = { 0 };
	uint64_t r = next();
	char *name = names[r % MAX_SNAPS];

	if (!*name) {
		snprintf(name, sizeof(names[0]), "w%u", seq++);
		must(img_snapshot_create(img, name, 0, &err), "snapshot create", &err);
	} else if ((r >> 8 & 3) == 0) {
		must(img_snapshot_revert(img, r >> 10 & 1 ? name : "keep", &err), "revert", &err);
	} else {
		must(img_snapshot_delete(img, name, &err), "snapshot delete", &err);
		*name = '\0';
	}
}

int main(int argc, char **argv)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .flags = IMG_OPEN_WRITE };
	struct img_error err = { 0 };
	uint64_t ops = 0;
	uint8_t *buf;
	struct img *img;
	time_t end;

	if (argc != 4)
		return 2;
	buf = malloc(BUF_BYTES);
	if (!buf)
		return 2;
	rng = strtoull(argv[3], NULL, 0);
	end = time(NULL) + atol(argv[2]);
	must(img_open(argv[1], &opts, &img, &err), "open", &err);
	puts("open");
	fflush(stdout);
	while (time(NULL) < end) {
		uint64_t r = next() % 64;

		if (r == 0)
			must(img_flush(img, IMG_FLUSH_CHECKPOINT, &err), "checkpoint", &err);
		else if (r < 4)
			must(img_flush(img, 0, &err), "flush", &err);
		else if (r < 8)
			snapshots(img);
		else
			write_some(img, buf);
		ops++;
	}
	must(img_close(img, &err), "close", &err);
	printf("%" PRIu64 " operations\n", ops);
	free(buf);
	return 0;
}
