/* SPDX-License-Identifier: MIT */
/*
 * Backing chains: opening, reading through, limits, cycles, policy, and pins. A toy format of this file's own, in a
 * registry of this file's own, can be made to name anything: what a sound format would never write, a hostile image
 * does.
 */
#include <sys/stat.h>
#include <fcntl.h>
#include <xxhash.h>

#include "checked.h"
#include "error.h"
#include "image.h"
#include "image_fixture.h"

#define BLOCK	     4096u
#define NR_BLOCKS    64u
#define HEADER_BYTES 8192u

/* ---- the toy format ---------------------------------------------------------------------------------------------- */

struct toy_header {
	char magic[8]; /* "TOYTOY" */
	uint64_t size_bytes;
	uint8_t map[NR_BLOCKS]; /* 1: the block is here */
	uint8_t uuid[16];	/* all zero: no strong identity */
	uint8_t has_ref;
	struct backing_ref ref;
};
_Static_assert(sizeof(struct toy_header) <= HEADER_BYTES, "header fits");

static int toy_probe(const struct probe_data *data)
{
	return data->head_bytes >= HEADER_BYTES && memcmp(data->head, "TOYTOY", 6) == 0 ? 100 : 0;
}

static int toy_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct toy_header *h = calloc(1, HEADER_BYTES);
	int ret;

	assert_non_null(h);
	memcpy(h->magic, "TOYTOY", 6);
	h->size_bytes = args->size_bytes;
	if (args->options && strcmp(args->options, "strong") == 0)
		for (size_t i = 0; i < sizeof(h->uuid); i++)
			h->uuid[i] = (uint8_t)(1 + random_below(255));
	if (args->backing) {
		h->has_ref = 1;
		h->ref = *args->backing;
	}
	ret = node_pwrite(file, h, HEADER_BYTES, 0, 0, err);
	free(h);
	return ret;
}

static struct toy_header *toy(const struct node *node)
{
	return node->state;
}

static int toy_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	int ret = node_pread(node->file, node->state, HEADER_BYTES, 0, 0, err);

	if (ret != 0)
		return ret;
	if (memcmp(toy(node)->magic, "TOYTOY", 6) != 0)
		return error_set(err, IMG_E_FORMAT, 0, 0, "toy", "no toy");
	/* Any snapshot of a toy is its head. */
	(void)args;
	return 0;
}

static int toy_close(struct node *node, struct img_error *err)
{
	return node->writable ? node_pwrite(node->file, node->state, HEADER_BYTES, 0, 0, err) : 0;
}

static uint64_t toy_size(const struct node *node)
{
	return ((const struct toy_header *)node->state)->size_bytes;
}

static void toy_limits(const struct node *node, struct driver_limits *out)
{
	(void)node;
	*out = (struct driver_limits){ .request_align = 512, .block_bytes = BLOCK };
}

static int toy_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	uint8_t *p = buf;
	int ret = 0;

	(void)flags;
	while (bytes > 0 && ret == 0) {
		uint64_t n = min_u64(bytes, BLOCK - off % BLOCK);

		if (toy(node)->map[off / BLOCK])
			ret = node_pread(node->file, p, n, HEADER_BYTES + off, 0, err);
		else
			ret = node_read_backing(node, p, n, off, err);
		p += n;
		off += n;
		bytes -= n;
	}
	return ret;
}

static int toy_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err)
{
	(void)flags;
	assert_int_equal((off | bytes) % BLOCK, 0);
	memset(toy(node)->map + off / BLOCK, 1, bytes / BLOCK);
	return node_pwrite(node->file, buf, bytes, HEADER_BYTES + off, 0, err);
}

static bool toy_get_backing(struct node *node, struct backing_ref *out)
{
	*out = toy(node)->ref;
	return toy(node)->has_ref;
}

static int toy_pin(struct node *node, struct pin *out, struct img_error *err)
{
	(void)err;
	out->kind = PIN_STRONG;
	memcpy(out->uuid, toy(node)->uuid, sizeof(out->uuid));
	out->size_bytes = toy(node)->size_bytes;
	/* Stands for the root of the checksums. */
	memcpy(out->hash, toy(node)->map, sizeof(out->hash));
	return 0;
}

