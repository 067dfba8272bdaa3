/* SPDX-License-Identifier: MIT */
/* The images of a scene. See copy.h. */
#include <string.h>

#include "copy.h"

static const struct {
	const char *format, *options;
} formats[] = {
	{ "raw", "" },
	{ "limg", "block_size=4096,unit_size=65536,compression=zstd" },
	{ "qcow2", "cluster_size=4096" },
	{ "limg", "block_size=16384,unit_size=65536,compression=zlib" },
	{ "qcow2", "cluster_size=512,compression_type=zstd" },
	{ "qcow2", "cluster_size=16384,extended_l2=on" },
	{ "qcow2", "compat=0.10,cluster_size=4096" },
	{ "limg", "block_size=65536,unit_size=65536,compression=none" },
};

const char *scene_format(unsigned number, char *options, size_t bytes)
{
	number %= sizeof(formats) / sizeof(formats[0]);
	snprintf(options, bytes, "%s", formats[number].options);
	return formats[number].format;
}

bool side_is_raw(const struct side *side)
{
	return strcmp(side->format, "raw") == 0;
}

struct img *scene_open(struct scene *s, const char *name, const char *format, unsigned flags)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = format, .flags = flags, .refs = IMG_REFS_ANY };
	struct img *img = NULL;
	struct img_error err = { 0 };

	if (image_open_env(name, &o, &s->fs.env, &img, &err) != 0) {
		fprintf(stderr, "%s does not open: %s\n", name, err.msg);
		abort();
	}
	return img;
}

void scene_read(struct scene *s, struct img *img, struct flat *out)
{
	uint64_t size = img_size(img);
	struct img_error err = { 0 };

	FUZZ_CHECK(size <= MAX_BACKED_BYTES);
	if (img_pread(img, s->buf, size, 0, 0, &err) != 0) {
		fprintf(stderr, "cannot be read: %s\n", err.msg);
		abort();
	}
	flat_init(out, size);
	flat_write(out, s->buf, size, 0);
}

void scene_check(struct scene *s, struct img *img, const struct flat *truth)
{
	struct img_check_result result = { 0 };
	struct flat seen;

	FUZZ_CHECK(img_size(img) == truth->size_bytes);
	scene_read(s, img, &seen);
	FUZZ_CHECK(flat_diff(&seen, truth, truth->size_bytes, 0) == UINT64_MAX);
	flat_free(&seen);
	if (!(img_caps(img) & IMG_CAP_CHECK))
		return;
	FUZZ_CHECK(img_check(img, 0, NULL, NULL, NULL, &result, NULL) == 0);
	FUZZ_CHECK(result.damage == 0 && result.leaks == 0 && result.redundancy == 0);
}

/* ---- filling ----------------------------------------------------------------------------------------------------- */

/* Noise, words that compress, zeros, or sectors of each by turns. */
static void pattern(uint8_t *buf, uint64_t bytes, unsigned seed)
{
	uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (uint64_t i = 0; i < bytes; i++) {
		unsigned kind = seed % 4 == 3 ? (unsigned)(i / SECTOR) % 3 : seed % 4;

		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		buf[i] = kind == 0 ? (uint8_t)x : kind == 1 ? (uint8_t)(seed + i / 64) : 0;
	}
}

static void snapshot(struct side *side)
{
	struct snap *snap = &side->snap[side->nr_snaps];

	if (side_is_raw(side) || side->nr_snaps == MAX_SNAPS)
		return;
	snprintf(snap->name, sizeof(snap->name), "s%u", side->nr_snaps);
	FUZZ_CHECK(img_snapshot_create(side->img, snap->name, 0, NULL) == 0);
	flat_copy(&snap->truth, &side->truth);
	side->nr_snaps++;
}

