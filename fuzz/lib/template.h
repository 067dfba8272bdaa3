/* SPDX-License-Identifier: MIT */
/*
 * Templates: valid images that inputs change. Each is made once per process, in memory, by the library itself, of the
 * same bytes every time (fixed.h). One process uses them from one thread.
 *
 * A format plugs in with templates_<format>.c, which makes images, refix_<format>.c, which knows where fields and
 * checksums stand, and one line in the table of template.c. New ones stand at the end: inputs know templates by number.
 */
#ifndef FUZZ_TEMPLATE_H
#define FUZZ_TEMPLATE_H

#include "fuzz.h"
#include "memfs.h"

#define FUZZ_IMAGE     "image" /* the name of a template's image; files beside it have others */
#define FUZZ_EXTENT    "extent"
#define FUZZ_FILES_MAX 4

/* A number on disk: what a mutator aims at. */
struct fuzz_field {
	uint32_t off;
	uint8_t bytes; /* 1, 2, 4 or 8 */
};

struct fuzz_file {
	const char *name;
	struct mem_content *content;
};

struct fuzz_template {
	const struct fuzz_format *format;
	const char *name;
	struct fuzz_file file[FUZZ_FILES_MAX]; /* the image, then what it names */
	unsigned nr_files;
	struct fuzz_field *field;
	size_t nr_fields;
	uint64_t extent_at; /* see fuzz_format */
};

/* What is made right again after patches. */
enum fuzz_fix {
	FUZZ_FIX_METADATA = 1u << 0, /* checksums of structures */
	FUZZ_FIX_DATA = 1u << 1,     /* checksums of data too */
	FUZZ_FIX_DERIVED = 1u << 2,  /* and what is not needed to reach behind a checksum: counts, logical hashes */
};

typedef void (*fuzz_field_fn)(void *ctx, uint64_t off, unsigned bytes);

struct fuzz_recipe {
	const char *name;
	/* Leaves FUZZ_IMAGE, and up to three files that it names, in fs. */
	void (*make)(struct memfs *fs);
};

struct fuzz_format {
	const char *name;
	const char *driver; /* of libimg, that opens its images; NULL: of that name */
	bool big_endian;
	const struct fuzz_recipe *recipes;
	size_t nr_recipes;
	/*
	 * Walks the structures of an image, which may be nonsense: makes right what fix says, and tells the fields that
	 * it passes (field may be NULL). Costs little whatever the image holds. NULL: there is nothing to walk.
	 */
	void (*walk)(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx);
	/*
	 * 0, or where the bytes of the recipe's image end: what follows becomes a file of its own, FUZZ_EXTENT, when
	 * patches have been applied. So one input changes an image and what it names. NULL: 0 for all.
	 */
	uint64_t (*extent_at)(const char *recipe);
};

extern const struct fuzz_format fuzz_format_raw, fuzz_format_limg, fuzz_format_qcow2, fuzz_format_foreign,
	fuzz_format_limg_journal, fuzz_format_vdi, fuzz_format_vhd, fuzz_format_parallels, fuzz_format_vmdk_stream,
	fuzz_format_vhdx, fuzz_format_vmdk;

/* NULL past the end, or where there is none of that name. */
const struct fuzz_format *fuzz_format_at(size_t i);
const struct fuzz_format *fuzz_format_find(const char *name);

/* Of a format; NULL: of all of them, one after the other. */
unsigned fuzz_nr_templates(const char *format);
/* n modulo their number. Valid as long as the process. */
const struct fuzz_template *fuzz_template_get(const char *format, unsigned n);
/* Copies of its files under their names; fs may hold others. */
void fuzz_template_put(const struct fuzz_template *t, struct memfs *fs);

/* ---- for recipes: these end the program where they fail ---- */

void make_image(struct memfs *fs, const char *name, const char *format, uint64_t size_bytes, const char *options);
void make_overlay(struct memfs *fs, const char *name, const char *format, const char *options, const char *backing,
		  const char *backing_format, const char *snapshot);
struct img *make_open(struct memfs *fs, const char *name, const char *format);
void make_close(struct img *img);
/* Bytes that depend on seed and place; every other 4 KiB compresses well. */
void make_pattern(uint8_t *buf, size_t bytes, uint64_t off, uint64_t seed);
void make_write(struct img *img, uint64_t off, uint64_t bytes, uint64_t seed, unsigned flags);
void make_vmstate(struct img *img, uint64_t off, uint64_t bytes, uint64_t seed);
/* FUZZ_IMAGE of at least 64 KiB with some data, and zeros that were written. */
void make_simple(struct memfs *fs, const char *format, uint64_t size_bytes, const char *options);
/* FUZZ_IMAGE on a disk of 128 KiB like that, named "base", with data and zeros of its own. */
void make_simple_on(struct memfs *fs, const char *format, const char *base_options, const char *options);
/* Bytes of FUZZ_IMAGE. */
void make_patch(struct memfs *fs, uint64_t off, const void *data, size_t bytes);
void make_patch32(struct memfs *fs, uint64_t off, uint32_t value); /* little-endian */
#define MAKE_OK(call) FUZZ_CHECK((call) == 0)

#endif