#define TOY(name_)                                                                                                    \
	.name = (name_), .kind = DRIVER_FORMAT, .state_bytes = HEADER_BYTES, .caps = IMG_CAP_WRITE | IMG_CAP_BACKING, \
	.create = toy_create, .open = toy_open, .close = toy_close, .size = toy_size, .limits = toy_limits,           \
	.pread = toy_pread, .pwrite = toy_pwrite, .get_backing = toy_get_backing

static const struct img_driver toy_driver = { TOY("toy"), .probe = toy_probe, .pin = toy_pin };
/* The same without identity of its own: its pins are weak. */
static const struct img_driver weak_driver = { TOY("weak") };
extern const struct img_driver raw_driver, file_driver;
static const struct img_driver *const formats[] = { &toy_driver, &weak_driver, &raw_driver };

const struct img_driver *registry_at(size_t i)
{
	return i < ARRAY_LEN(formats) ? formats[i] : NULL;
}

const struct img_driver *registry_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(formats); i++)
		if (strcmp(formats[i]->name, name) == 0)
			return formats[i];
	return NULL;
}

const struct img_driver *registry_host_file(void)
{
	return &file_driver;
}

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

static int make(const char *name, const char *backing, const char *backing_format)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "toy",
		.size_bytes = backing ? 0 : NR_BLOCKS * BLOCK,
		.backing = backing,
		.backing_format = backing_format,
	};

	return img_create(in_dir(name), &create, ERR);
}

static void fill(const char *name, const char *format, unsigned first, unsigned nr, int value)
{
	struct img_open_options open = {
		.struct_size = sizeof(open),
		.format = format,
		.flags = IMG_OPEN_WRITE | IMG_OPEN_UNSAFE_BACKING,
		.refs = IMG_REFS_ANY,
	};
	uint8_t *buf = malloc(nr * BLOCK);
	struct img *img;

	assert_non_null(buf);
	memset(buf, value, nr * BLOCK);
	assert_ok(img_open(in_dir(name), &open, &img, ERR));
	assert_ok(img_pwrite(img, buf, nr * BLOCK, first * BLOCK, 0, ERR));
	close_image(img);
	free(buf);
}

static int try_open(const char *name, const struct img_open_options *open)
{
	struct img *img;
	int ret = img_open(in_dir(name), open, &img, ERR);

	if (ret == 0)
		close_image(img);
	else
		assert_null(img);
	return ret;
}

static int byte_at(struct img *img, unsigned block)
{
	uint8_t byte;

	assert_ok(img_pread(img, &byte, 1, block * BLOCK + 17, 0, ERR));
	return byte;
}

/* Rewrites the reference of a toy behind everybody's back. */
static void forge(const char *name, const struct backing_ref *ref)
{
	struct toy_header *h = calloc(1, HEADER_BYTES);
	int fd = open(in_dir(name), O_RDWR);

	assert_non_null(h);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, h, HEADER_BYTES, 0), HEADER_BYTES);
	h->has_ref = ref != NULL;
	if (ref)
		h->ref = *ref;
	assert_int_equal(pwrite(fd, h, HEADER_BYTES, 0), HEADER_BYTES);
	close(fd);
	free(h);
}

static struct backing_ref ref_to(const char *name, const char *format)
{
	struct backing_ref ref = { .pin = { .kind = PIN_NONE } };

	snprintf(ref.name, sizeof(ref.name), "%s", name);
	snprintf(ref.format, sizeof(ref.format), "%s", format);
	return ref;
}

/* ---- reading through --------------------------------------------------------------------------------------------- */

