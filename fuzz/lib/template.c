/* SPDX-License-Identifier: MIT */
/* See template.h. */
#include "template.h"

#include <string.h>

#include "disk_int.h"
#include "fixed.h"

#define KIB	      1024u
#define TEMPLATES_MAX 64
#define WRITE_MAX     (1u << 20)

static const struct fuzz_format *const formats[] = {
	&fuzz_format_raw,	   &fuzz_format_limg, &fuzz_format_qcow2, &fuzz_format_foreign,
	&fuzz_format_limg_journal, &fuzz_format_vdi,  &fuzz_format_vhd,	  &fuzz_format_parallels,
	&fuzz_format_vmdk_stream,  &fuzz_format_vhdx, &fuzz_format_vmdk,
};
#define NR_FORMATS (sizeof(formats) / sizeof(formats[0]))

static struct fuzz_template *made[NR_FORMATS][TEMPLATES_MAX];

const struct fuzz_format *fuzz_format_at(size_t i)
{
	return i < NR_FORMATS ? formats[i] : NULL;
}

const struct fuzz_format *fuzz_format_find(const char *name)
{
	for (size_t i = 0; i < NR_FORMATS; i++)
		if (strcmp(formats[i]->name, name) == 0)
			return formats[i];
	return NULL;
}

unsigned fuzz_nr_templates(const char *format)
{
	unsigned nr = 0;

	for (size_t i = 0; i < NR_FORMATS; i++)
		if (!format || strcmp(formats[i]->name, format) == 0)
			nr += (unsigned)formats[i]->nr_recipes;
	return nr;
}

static void add_field(void *ctx, uint64_t off, unsigned bytes)
{
	struct fuzz_template *t = ctx;

	if (off > UINT32_MAX)
		return;
	if ((t->nr_fields & (t->nr_fields + 1)) == 0) {
		t->field = realloc(t->field, (2 * t->nr_fields + 2) * sizeof(*t->field));
		FUZZ_CHECK(t->field);
	}
	t->field[t->nr_fields++] = (struct fuzz_field){ .off = (uint32_t)off, .bytes = (uint8_t)bytes };
}

static void add_file(struct fuzz_template *t, struct memfs *fs, const char *name)
{
	char *copy = strdup(name);

	FUZZ_CHECK(copy && t->nr_files < FUZZ_FILES_MAX);
	t->file[t->nr_files++] = (struct fuzz_file){ .name = copy, .content = mem_content_clone(memfs_find(fs, name)) };
	FUZZ_CHECK(t->file[t->nr_files - 1].content);
}

static struct fuzz_template *make(const struct fuzz_format *format, const struct fuzz_recipe *recipe)
{
	struct fuzz_template *t = calloc(1, sizeof(*t));
	struct memfs fs;

	FUZZ_CHECK(t);
	memfs_init(&fs);
	fixed_reset();
	recipe->make(&fs);
	t->format = format;
	t->name = recipe->name;
	t->extent_at = format->extent_at ? format->extent_at(recipe->name) : 0;
	FUZZ_CHECK(memfs_find(&fs, FUZZ_IMAGE));
	add_file(t, &fs, FUZZ_IMAGE);
	for (size_t i = 0; i < MEMFS_MAX_FILES; i++)
		if (fs.files[i].name[0] && strcmp(fs.files[i].name, FUZZ_IMAGE) != 0)
			add_file(t, &fs, fs.files[i].name);
	memfs_destroy(&fs);
	if (format->walk)
		format->walk(t->file[0].content, 0, add_field, t);
	return t;
}

const struct fuzz_template *fuzz_template_get(const char *format, unsigned n)
{
	n %= fuzz_nr_templates(format);
	for (size_t i = 0; i < NR_FORMATS; i++) {
		if (format && strcmp(formats[i]->name, format) != 0)
			continue;
		if (n >= formats[i]->nr_recipes) {
			n -= (unsigned)formats[i]->nr_recipes;
			continue;
		}
		FUZZ_CHECK(formats[i]->nr_recipes <= TEMPLATES_MAX);
		if (!made[i][n])
			made[i][n] = make(formats[i], &formats[i]->recipes[n]);
		return made[i][n];
	}
	abort();
}

void fuzz_template_put(const struct fuzz_template *t, struct memfs *fs)
{
	for (unsigned i = 0; i < t->nr_files; i++) {
		struct mem_content *copy = mem_content_clone(t->file[i].content);

		FUZZ_CHECK(copy);
		memfs_put(fs, t->file[i].name, copy);
	}
}