static void fill_step(struct scene *s, struct side *side, struct fuzz_input *in)
{
	unsigned kind = (unsigned)fuzz_take(in, 1) % 10;
	uint64_t size = side->truth.size_bytes, off = fuzz_take(in, 3), bytes = fuzz_take(in, 2);
	unsigned seed = (unsigned)fuzz_take(in, 1), flags = kind == 2 || kind == 3 ? IMG_IO_COMPRESS : 0;
	struct flat seen;

	if (kind == 9 && !side->has_bitmap)
		side->has_bitmap = img_bitmap_add(side->img, "map", 4096, 0, NULL) == 0;
	if (kind == 8)
		snapshot(side);
	if (kind >= 8 || size == 0)
		return;
	off %= size;
	if (kind % 2) /* whole units, as compression wants them */
		off = off / 65536 * 65536, bytes = 65536;
	bytes = bytes < size - off ? bytes : size - off;
	if (kind < 6) {
		pattern(s->buf, bytes, seed);
		FUZZ_CHECK(img_pwrite(side->img, s->buf, bytes, off, flags, NULL) == 0);
		flat_write(&side->truth, s->buf, bytes, off);
	} else if (kind == 6) {
		FUZZ_CHECK(img_zero(side->img, bytes, off, seed & 1 ? IMG_IO_NO_UNMAP : 0, NULL) == 0);
		flat_zero(&side->truth, bytes, off);
	} else {
		/* Zeros, or as before: what it is now. */
		FUZZ_CHECK(img_discard(side->img, bytes, off, 0, NULL) == 0);
		scene_read(s, side->img, &seen);
		flat_free(&side->truth);
		side->truth = seen;
	}
}

static void make(struct scene *s, struct side *side, const char *name, struct fuzz_input *in, bool on_backing)
{
	struct img_create_options create = { .struct_size = sizeof(create), .size_given = true, .refs = IMG_REFS_ANY };
	unsigned kind = (unsigned)fuzz_take(in, 1), steps;
	struct img_error err = { 0 };

	memset(side, 0, sizeof(*side));
	side->name = name;
	side->format = scene_format(kind, side->options, sizeof(side->options));
	create.format = side->format;
	create.options = side_is_raw(side) ? NULL : side->options;
	create.size_bytes = fuzz_take(in, 2) * SECTOR % (MAX_BYTES + SECTOR);
	on_backing = on_backing && kind & 0x80 && !side_is_raw(side);
	if (on_backing) {
		create.backing = s->backing.name;
		create.backing_format = s->backing.format;
	}
	if (image_create_env(name, &create, &s->fs.env, &err) != 0) {
		fprintf(stderr, "%s cannot be made: %s\n", name, err.msg);
		abort();
	}
	if (on_backing)
		flat_copy(&side->truth, &s->backing.truth);
	else
		flat_init(&side->truth, 0);
	flat_resize(&side->truth, create.size_bytes);
	side->img = scene_open(s, name, side->format, IMG_OPEN_WRITE);
	steps = (unsigned)fuzz_take(in, 1) % (MAX_STEPS + 1);
	for (unsigned i = 0; i < steps && in->at < in->end; i++)
		fill_step(s, side, in);
}

static int wrap(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		struct img_error *err)
{
	struct scene *s = ctx;

	(void)name;
	(void)args;
	return fault_node_new(child, &s->plan, out, err);
}

void scene_build(struct scene *s, struct fuzz_input *in)
{
	static uint8_t buf[MAX_BACKED_BYTES];

	memset(s, 0, sizeof(*s));
	s->buf = buf;
	s->verbose = getenv("FUZZ_VERBOSE") != NULL;
	memfs_init(&s->fs);
	fault_plan_init(&s->plan);
	s->fs.wrap = wrap;
	s->fs.wrap_ctx = s;
	make(s, &s->backing, "backing", in, false);
	FUZZ_CHECK(img_close(s->backing.img, NULL) == 0);
	s->backing.img = NULL;
	make(s, &s->src, "src", in, true);
	make(s, &s->dst, "dst", in, true);
	if (s->verbose)
		printf("backing %s %llu, src %s %s %llu on %d, dst %s %s %llu on %d\n", s->backing.format,
		       (unsigned long long)s->backing.truth.size_bytes, s->src.format, s->src.options,
		       (unsigned long long)s->src.truth.size_bytes, img_backing(s->src.img) != NULL, s->dst.format,
		       s->dst.options, (unsigned long long)s->dst.truth.size_bytes, img_backing(s->dst.img) != NULL);
}

static void side_free(struct side *side, struct scene *s)
{
	if (side->img) {
		scene_check(s, side->img, &side->truth);
		FUZZ_CHECK(img_close(side->img, NULL) == 0);
	}
	flat_free(&side->truth);
	for (unsigned i = 0; i < side->nr_snaps; i++)
		flat_free(&side->snap[i].truth);
}

void scene_free(struct scene *s)
{
	side_free(&s->dst, s);
	side_free(&s->src, s);
	side_free(&s->backing, s);
	memfs_destroy(&s->fs);
	fault_plan_destroy(&s->plan);
}