static void test_three_layers(void **state)
{
	struct img *img;

	(void)state;
	make_image("base.raw", "raw", (NR_BLOCKS - 8) * BLOCK, NULL, NULL);
	fill("base.raw", "raw", 0, NR_BLOCKS - 8, 1);
	assert_ok(make("mid", "base.raw", "raw"));
	fill("mid", NULL, 10, 10, 2);
	assert_ok(make("top", "mid", NULL));
	fill("top", NULL, 15, 10, 3);
	img = open_image("top", NULL, 0);
	assert_int_equal(img_chain_depth(img), 3);
	assert_string_equal(img_format(img_backing(img)), "toy");
	assert_string_equal(img_format(img_backing(img_backing(img))), "raw");
	assert_null(img_backing(img_backing(img_backing(img))));
	assert_string_equal(img_path(img_backing(img)), in_dir("mid"));
	assert_int_equal(byte_at(img, 9), 1);
	assert_int_equal(byte_at(img, 14), 2);
	assert_int_equal(byte_at(img, 15), 3);
	assert_int_equal(byte_at(img, 24), 3);
	assert_int_equal(byte_at(img, 25), 1);
	/* A parent is an image like any other, but not ours to write or close. */
	assert_int_equal(byte_at(img_backing(img), 15), 2);
	assert_int_equal(img_pwrite(img_backing(img), "x", 1, 0, 0, NULL), IMG_E_READONLY);
	assert_int_equal(img_close(img_backing(img), NULL), IMG_E_INVALID);
	close_image(img);
	fixture_files(true);
}

static void test_shorter_backing(void **state)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "toy",
		.size_bytes = NR_BLOCKS * BLOCK,
		.backing = "base.raw",
		.backing_format = "raw",
	};
	struct img *img;

	(void)state;
	make_image("base.raw", "raw", 5 * 512, NULL, NULL);
	img = open_image("base.raw", "raw", IMG_OPEN_WRITE);
	write_pattern(img, 0, 5 * 512, 1);
	close_image(img);
	assert_ok(img_create(in_dir("top"), &create, ERR));
	img = open_image("top", NULL, 0);
	assert_int_equal(img_size(img), NR_BLOCKS * BLOCK);
	for (unsigned i = 1; i < NR_BLOCKS; i++)
		assert_int_equal(byte_at(img, i), 0);
	close_image(img);
	fixture_files(true);
}

static void test_size_is_the_parents(void **state)
{
	FILE *f = fopen(in_dir("odd.raw"), "wb");
	struct img *img;

	(void)state;
	assert_non_null(f);
	fputs("abcde", f);
	fclose(f);
	assert_ok(make("top", "odd.raw", "raw"));
	img = open_image("top", NULL, 0);
	assert_int_equal(img_size(img), 512);
	close_image(img);
	fixture_files(true);
}

static void test_without_backing(void **state)
{
	struct img_open_options alone = { .struct_size = sizeof(alone), .flags = IMG_OPEN_NO_BACKING };
	struct img *img;
	char byte;

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", "base", NULL));
	fill("top", NULL, 3, 1, 9);
	unlink(in_dir("base"));
	assert_int_equal(try_open("top", NULL), IMG_E_NOENT);
	assert_non_null(strstr(ERR->msg, "base"));
	assert_ok(img_open(in_dir("top"), &alone, &img, ERR));
	assert_int_equal(img_chain_depth(img), 1);
	assert_int_equal(byte_at(img, 3), 9);
	assert_int_equal(img_pread(img, &byte, 1, 0, 0, ERR), IMG_E_REFUSED);
	close_image(img);
	fixture_files(true);
}

/* ---- limits ------------------------------------------------------------------------------------------------------ */

static void test_depth_limit(void **state)
{
	struct img_open_options open = { .struct_size = sizeof(open), .max_depth = 3 };
	char name[8], below[8];

	(void)state;
	assert_ok(make("0", NULL, NULL));
	for (int i = 1; i < 70; i++) {
		struct backing_ref ref;

		snprintf(name, sizeof(name), "%d", i);
		snprintf(below, sizeof(below), "%d", i - 1);
		assert_ok(make(name, NULL, NULL));
		ref = ref_to(below, "toy");
		forge(name, &ref);
	}
	assert_ok(try_open("2", &open));
	assert_int_equal(try_open("3", &open), IMG_E_LIMIT);
	assert_ok(try_open("63", NULL));
	assert_int_equal(try_open("64", NULL), IMG_E_LIMIT);
	/* An overlay that could not be opened afterwards is not made. */
	assert_ok(make("ok", "62", NULL));
	assert_ok(try_open("ok", NULL));
	assert_int_equal(make("too-deep", "63", NULL), IMG_E_LIMIT);
	open.max_depth = 70;
	assert_ok(try_open("69", &open));
	fixture_files(true);
}