/* ---- for recipes ---- */

static void create(struct memfs *fs, const char *name, struct img_create_options *o)
{
	struct img_error err;

	o->struct_size = sizeof(*o);
	o->refs = IMG_REFS_ANY;
	if (image_create_env(name, o, &fs->env, &err) != 0) {
		fprintf(stderr, "template: %s: %s\n", name, err.msg);
		abort();
	}
}

void make_image(struct memfs *fs, const char *name, const char *format, uint64_t size_bytes, const char *options)
{
	struct img_create_options o = { .format = format, .size_bytes = size_bytes, .options = options };

	create(fs, name, &o);
}

void make_overlay(struct memfs *fs, const char *name, const char *format, const char *options, const char *backing,
		  const char *backing_format, const char *snapshot)
{
	struct img_create_options o = { .format = format,
					.options = options,
					.backing = backing,
					.backing_format = backing_format,
					.backing_snapshot = snapshot };

	create(fs, name, &o);
}

struct img *make_open(struct memfs *fs, const char *name, const char *format)
{
	struct img_open_options o = {
		.struct_size = sizeof(o), .format = format, .flags = IMG_OPEN_WRITE, .refs = IMG_REFS_ANY
	};
	struct img_error err;
	struct img *img;

	if (image_open_env(name, &o, &fs->env, &img, &err) != 0) {
		fprintf(stderr, "template: %s: %s\n", name, err.msg);
		abort();
	}
	return img;
}

void make_close(struct img *img)
{
	MAKE_OK(img_close(img, NULL));
}

void make_pattern(uint8_t *buf, size_t bytes, uint64_t off, uint64_t seed)
{
	for (size_t i = 0; i < bytes; i++) {
		uint64_t at = off + i, v = (seed * 0x100000001b3u + at / 8) * UINT64_C(0x9e3779b97f4a7c15);

		buf[i] = (uint8_t)(at / 4096 % 2 ? seed + at / 512 : v >> (8 * (at % 8)));
	}
}

void make_write(struct img *img, uint64_t off, uint64_t bytes, uint64_t seed, unsigned flags)
{
	uint8_t *buf = malloc(bytes);

	FUZZ_CHECK(buf && bytes <= WRITE_MAX);
	make_pattern(buf, bytes, off, seed);
	MAKE_OK(img_pwrite(img, buf, bytes, off, flags, NULL));
	free(buf);
}

void make_vmstate(struct img *img, uint64_t off, uint64_t bytes, uint64_t seed)
{
	uint8_t *buf = malloc(bytes);

	FUZZ_CHECK(buf && bytes <= WRITE_MAX);
	make_pattern(buf, bytes, off, seed);
	MAKE_OK(img_vmstate_write(img, buf, bytes, off, NULL));
	free(buf);
}

static void make_simple_named(struct memfs *fs, const char *name, const char *format, uint64_t size_bytes,
			      const char *options)
{
	struct img *img;

	make_image(fs, name, format, size_bytes, options);
	img = make_open(fs, name, format);
	make_write(img, 1000, 6000, 1, 0);
	make_write(img, 40 * KIB, 4 * KIB, 2, 0);
	MAKE_OK(img_zero(img, 24 * KIB, 30 * KIB, 0, NULL));
	make_write(img, img_size(img) - 2 * KIB, 2 * KIB, 3, 0);
	make_close(img);
}

void make_simple(struct memfs *fs, const char *format, uint64_t size_bytes, const char *options)
{
	make_simple_named(fs, FUZZ_IMAGE, format, size_bytes, options);
}

void make_simple_on(struct memfs *fs, const char *format, const char *base_options, const char *options)
{
	struct img *img;

	make_simple_named(fs, "base", format, 128 * KIB, base_options);
	make_overlay(fs, FUZZ_IMAGE, format, options, "base", format, NULL);
	img = make_open(fs, FUZZ_IMAGE, format);
	make_write(img, 10 * KIB, 3000, 7, 0);
	MAKE_OK(img_zero(img, 32 * KIB, 64 * KIB, 0, NULL));
	make_close(img);
}

void make_patch(struct memfs *fs, uint64_t off, const void *data, size_t bytes)
{
	MAKE_OK(mem_content_write(memfs_find(fs, FUZZ_IMAGE), data, bytes, off));
}

void make_patch32(struct memfs *fs, uint64_t off, uint32_t value)
{
	struct le32 d = le32_of(value);

	make_patch(fs, off, &d, sizeof(d));
}
