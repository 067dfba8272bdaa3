/* SPDX-License-Identifier: MIT */
/* See dump.h. The digests are taken from the truth, not from the images. */
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "checked.h"
#include "dump.h"

static void must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(3);
	}
}

static void write_truth(struct model *m, FILE *out, const struct flat *f, const char *name, const char *snap)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t digest[32];

	must(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL), "sha256");
	for (uint64_t off = 0; off < f->size_bytes; off += IO_BYTES) {
		uint64_t n = min_u64(IO_BYTES, f->size_bytes - off);

		flat_read(f, m->buf, n, off);
		must(EVP_DigestUpdate(ctx, m->buf, n), "sha256");
	}
	must(EVP_DigestFinal_ex(ctx, digest, NULL), "sha256");
	EVP_MD_CTX_free(ctx);
	fprintf(out, "%s%s%s ", name, *snap ? "@" : "", snap);
	for (int i = 0; i < 32; i++)
		fprintf(out, "%02x", digest[i]);
	fputc('\n', out);
}

/* The file is as old as the content says: weak pins name that. */
static void copy_time(struct mem_content *content, const char *path)
{
	struct host_open args = { .use = SHARE_PEEK_USE };
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT } };
	struct host_stat stat;
	struct node *node;

	must(mem_node_on(content, path, &args, &node, NULL) == 0 && node_stat(node, &stat, NULL) == 0, "stat");
	node_close(node, NULL);
	times[1].tv_sec = stat.mtime_ns / 1000000000;
	times[1].tv_nsec = stat.mtime_ns % 1000000000;
	must(utimensat(AT_FDCWD, path, times, 0) == 0, path);
}

static void write_file(struct model *m, const char *path, const char *name)
{
	struct mem_content *content = memfs_find(&m->fs, name);
	uint64_t size = mem_content_size(content);
	FILE *out = fopen(path, "w");

	must(out != NULL, path);
	for (uint64_t off = 0; off < size; off += IO_BYTES) {
		uint64_t n = min_u64(IO_BYTES, size - off);

		mem_content_read(content, m->buf, n, off);
		must(fwrite(m->buf, 1, n, out) == n, path);
	}
	must(fclose(out) == 0, path);
	copy_time(content, path);
}

void dump_files(struct model *m, const char *folder, uint64_t seed)
{
	char dir[512], path[600];
	FILE *truth;

	snprintf(dir, sizeof(dir), "%s/%" PRIu64, folder, seed);
	must(mkdir(dir, 0777) == 0, dir);
	snprintf(path, sizeof(path), "%s/truth", dir);
	truth = fopen(path, "w");
	must(truth != NULL, path);
	for (int i = 0; i <= m->top; i++) {
		struct mfile *f = &m->files[i];

		snprintf(path, sizeof(path), "%s/%s", dir, f->name);
		write_file(m, path, f->name);
		if (f->format->raw || f->stale)
			continue;
		write_truth(m, truth, &f->head, f->name, "");
		for (size_t s = 0; s < f->nr_snaps; s++)
			write_truth(m, truth, &f->snaps[s].disk, f->name, f->snaps[s].name);
	}
	must(fclose(truth) == 0, path);
}