static void test_cycles(void **state)
{
	struct backing_ref ref = ref_to("a", "toy");

	(void)state;
	assert_ok(make("a", NULL, NULL));
	assert_ok(make("b", NULL, NULL));
	/* Itself; itself by another name; through another. */
	forge("a", &ref);
	assert_int_equal(try_open("a", NULL), IMG_E_CORRUPT);
	assert_non_null(strstr(ERR->msg, "cycle"));
	assert_int_equal(link(in_dir("a"), in_dir("hard")), 0);
	ref = ref_to("hard", "toy");
	forge("a", &ref);
	assert_int_equal(try_open("a", NULL), IMG_E_CORRUPT);
	ref = ref_to("b", "toy");
	forge("a", &ref);
	ref = ref_to("a", "toy");
	forge("b", &ref);
	assert_int_equal(try_open("a", NULL), IMG_E_CORRUPT);
	assert_int_equal(try_open("b", NULL), IMG_E_CORRUPT);
	/* Snapshots of one file do not make it end. */
	strcpy(ref.snapshot, "s");
	forge("a", &ref);
	assert_int_equal(try_open("a", NULL), IMG_E_CORRUPT);
	fixture_files(true);
}

static void test_overwriting_the_own_parent(void **state)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "toy",
		.backing = "a",
		.flags = IMG_CREATE_OVERWRITE,
	};

	(void)state;
	assert_ok(make("a", NULL, NULL));
	assert_ok(make("b", "a", NULL));
	assert_int_equal(img_create(in_dir("a"), &create, ERR), IMG_E_INVALID);
	create.backing = "b";
	assert_int_equal(img_create(in_dir("a"), &create, ERR), IMG_E_INVALID);
	assert_non_null(strstr(ERR->msg, "itself"));
	assert_ok(try_open("b", NULL));
	fixture_files(true);
}

/* ---- what an image may say --------------------------------------------------------------------------------------- */

static void test_policy(void **state)
{
	struct img_open_options open = { .struct_size = sizeof(open), .refs = IMG_REFS_NONE };
	struct backing_ref ref;
	char absolute[600];

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", "base", NULL));
	assert_int_equal(try_open("top", &open), IMG_E_REFUSED);
	assert_ok(try_open("base", &open));
	open.refs = IMG_REFS_DIR;
	assert_ok(try_open("top", &open));
	/* Out of the folder and in again is out. */
	snprintf(absolute, sizeof(absolute), "..%s/base", strrchr(fixture_dir, '/'));
	ref = ref_to(absolute, "toy");
	forge("top", &ref);
	assert_int_equal(try_open("top", &open), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "--allow-refs any"));
	open.refs = IMG_REFS_ANY;
	assert_ok(try_open("top", &open));
	/* The policy is asked at creation, too. */
	unlink(in_dir("top"));
	assert_int_equal(make("top", absolute, NULL), IMG_E_REFUSED);
	assert_int_equal(make("top", "json:{}", NULL), IMG_E_REFUSED);
	ref = ref_to("/etc/passwd", "raw");
	assert_ok(make("evil", NULL, NULL));
	forge("evil", &ref);
	assert_int_equal(try_open("evil", NULL), IMG_E_REFUSED);
	fixture_files(true);
}

static void test_descriptor_has_no_folder(void **state)
{
	struct img_open_options open_opts = { .struct_size = sizeof(open_opts), .refs = IMG_REFS_ANY };
	struct img *img;

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", "base", NULL));
	assert_int_equal(img_open_fd(open(in_dir("top"), O_RDONLY), &open_opts, &img, ERR), IMG_E_REFUSED);
	open_opts.flags = IMG_OPEN_NO_BACKING;
	assert_ok(img_open_fd(open(in_dir("top"), O_RDONLY), &open_opts, &img, ERR));
	close_image(img);
	fixture_files(true);
}

