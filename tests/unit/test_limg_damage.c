/* SPDX-License-Identifier: MIT */
/* limg files of which a part is damaged: what can still be read, what is refused, and what check says of the place. */
#include "image_fixture.h"

#include <fcntl.h>

#define SIZE	     (4 * MIB)
#define AU	     4096
#define PLACE_B	     192 /* AUs of the second place */
#define GENERATION   56	 /* offsets in a superblock */
#define CATALOG_ROOT 296
#define ADDR_MASK    ((UINT64_C(1) << 38) - 1)

static uint8_t flat[SIZE];

static uint64_t load64(int fd, uint64_t off)
{
	uint8_t b[8];
	uint64_t v = 0;

	assert_int_equal(pread(fd, b, sizeof(b), (off_t)off), sizeof(b));
	for (unsigned i = 8; i-- > 0;)
		v = v << 8 | b[i];
	return v;
}

static void flip(uint64_t off)
{
	int fd = open(in_dir("a"), O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)off), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)off), 1);
	close(fd);
}

/* Slot of the newest superblock. */
static unsigned newest(int fd)
{
	return load64(fd, GENERATION) < load64(fd, AU + GENERATION);
}

/* An image with two snapshots. */
static void make(void)
{
	struct img *img;

	make_image("a", "limg", SIZE, NULL, NULL);
	img = open_image("a", NULL, IMG_OPEN_WRITE);
	write_pattern(img, 0, MIB, 1);
	assert_ok(img_snapshot_create(img, "one", 0, ERR));
	write_pattern(img, 512 * KIB, MIB, 2);
	assert_ok(img_snapshot_create(img, "two", 0, ERR));
	write_pattern(img, 2 * MIB, 300 * KIB, 3);
	assert_ok(img_pread(img, flat, SIZE, 0, 0, ERR));
	close_image(img);
}

static int try_open(const char *snapshot, unsigned flags)
{
	struct img_open_options open = { .struct_size = sizeof(open), .snapshot = snapshot, .flags = flags };
	struct img *img;
	int ret = img_open(in_dir("a"), &open, &img, ERR);

	if (ret == 0)
		close_image(img);
	return ret;
}

struct found {
	uint64_t off; /* of the AU that was damaged */
	enum img_finding_kind kind;
	unsigned here, elsewhere;
};

static void note(void *ctx, const struct img_finding *f)
{
	struct found *found = ctx;

	if (f->kind == IMG_FINDING_NOTE)
		return;
	if (f->kind == found->kind && f->file_off / AU == found->off / AU)
		found->here++;
	else
		found->elsewhere++;
}

static void expect_finding(struct img *img, uint64_t off, enum img_finding_kind kind)
{
	struct found found = { .off = off, .kind = kind };
	struct img_check_result result;

	assert_ok(img_check(img, 0, note, &found, NULL, &result, ERR));
	assert_int_equal(found.here, 1);
	assert_int_equal(found.elsewhere, 0);
}

/* ---- the catalog ------------------------------------------------------------------------------------------------- */

static int no_diff(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	(void)ctx;
	(void)off;
	(void)bytes;
	(void)kind;
	fail();
	return 1;
}

static void catalog_damaged_at(uint64_t off)
{
	struct img_snapshot list[4];
	struct img_info info;
	struct img *img;
	size_t nr;

	flip(off);
	assert_int_equal(try_open(NULL, IMG_OPEN_WRITE), IMG_E_CORRUPT);
	assert_int_equal(fixture_error.offset / AU, off / AU);
	assert_int_equal(try_open("one", 0), IMG_E_CORRUPT);
	assert_int_equal(fixture_error.offset / AU, off / AU);
	img = open_image("a", NULL, 0);
	assert_content(img, flat, SIZE);
	/* Not "there are none". */
	assert_int_equal(img_snapshot_list(img, list, 4, &nr, ERR), IMG_E_CORRUPT);
	assert_int_equal(fixture_error.offset / AU, off / AU);
	assert_int_equal(img_snapshot_diff(img, "one", NULL, no_diff, NULL, ERR), IMG_E_CORRUPT);
	assert_int_equal(img_vmstate_size(img, "one", &(uint64_t){ 0 }, ERR), IMG_E_CORRUPT);
	assert_ok(img_info(img, &info, ERR));
	assert_true(info.corrupt);
	expect_finding(img, off, IMG_FINDING_DAMAGE);
	close_image(img);
	flip(off);
	assert_int_equal(try_open("one", 0), 0);
	assert_int_equal(try_open(NULL, IMG_OPEN_WRITE), 0);
}

