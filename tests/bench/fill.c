/* SPDX-License-Identifier: MIT */
/*
 * Maps the first BYTES of an image with data that costs hardly any space: each block is a compressed line of text. With it
 * a small disk can hold an image whose tree is as large as that of 64 GiB of data.
 *
 *   bench-fill IMAGE BYTES
 */
#include <libimg.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES (1u << 20)
#define NR_THREADS 2

struct job {
	struct img *img;
	uint64_t size_bytes;
	_Atomic uint64_t next_off;
};

static void die(const struct img_error *err)
{
	fprintf(stderr, "bench-fill: %s\n", err->msg);
	exit(3);
}

static void *work(void *arg)
{
	struct job *job = arg;
	struct img_error err = { 0 };
	char *buf = malloc(PIECE_BYTES);
	uint64_t off;

	if (!buf)
		exit(3);
	for (size_t i = 0; i < PIECE_BYTES; i++)
		buf[i] = "a line of text in each block\n"[i % 29];
	while ((off = atomic_fetch_add(&job->next_off, PIECE_BYTES)) < job->size_bytes) {
		uint64_t left = job->size_bytes - off;
		uint64_t bytes = left < PIECE_BYTES ? left : PIECE_BYTES;

		if (img_pwrite(job->img, buf, bytes, off, IMG_IO_COMPRESS, &err))
			die(&err);
	}
	free(buf);
	return NULL;
}

int main(int argc, char **argv)
{
	struct img_open_options open = { .struct_size = sizeof(open), .flags = IMG_OPEN_WRITE };
	struct job job = { .img = NULL };
	struct img_error err = { 0 };
	pthread_t threads[NR_THREADS];

	if (argc != 3) {
		fprintf(stderr, "usage: bench-fill IMAGE BYTES\n");
		return 2;
	}
	job.size_bytes = strtoull(argv[2], NULL, 10);
	if (img_open(argv[1], &open, &job.img, &err))
		die(&err);
	for (int i = 0; i < NR_THREADS; i++)
		if (pthread_create(&threads[i], NULL, work, &job) != 0)
			return 3;
	for (int i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	if (img_flush(job.img, IMG_FLUSH_CHECKPOINT, &err) || img_close(job.img, &err))
		die(&err);
	return 0;
}
