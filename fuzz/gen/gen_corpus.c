/* SPDX-License-Identifier: MIT */
/*
 * Writes what the fuzzers of images begin with as whole files, for other programs that read such images.
 *
 *   fuzz_gen_corpus FOLDER FORMAT MAX_BYTES MUTATED SEED [CORPUS...]
 *
 * FOLDER/template-NAME are the valid images of FORMAT ("" for all); for each input of the corpora there is the image
 * that it stands for, and MUTATED images more, which our mutator makes from it. Images with files longer than MAX_BYTES
 * are left out. Prints how many files were written and how many images left out.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mutate.h"

#define INPUT_MAX 4096u
#define CHUNK	  65536u

struct generator {
	const char *folder, *format;
	uint64_t max_bytes;
	unsigned mutated, seed;
	unsigned long written, left_out;
};

static void die(const char *what)
{
	fprintf(stderr, "fuzz_gen_corpus: %s: %s\n", what, strerror(errno));
	exit(3);
}

static void make_folder(const char *path)
{
	if (mkdir(path, 0777) != 0 && errno != EEXIST)
		die(path);
}

static void write_file(struct generator *g, const char *path, struct mem_content *content)
{
	static const uint8_t zeros[CHUNK];
	static uint8_t buf[CHUNK];
	uint64_t bytes = mem_content_size(content);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
		die(path);
	for (uint64_t off = 0; off < bytes; off += CHUNK) {
		size_t n = bytes - off < CHUNK ? (size_t)(bytes - off) : CHUNK;

		mem_content_read(content, buf, n, off);
		if (memcmp(buf, zeros, n) != 0 && pwrite(fd, buf, n, (off_t)off) != (ssize_t)n)
			die(path);
	}
	/* Overlays record when their parent was written, in memory's own time; a file without a time is not asked. */
	if (futimens(fd, (const struct timespec[2]){ { 0, 0 }, { 0, 0 } }) != 0 || close(fd) != 0)
		die(path);
	g->written++;
}

static const char *format_or_all(const struct generator *g)
{
	return *g->format ? g->format : NULL;
}

/* An image of one file is that file; one that names others is a folder with all of them, in which it is "image". */
static void write_image(struct generator *g, const char *name, struct memfs *fs)
{
	unsigned nr = 0;
	char path[4096];

	for (size_t i = 0; i < MEMFS_MAX_FILES; i++) {
		if (!fs->files[i].name[0])
			continue;
		if (mem_content_size(memfs_find(fs, fs->files[i].name)) > g->max_bytes) {
			g->left_out++;
			return;
		}
		nr++;
	}
	snprintf(path, sizeof(path), "%s/%s", g->folder, name);
	if (nr == 1) {
		write_file(g, path, memfs_find(fs, FUZZ_IMAGE));
		return;
	}
	make_folder(path);
	for (size_t i = 0; i < MEMFS_MAX_FILES; i++) {
		if (!fs->files[i].name[0])
			continue;
		snprintf(path, sizeof(path), "%s/%s/%s", g->folder, name, fs->files[i].name);
		write_file(g, path, memfs_find(fs, fs->files[i].name));
	}
}

static void write_case(struct generator *g, const char *name, const struct fuzz_case *c, const struct fuzz_template *t)
{
	struct memfs fs;

	memfs_init(&fs);
	fuzz_case_put(c, t, &fs);
	write_image(g, name, &fs);
	memfs_destroy(&fs);
}

static void write_templates(struct generator *g)
{
	static const struct fuzz_case unchanged = { 0 };
	unsigned nr = fuzz_nr_templates(format_or_all(g));

	for (unsigned i = 0; i < nr; i++) {
		const struct fuzz_template *t = fuzz_template_get(format_or_all(g), i);
		char name[256];

		snprintf(name, sizeof(name), "template-%s-%s", t->format->name, t->name);
		write_case(g, name, &unchanged, t);
	}
}

/* The image that an input stands for. */
static void write_input_image(struct generator *g, const char *name, const uint8_t *data, size_t bytes)
{
	struct fuzz_case c;

	fuzz_case_parse(&c, data, bytes);
	write_case(g, name, &c, fuzz_template_get(format_or_all(g), c.number));
}

static void write_input(struct generator *g, const char *prefix, const char *path, const char *name)
{
	static uint8_t input[INPUT_MAX], changed[INPUT_MAX];
	char out[512];
	FILE *f = fopen(path, "rb");
	size_t bytes;

	if (!f)
		die(path);
	bytes = fread(input, 1, sizeof(input), f);
	fclose(f);
	snprintf(out, sizeof(out), "%s-%s", prefix, name);
	write_input_image(g, out, input, bytes);
	for (unsigned i = 0; i < g->mutated; i++) {
		size_t n = bytes;

		memcpy(changed, input, bytes);
		/* Several steps away: one is often a change to what is not looked at. */
		for (unsigned step = 0; step < 1 + i % 4; step++)
			n = fuzz_mutate(format_or_all(g), changed, n, sizeof(changed), g->seed++);
		if (snprintf(out, sizeof(out), "%s-%s-%u", prefix, name, i) < (int)sizeof(out))
			write_input_image(g, out, changed, n);
	}
}

static int visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

/* corpus: .../TARGET/corpus */
static void write_corpus(struct generator *g, const char *corpus)
{
	char prefix[256], path[4096], *slash;
	struct dirent **names;
	int nr = scandir(corpus, &names, visible, alphasort);

	if (nr < 0)
		die(corpus);
	snprintf(path, sizeof(path), "%s", corpus);
	slash = strrchr(path, '/');
	if (slash)
		*slash = '\0';
	slash = strrchr(path, '/');
	snprintf(prefix, sizeof(prefix), "%.200s", slash ? slash + 1 : path);
	for (int i = 0; i < nr; i++) {
		snprintf(path, sizeof(path), "%s/%s", corpus, names[i]->d_name);
		write_input(g, prefix, path, names[i]->d_name);
		free(names[i]);
	}
	free(names);
}

int main(int argc, char **argv)
{
	struct generator g = { 0 };

	if (argc < 6) {
		fputs("usage: fuzz_gen_corpus FOLDER FORMAT MAX_BYTES MUTATED SEED [CORPUS...]\n", stderr);
		return 2;
	}
	g.folder = argv[1];
	g.format = argv[2];
	g.max_bytes = strtoull(argv[3], NULL, 10);
	g.mutated = (unsigned)strtoul(argv[4], NULL, 10);
	g.seed = (unsigned)strtoul(argv[5], NULL, 10);
	write_templates(&g);
	for (int i = 6; i < argc; i++)
		write_corpus(&g, argv[i]);
	printf("%lu %lu\n", g.written, g.left_out);
	return 0;
}