/* The recorded format counts; only where none is recorded a parent is probed, and raw never guessed. */
static void test_parents_format_is_on_record(void **state)
{
	struct backing_ref ref;
	struct img *img;

	(void)state;
	make_image("base.raw", "raw", NR_BLOCKS * BLOCK, NULL, NULL);
	assert_int_equal(make("top", "base.raw", NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "-F raw"));
	assert_ok(make("top", "base.raw", "raw"));
	/* The guest of base.raw writes a toy's header into its disk. */
	ref = ref_to("base.raw", "raw");
	forge("top", &ref);
	assert_ok(make("donor", NULL, NULL));
	assert_int_equal(rename(in_dir("donor"), in_dir("base.raw")), 0);
	img = open_image("top", NULL, 0);
	assert_string_equal(img_format(img_backing(img)), "raw");
	assert_int_equal(img_size(img_backing(img)), HEADER_BYTES);
	close_image(img);
	ref.format[0] = '\0';
	forge("top", &ref);
	img = open_image("top", NULL, 0);
	assert_string_equal(img_format(img_backing(img)), toy_driver.name);
	close_image(img);
	assert_int_equal(remove(in_dir("base.raw")), 0);
	make_image("base.raw", "raw", NR_BLOCKS * BLOCK, NULL, NULL);
	assert_int_equal(try_open("top", NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "-F raw"));
	ref = ref_to("", "raw");
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_CORRUPT);
	ref = ref_to("base.raw", "vmdk");
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_UNSUPPORTED);
	ref = ref_to("base.raw", "file");
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_UNSUPPORTED);
	/* Strings that never end are cut. */
	memset(&ref, 'x', sizeof(ref));
	ref.committing = false;
	ref.pin.kind = PIN_NONE;
	forge("top", &ref);
	assert_int_not_equal(try_open("top", NULL), 0);
	fixture_files(true);
}

/* Several names of one parent: the first at which something is, each under the policy. */
static void test_several_names(void **state)
{
	struct img_open_options none = { .struct_size = sizeof(none), .refs = IMG_REFS_NONE };
	struct backing_ref ref = ref_to("gone", "toy");
	struct img *img;

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", NULL, NULL));
	strcpy(ref.other[0], "/nowhere/base");
	strcpy(ref.other[1], "base");
	strcpy(ref.other[2], "folder");
	forge("top", &ref);
	img = open_image("top", NULL, 0);
	assert_string_equal(img_path(img_backing(img)), in_dir("base"));
	close_image(img);
	assert_int_equal(try_open("top", &none), IMG_E_REFUSED);
	/* Nothing anywhere: one name is forbidden, and nothing is at the others. */
	strcpy(ref.other[1], "gone too");
	ref.other[2][0] = '\0';
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "nothing is at 'gone' or 'gone too'; and '/nowhere/base', named by"));
	strcpy(ref.other[0], "neither here");
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_NOENT);
	assert_non_null(strstr(ERR->msg, "nothing is at 'gone', 'neither here' or 'gone too', named by"));
	/* Something is there, and no image: it does not go on to the right one. */
	assert_int_equal(mkdir(in_dir("neither here"), 0700), 0);
	strcpy(ref.other[1], "base");
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_INVALID);
	assert_int_equal(rmdir(in_dir("neither here")), 0);
	/* So with another image. */
	assert_ok(make("neither here", NULL, NULL));
	ref.pin = (struct pin){ .kind = PIN_ID, .uuid = "the one" };
	forge("top", &ref);
	assert_int_equal(try_open("top", NULL), IMG_E_CHANGED);
	fixture_files(true);
}

static void test_interrupted_commit(void **state)
{
	struct img_open_options alone = { .struct_size = sizeof(alone), .flags = IMG_OPEN_NO_BACKING | IMG_OPEN_WRITE };
	struct img_open_options unsafe = { .struct_size = sizeof(unsafe), .flags = IMG_OPEN_UNSAFE_BACKING };
	struct img_open_options write = { .struct_size = sizeof(write), .flags = IMG_OPEN_WRITE };
	struct backing_ref ref = ref_to("base", "toy"), below;

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", NULL, NULL));
	ref.committing = true;
	forge("top", &ref);
	/* It can be read, and nothing else: neither changed, nor recorded as a parent. */
	assert_ok(try_open("top", NULL));
	assert_ok(try_open("top", &unsafe));
	assert_int_equal(try_open("top", &write), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "run imgtool commit again"));
	assert_int_equal(make("child", "top", NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "run imgtool commit again"));
	assert_ok(try_open("top", &alone));
	/* So with what stands on it. */
	assert_ok(make("child", NULL, NULL));
	below = ref_to("top", "toy");
	forge("child", &below);
	assert_ok(try_open("child", NULL));
	assert_int_equal(try_open("child", &write), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "run imgtool commit again"));
	fixture_files(true);
}