static void test_catalog(void **state)
{
	uint64_t leaf, page;
	int fd;

	(void)state;
	make();
	fd = open(in_dir("a"), O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	leaf = (load64(fd, newest(fd) * AU + CATALOG_ROOT) & ADDR_MASK) * AU;
	page = (load64(fd, leaf) & ADDR_MASK) * AU;
	close(fd);
	catalog_damaged_at(leaf + 8);
	catalog_damaged_at(page + 300);
}

/* ---- the superblocks --------------------------------------------------------------------------------------------- */

static void overwrite(const char *name, uint64_t off, const void *bytes, size_t nr)
{
	int fd = open(in_dir(name), O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, nr, (off_t)off), nr);
	close(fd);
}

/* Both magics that a glance at the head shows are gone: what is left must not be taken for a raw disk. */
static void test_first_place_lost(void **state)
{
	static const uint8_t zeros[2 * AU];
	struct img_probe_result probed;
	struct img *img;

	(void)state;
	make();
	overwrite("a", 0, zeros, sizeof(zeros));
	assert_ok(img_probe(in_dir("a"), &probed, ERR));
	assert_string_equal(probed.format, "limg");
	img = open_image("a", NULL, 0);
	assert_string_equal(img_format(img), "limg");
	assert_content(img, flat, SIZE);
	close_image(img);
	/* A writer mends it. */
	img = open_image("a", NULL, IMG_OPEN_WRITE);
	write_pattern(img, 0, 512, 9);
	assert_ok(img_pread(img, flat, SIZE, 0, 0, ERR));
	close_image(img);
	overwrite("a", (uint64_t)PLACE_B * AU, zeros, sizeof(zeros));
	img = open_image("a", NULL, 0);
	assert_content(img, flat, SIZE);
	close_image(img);
}

static void expect_clean(void)
{
	struct img_check_result result;
	struct img *img = open_image("a", NULL, 0);

	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage + result.leaks + result.redundancy, 0);
	close_image(img);
}

/* Neither copy of the newest superblock can be read: what is opened is the state before, and that must not pass in
 * silence. */
static void newest_lost_at(uint64_t in_page)
{
	uint64_t generation;
	struct img_info info;
	struct img *img;
	unsigned slot;
	int fd;

	make();
	expect_clean();
	fd = open(in_dir("a"), O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	slot = newest(fd);
	generation = load64(fd, slot * AU + GENERATION);
	close(fd);
	flip(slot * AU + in_page);
	flip((uint64_t)(PLACE_B + slot) * AU + in_page + 1);
	img = open_image("a", NULL, 0);
	assert_ok(img_info(img, &info, ERR));
	assert_int_equal(info.generation, generation - 1);
	expect_finding(img, slot * AU, IMG_FINDING_REDUNDANCY);
	close_image(img);
	/* A writer goes on from that state; its next superblock takes the place of the lost one. */
	close_image(open_image("a", NULL, IMG_OPEN_WRITE));
	expect_clean();
	fixture_files(true);
}

static void test_newest_superblock_lost(void **state)
{
	(void)state;
	newest_lost_at(2000);	    /* names its generation still */
	newest_lost_at(GENERATION); /* names another one */
	newest_lost_at(0);	    /* names nothing */
}

/* What merely looks like a superblock there is anybody's data. */
static void test_magic_in_a_raw_disk(void **state)
{
	struct img_probe_result probed;

	(void)state;
	make_image("raw", "raw", MIB, NULL, NULL);
	overwrite("raw", (uint64_t)PLACE_B * AU, "LIMG\r\n\x1a\0", 8);
	overwrite("raw", (uint64_t)(PLACE_B + 1) * AU, "LIMG\r\n\x1a\0", 8);
	assert_ok(img_probe(in_dir("raw"), &probed, ERR));
	assert_string_equal(probed.format, "raw");
	assert_int_equal(probed.nr_magics, 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(test_catalog),
		T(test_first_place_lost),
		T(test_newest_superblock_lost),
		T(test_magic_in_a_raw_disk),
	};

	return cmocka_run_group_tests_name("limg-damage", tests, NULL, NULL);
}
