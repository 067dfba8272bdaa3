/* SPDX-License-Identifier: MIT */
/*
 * The victim of kill.py for what imgtool does not do: it keeps an image open for long, flushes often, and says on stdout
 * what it is about to do and what was acknowledged. Every block that it writes names the operation that wrote it.
 *
 *   kill-writer FILE SEED
 *
 *   w N BLOCK COUNT    operation N is going to write COUNT blocks from BLOCK; each holds N and its own number, repeated
 *   f N                all operations up to N are durable
 *   s NAME N           snapshot NAME is durable and holds the operations up to N
 *   d NAME / D NAME    snapshot NAME is going to be deleted / was deleted
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libimg.h"

#define BLOCK	  4096u
#define MAX_RUN	  32u
#define MAX_SNAPS 4u

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
	fprintf(stderr, "kill-writer: %s: %s\n", what, err->msg);
	exit(1);
}

/* One write(2) for each line: what was said survives the kill. */
static void say(const char *line, int length)
{
	if (write(STDOUT_FILENO, line, (size_t)length) != length)
		exit(1);
}

static void write_run(struct img *img, uint64_t op, uint64_t blocks)
{
	static uint64_t buf[MAX_RUN * BLOCK / 8];
	uint64_t r = next(), nr = 1 + (r >> 32) % MAX_RUN, first = r % (blocks - MAX_RUN);
	struct img_error err = { 0 };
	char line[96];

	if (r >> 60 == 0) { /* a whole unit, compressed */
		first = first / MAX_RUN * MAX_RUN;
		nr = MAX_RUN;
	}
	for (uint64_t i = 0; i < nr * BLOCK / 8; i++)
		buf[i] = i % 2 ? op : first + i * 8 / BLOCK;
	say(line, snprintf(line, sizeof(line), "w %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", op, first, nr));
	must(img_pwrite(img, buf, nr * BLOCK, first * BLOCK, r >> 59 & 1 ? IMG_IO_COMPRESS : 0, &err), "write", &err);
}

static void snapshot(struct img *img, uint64_t op)
{
	static char names[MAX_SNAPS][16];
	static unsigned seq;
	char *name = names[next() % MAX_SNAPS], line[96];
	struct img_error err = { 0 };

	if (!*name) {
		snprintf(name, sizeof(names[0]), "k%u", seq++);
		must(img_snapshot_create(img, name, 0, &err), "snapshot create", &err);
		say(line, snprintf(line, sizeof(line), "s %s %" PRIu64 "\n", name, op));
		return;
	}
	say(line, snprintf(line, sizeof(line), "d %s\n", name));
	must(img_snapshot_delete(img, name, &err), "snapshot delete", &err);
	say(line, snprintf(line, sizeof(line), "D %s\n", name));
	*name = '\0';
}

int main(int argc, char **argv)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .flags = IMG_OPEN_WRITE };
	struct img_error err = { 0 };
	struct img *img;

	if (argc != 3)
		return 2;
	rng = strtoull(argv[2], NULL, 0);
	must(img_open(argv[1], &opts, &img, &err), "open", &err);
	for (uint64_t op = 1;; op++) {
		uint64_t r = next() % 64;
		char line[96];

		write_run(img, op, img_size(img) / BLOCK);
		if (r < 2 && img_caps(img) & IMG_CAP_SNAPSHOTS)
			snapshot(img, op);
		if (r > 15)
			continue;
		must(img_flush(img, r == 15 ? IMG_FLUSH_CHECKPOINT : 0, &err), "flush", &err);
		say(line, snprintf(line, sizeof(line), "f %" PRIu64 "\n", op));
	}
}