static void test_locks_of_a_chain(void **state)
{
	struct img_open_options write = { .struct_size = sizeof(write), .flags = IMG_OPEN_WRITE };
	struct img *img, *other;

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", "base", NULL));
	assert_ok(make("top2", "base", NULL));
	img = open_image("top", NULL, IMG_OPEN_WRITE);
	/* Who writes an overlay only reads its parent: siblings may, too, but nobody may write it. */
	assert_ok(try_open("top2", &write));
	assert_int_equal(try_open("base", &write), IMG_E_BUSY);
	close_image(img);
	assert_ok(img_open(in_dir("base"), &write, &other, ERR));
	assert_int_equal(try_open("top", NULL), IMG_E_BUSY);
	close_image(other);
	fixture_files(true);
}

/* ---- pins -------------------------------------------------------------------------------------------------------- */

static void test_strong_pin(void **state)
{
	struct img_open_options unsafe = { .struct_size = sizeof(unsafe), .flags = IMG_OPEN_UNSAFE_BACKING };

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("top", "base", NULL));
	assert_ok(make("topmost", "top", NULL));
	assert_ok(try_open("topmost", NULL));
	fill("base", NULL, 1, 1, 7);
	assert_int_equal(try_open("top", NULL), IMG_E_CHANGED);
	assert_non_null(strstr(ERR->msg, "content changed"));
	assert_non_null(strstr(ERR->msg, "imgtool rebase"));
	/* A change deep below is found from above. */
	assert_int_equal(try_open("topmost", NULL), IMG_E_CHANGED);
	assert_int_equal(make("another", "top", NULL), IMG_E_CHANGED);
	assert_ok(try_open("topmost", &unsafe));
	fixture_files(true);
}

static void test_weak_pin(void **state)
{
	struct timespec times[2] = { { 0 } };
	struct stat sb;

	(void)state;
	make_image("base.raw", "raw", NR_BLOCKS * BLOCK, NULL, NULL);
	fill("base.raw", "raw", 0, 4, 1);
	assert_ok(make("top", "base.raw", "raw"));
	assert_ok(try_open("top", NULL));
	assert_int_equal(stat(in_dir("base.raw"), &sb), 0);
	times[0] = sb.st_atim;
	times[1] = sb.st_mtim;
	/* Content changed, time put back. */
	fill("base.raw", "raw", 0, 1, 2);
	assert_int_equal(utimensat(AT_FDCWD, in_dir("base.raw"), times, 0), 0);
	assert_int_equal(try_open("top", NULL), IMG_E_CHANGED);
	assert_non_null(strstr(ERR->msg, "content changed"));
	/* Content put back, time changed. */
	fill("base.raw", "raw", 0, 1, 1);
	times[1].tv_sec += 100;
	assert_int_equal(utimensat(AT_FDCWD, in_dir("base.raw"), times, 0), 0);
	assert_int_equal(try_open("top", NULL), IMG_E_CHANGED);
	assert_non_null(strstr(ERR->msg, "UTC"));
	/* All put back. */
	times[1].tv_sec -= 100;
	assert_int_equal(utimensat(AT_FDCWD, in_dir("base.raw"), times, 0), 0);
	assert_ok(try_open("top", NULL));
	/* Size. */
	assert_int_equal(truncate(in_dir("base.raw"), NR_BLOCKS * BLOCK + 512), 0);
	assert_int_equal(utimensat(AT_FDCWD, in_dir("base.raw"), times, 0), 0);
	assert_int_equal(try_open("top", NULL), IMG_E_CHANGED);
	assert_non_null(strstr(ERR->msg, "size"));
	fixture_files(true);
}

/* The two times in the message are told apart. */
static void test_times(const struct pin *weak)
{
	static const struct {
		int64_t recorded, found;
		const char *text;
	} table[] = {
		{ 86400000000000, 86401500000000, "written at 1970-01-02 00:00:01 UTC, was 1970-01-02 00:00:00;" },
		{ 86400000000001, 86400999999999,
		  "written at 1970-01-02 00:00:00.999999999 UTC, was 1970-01-02 00:00:00.000000001;" },
		{ -5, -4, "written at -4 ns UTC, was -5 ns;" },
	};

	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct pin recorded = *weak, found = *weak;
		struct img_error err = { 0 };

		recorded.mtime_ns = table[i].recorded;
		found.mtime_ns = table[i].found;
		assert_int_equal(pin_compare(&recorded, &found, "child", "parent", &err), IMG_E_CHANGED);
		assert_non_null(strstr(err.msg, table[i].text));
		assert_non_null(strstr(err.msg, "imgtool rebase --unsafe"));
	}
}

