/* SPDX-License-Identifier: MIT */
/*
 * The floor of a conversion: what threads of plain pread and pwrite do with the same bytes, and with zstd between them. No
 * format, no metadata, no checksums: nothing that converts the same data on the same machine can be much faster.
 *
 *   bench-floor copy SRC DST THREADS      data extents of SRC, 1 MiB at a time, at their own offsets
 *   bench-floor zstd SRC DST THREADS      the same in 128 KiB units, zstd level 1, one after the other
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#define PIECE_BYTES (1u << 20)
#define UNIT_BYTES (128u << 10)
#define MAX_THREADS 64

struct job {
	int src, dst;
	bool compress;
	uint64_t size_bytes;
	_Atomic uint64_t next_off; /* next piece of the source to be taken */
	_Atomic uint64_t end_off;  /* of what was compressed, in the target */
};

static void die(const char *what)
{
	fprintf(stderr, "bench-floor: %s: %s\n", what, strerror(errno));
	exit(3);
}

static bool is_hole(int fd, uint64_t off, uint64_t bytes)
{
	off_t data = lseek(fd, (off_t)off, SEEK_DATA);

	return data < 0 ? errno == ENXIO : (uint64_t)data >= off + bytes;
}

static bool is_zero(const char *buf, size_t bytes)
{
	return buf[0] == 0 && memcmp(buf, buf + 1, bytes - 1) == 0;
}

static void write_all(int fd, const void *buf, size_t bytes, uint64_t off)
{
	if (pwrite(fd, buf, bytes, (off_t)off) != (ssize_t)bytes)
		die("write");
}

static void compress_piece(struct job *job, ZSTD_CCtx *zstd, const char *buf, size_t bytes, char *packed)
{
	for (size_t at = 0; at < bytes; at += UNIT_BYTES) {
		size_t unit = bytes - at < UNIT_BYTES ? bytes - at : UNIT_BYTES;
		size_t out;

		if (is_zero(buf + at, unit))
			continue;
		out = ZSTD_compressCCtx(zstd, packed, ZSTD_compressBound(UNIT_BYTES), buf + at, unit, 1);
		if (ZSTD_isError(out))
			die("zstd");
		write_all(job->dst, packed, out, atomic_fetch_add(&job->end_off, (out + 4095) / 4096 * 4096));
	}
}

static void *work(void *arg)
{
	struct job *job = arg;
	char *buf = malloc(PIECE_BYTES);
	char *packed = malloc(ZSTD_compressBound(UNIT_BYTES));
	ZSTD_CCtx *zstd = ZSTD_createCCtx();
	uint64_t off;

	if (!buf || !packed || !zstd)
		die("memory");
	while ((off = atomic_fetch_add(&job->next_off, PIECE_BYTES)) < job->size_bytes) {
		uint64_t left = job->size_bytes - off;
		size_t bytes = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;

		if (is_hole(job->src, off, bytes))
			continue;
		if (pread(job->src, buf, bytes, (off_t)off) != (ssize_t)bytes)
			die("read");
		if (job->compress)
			compress_piece(job, zstd, buf, bytes, packed);
		else if (!is_zero(buf, bytes))
			write_all(job->dst, buf, bytes, off);
	}
	ZSTD_freeCCtx(zstd);
	free(packed);
	free(buf);
	return NULL;
}

int main(int argc, char **argv)
{
	struct job job = { .src = -1 };
	pthread_t threads[MAX_THREADS];
	int nr_threads = argc == 5 ? atoi(argv[4]) : 0;
	off_t size;

	if (nr_threads < 1 || nr_threads > MAX_THREADS) {
		fprintf(stderr, "usage: bench-floor copy|zstd SRC DST THREADS\n");
		return 2;
	}
	job.compress = strcmp(argv[1], "zstd") == 0;
	job.src = open(argv[2], O_RDONLY | O_CLOEXEC);
	job.dst = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (job.src < 0 || job.dst < 0)
		die("open");
	size = lseek(job.src, 0, SEEK_END);
	if (size < 0 || (!job.compress && ftruncate(job.dst, size) != 0))
		die("size");
	job.size_bytes = (uint64_t)size;
	for (int i = 0; i < nr_threads; i++)
		if (pthread_create(&threads[i], NULL, work, &job) != 0)
			die("thread");
	for (int i = 0; i < nr_threads; i++)
		pthread_join(threads[i], NULL);
	if (close(job.dst) != 0)
		die("close");
	return 0;
}