/* A commit changes content, size and time of a parent, and ids that tell of changes; not which image it is. */
static void test_pins_under_a_commit(void **state)
{
	struct pin was = { .kind = PIN_STRONG, .uuid = "this", .snapshot_uuid = "A", .size_bytes = 512 }, now;

	(void)state;
	for (was.kind = PIN_STRONG; was.kind <= PIN_ID; was.kind++) {
		now = was;
		memcpy(now.hash, "other", 5);
		now.size_bytes += 512;
		now.mtime_ns++;
		assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), 0);
		now.kind = was.kind % PIN_ID + 1;
		assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), IMG_E_CHANGED);
	}
	now = was = (struct pin){ .kind = PIN_WEAK, .size_bytes = 1024 };
	now.size_bytes -= 512; /* it only grows */
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), IMG_E_CHANGED);
	now = was = (struct pin){ .kind = PIN_STRONG, .uuid = "this", .snapshot_uuid = "A" };
	now.uuid[0]++;
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), IMG_E_CHANGED);
	now = was;
	now.snapshot_uuid[0]++;
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), IMG_E_CHANGED);
	/* VHDX, VMDK: the one id is another after each change; with two of them one stays. */
	now = was = (struct pin){ .kind = PIN_ID, .uuid = "this", .sector_bytes = 512 };
	now.uuid[0]++;
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), 0);
	now.sector_bytes = 4096;
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), IMG_E_CHANGED);
	now = was = (struct pin){ .kind = PIN_ID, .uuid = "this", .change = "then" };
	now.change[0]++;
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), 0);
	now.uuid[0]++;
	assert_int_equal(pin_compare_committing(&was, &now, "child", "parent", NULL), IMG_E_CHANGED);
}

static void test_pins_one_field_at_a_time(void **state)
{
	static const size_t strong[] = { offsetof(struct pin, uuid), offsetof(struct pin, snapshot_uuid),
					 offsetof(struct pin, hash), offsetof(struct pin, size_bytes) };
	static const size_t weak[] = { offsetof(struct pin, hash), offsetof(struct pin, size_bytes),
				       offsetof(struct pin, mtime_ns) };
	struct pin a = { .kind = PIN_STRONG, .size_bytes = 512 }, b;

	(void)state;
	assert_int_equal(pin_compare(&a, &a, "child", "parent", NULL), 0);
	for (size_t i = 0; i < ARRAY_LEN(strong); i++) {
		b = a;
		((uint8_t *)&b)[strong[i]] ^= 1;
		assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), IMG_E_CHANGED);
	}
	a.kind = PIN_WEAK;
	assert_int_equal(pin_compare(&a, &a, "child", "parent", NULL), 0);
	for (size_t i = 0; i < ARRAY_LEN(weak); i++) {
		b = a;
		((uint8_t *)&b)[weak[i]] ^= 1;
		assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), IMG_E_CHANGED);
	}
	test_times(&a);
	b = a;
	b.kind = PIN_STRONG;
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), IMG_E_CHANGED);
	a.kind = PIN_ID;
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), IMG_E_CHANGED);
	b.kind = PIN_ID;
	b.size_bytes++; /* neither recorded nor compared */
	b.mtime_ns++;
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), 0);
	b.change[0] ^= 1; /* recorded as zero: not known */
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), 0);
	a.change[15] ^= 1;
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), IMG_E_CHANGED);
	b = a;
	b.uuid[15] ^= 1;
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), IMG_E_CHANGED);
	a.kind = PIN_NONE;
	assert_int_equal(pin_compare(&a, &b, "child", "parent", NULL), 0);
}

/* The fingerprint as the specification words it, worked out from the file alone. */
static void expect_fingerprint(uint64_t size)
{
	uint8_t *content = malloc(size + 1), *samples = malloc(8 + 64 * 4096 + size % (256 * KIB)), expected[16];
	struct img *img;
	struct pin pin;
	size_t nr = 8;
	XXH128_hash_t hash;
	int fd = open(in_dir("f.raw"), O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_non_null(content);
	assert_non_null(samples);
	pattern(content, size, size);
	assert_int_equal(write(fd, content, size), (ssize_t)size);
	close(fd);
	for (unsigned i = 0; i < 8; i++)
		samples[i] = (uint8_t)(size >> 8 * i);
	if (size < 256 * KIB) {
		memcpy(samples + nr, content, size);
		nr += size;
	} else {
		for (uint64_t i = 0; i < 64; i++, nr += 4096)
			memcpy(samples + nr, content + i * (size - 4096) / 63 / 512 * 512, 4096);
	}
	hash = XXH3_128bits(samples, nr);
	for (unsigned i = 0; i < 8; i++) {
		expected[i] = (uint8_t)(hash.low64 >> 8 * i);
		expected[8 + i] = (uint8_t)(hash.high64 >> 8 * i);
	}
	img = open_image("f.raw", "raw", 0);
	assert_ok(image_pin(img, &pin, ERR));
	assert_int_equal(pin.kind, PIN_WEAK);
	assert_int_equal(pin.size_bytes, size);
	assert_memory_equal(pin.hash, expected, 16);
	close_image(img);
	free(content);
	free(samples);
}

static void test_fingerprint(void **state)
{
	static const uint64_t sizes[] = {
		0, 1, 4095, 4096, 4097, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 256 * KIB + 511, MIB + 12345, 5 * MIB
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
		expect_fingerprint(sizes[i]);
	fixture_files(true);
}

/* The weak identity of a layer with a backing is that of its content, wherever that lies. */
static void test_weak_pin_reads_through(void **state)
{
	struct backing_ref ref = ref_to("mid", "weak");
	struct img *img;

	(void)state;
	assert_ok(make("base", NULL, NULL));
	assert_ok(make("mid", "base", NULL));
	{
		struct img_open_options open_opts = { .struct_size = sizeof(open_opts), .format = "weak" };

		assert_ok(img_open(in_dir("mid"), &open_opts, &img, ERR));
		assert_ok(image_pin(img, &ref.pin, ERR));
		close_image(img);
	}
	assert_int_equal(ref.pin.kind, PIN_WEAK);
	assert_ok(make("top", NULL, NULL));
	forge("top", &ref);
	assert_ok(try_open("top", NULL));
	/* mid does not notice, for its own pin of base is taken away. */
	fill("base", NULL, 0, 64, 5);
	{
		struct backing_ref plain = ref_to("base", "toy");
		struct timespec times[2];
		struct stat sb;

		assert_int_equal(stat(in_dir("mid"), &sb), 0);
		times[0] = sb.st_atim;
		times[1] = sb.st_mtim;
		forge("mid", &plain);
		assert_int_equal(utimensat(AT_FDCWD, in_dir("mid"), times, 0), 0);
	}
	assert_int_equal(try_open("top", NULL), IMG_E_CHANGED);
	fixture_files(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_three_layers),
		cmocka_unit_test(test_shorter_backing),
		cmocka_unit_test(test_size_is_the_parents),
		cmocka_unit_test(test_without_backing),
		cmocka_unit_test(test_depth_limit),
		cmocka_unit_test(test_cycles),
		cmocka_unit_test(test_overwriting_the_own_parent),
		cmocka_unit_test(test_policy),
		cmocka_unit_test(test_descriptor_has_no_folder),
		cmocka_unit_test(test_parents_format_is_on_record),
		cmocka_unit_test(test_several_names),
		cmocka_unit_test(test_interrupted_commit),
		cmocka_unit_test(test_locks_of_a_chain),
		cmocka_unit_test(test_strong_pin),
		cmocka_unit_test(test_weak_pin),
		cmocka_unit_test(test_pins_under_a_commit),
		cmocka_unit_test(test_pins_one_field_at_a_time),
		cmocka_unit_test(test_fingerprint),
		cmocka_unit_test(test_weak_pin_reads_through),
	};

	return cmocka_run_group_tests_name("chain", tests, fixture_setup, fixture_teardown);
}
