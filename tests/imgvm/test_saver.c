/* SPDX-License-Identifier: MIT */
/*
 * RAM into an image and back, with a real image and processors that are only a set of pages that they wrote: the
 * functions of vm.h that the saver calls are this file's. A shadow of RAM says what each snapshot must hold.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "saver.h"

#define RAM_BYTES (UINT64_C(8) << 20)
#define NR_PAGES  (RAM_BYTES / MEMORY_PAGE)
#define NR_WORDS  (NR_PAGES / 64)

static char folder[] = "saver-XXXXXX";

/* ---- the processors ---- */

static uint64_t vm_dirty[NR_WORDS];
static bool vm_tracks;

int vm_track(struct vm *vm, bool on, struct img_error *err)
{
	(void)vm;
	(void)err;
	vm_tracks = on;
	memset(vm_dirty, 0, sizeof(vm_dirty));
	return 0;
}

int vm_take_dirty(struct vm *vm, uint64_t *words, struct img_error *err)
{
	(void)vm;
	(void)err;
	for (size_t i = 0; i < NR_WORDS; i++)
		words[i] |= vm_dirty[i];
	memset(vm_dirty, 0, sizeof(vm_dirty));
	return 0;
}

int vm_forget_dirty(struct vm *vm, struct img_error *err)
{
	(void)vm;
	(void)err;
	memset(vm_dirty, 0, sizeof(vm_dirty));
	return 0;
}

/* ---- a machine's worth of it ---- */

struct fixture {
	struct memory mem;
	struct saver saver;
	struct img *img;
	char path[64];
	uint8_t *shadow;
	unsigned seed;
};

static struct img *new_image(const char *path)
{
	struct img_create_options create = { .struct_size = sizeof(create), .size_bytes = 1 << 20 };
	struct img_open_options how = { .struct_size = sizeof(how), .flags = IMG_OPEN_WRITE };
	struct img_error err = { 0 };
	struct img *img = NULL;

	if (img_create(path, &create, &err) != 0 || img_open(path, &how, &img, &err) != 0)
		fail_msg("%s", err.msg);
	return img;
}

static void start(struct fixture *f, const char *name)
{
	struct img_error err = { 0 };

	memset(f, 0, sizeof(*f));
	snprintf(f->path, sizeof(f->path), "%s/%s", folder, name);
	f->img = new_image(f->path);
	assert_int_equal(memory_init(&f->mem, RAM_BYTES, &err), 0);
	assert_int_equal(saver_init(&f->saver, &f->mem, NULL, f->img, &err), 0);
	f->shadow = calloc(1, RAM_BYTES);
	f->seed = 1;
	vm_tracks = false;
	memset(vm_dirty, 0, sizeof(vm_dirty));
}

static void stop(struct fixture *f)
{
	struct img_error err = { 0 };

	saver_done(&f->saver);
	assert_int_equal(img_close(f->img, &err), 0);
	memory_free(&f->mem);
	free(f->shadow);
	unlink(f->path);
}

static void mark(struct fixture *f, uint64_t page, bool by_device)
{
	if (by_device)
		memory_wrote(&f->mem, f->mem.base + page * MEMORY_PAGE, MEMORY_PAGE);
	else
		vm_dirty[page / 64] |= UINT64_C(1) << (page % 64);
}

/* A processor or a device writes a page. */
static void write_page(struct fixture *f, uint64_t page, int byte, bool by_device)
{
	memset(f->mem.base + page * MEMORY_PAGE, byte, MEMORY_PAGE);
	memset(f->shadow + page * MEMORY_PAGE, byte, MEMORY_PAGE);
	mark(f, page, by_device);
}

static void write_some(struct fixture *f, unsigned nr)
{
	while (nr-- > 0) {
		uint64_t page = (uint64_t)rand_r(&f->seed) % NR_PAGES;

		/* a fourth of them become zeros */
		write_page(f, page, rand_r(&f->seed) % 4 ? rand_r(&f->seed) & 0xff : 0, rand_r(&f->seed) & 1);
	}
}

static void round_of(struct fixture *f, bool guest_runs)
{
	struct img_error err = { 0 };
	uint64_t bytes;

	if (saver_collect(&f->saver, &bytes, &err) != 0 || saver_write(&f->saver, guest_runs, &err) != 0)
		fail_msg("%s", err.msg);
}

static void snapshot(struct fixture *f, const char *name, unsigned writes_while_saving)
{
	struct img_error err = { 0 };

	assert_int_equal(saver_begin(&f->saver, &err), 0);
	assert_true(vm_tracks);
	round_of(f, true);
	write_some(f, writes_while_saving);
	round_of(f, true);
	write_some(f, writes_while_saving);
	round_of(f, false);
	if (img_snapshot_create(f->img, name, IMG_SNAPSHOT_VMSTATE, &err) != 0)
		fail_msg("%s", err.msg);
	saver_commit(&f->saver);
}

static void expect(struct img *img, const char *name, const uint8_t *ram)
{
	struct img_error err = { 0 };
	uint8_t *got = malloc(RAM_BYTES);
	uint64_t bytes = 0;

	assert_int_equal(img_vmstate_size(img, name, &bytes, &err), 0);
	assert_int_equal(bytes, STATE_AREA_BYTES + RAM_BYTES);
	if (img_vmstate_read(img, name, got, RAM_BYTES, STATE_AREA_BYTES, &err) != 0)
		fail_msg("%s", err.msg);
	for (uint64_t page = 0; page < NR_PAGES; page++)
		if (memcmp(got + page * MEMORY_PAGE, ram + page * MEMORY_PAGE, MEMORY_PAGE) != 0)
			fail_msg("snapshot %s: page %llu is not what it was", name, (unsigned long long)page);
	free(got);
}

static uint64_t allocated(struct img *img)
{
	struct img_error err = { 0 };
	struct img_info info;

	assert_int_equal(img_info(img, &info, &err), 0);
	return info.used_bytes;
}

/* ---- tests ---- */

static void test_first_takes_what_was_touched(void **unused)
{
	struct fixture f;
	uint64_t before;

	(void)unused;
	start(&f, "first");
	/* before anything is recorded: only the page map knows */
	write_page(&f, 3, 0x11, false);
	write_page(&f, NR_PAGES - 1, 0x22, true);
	write_page(&f, 9, 0, true); /* present, but zeros */
	before = allocated(f.img);
	snapshot(&f, "a", 0);
	expect(f.img, "a", f.shadow);
	assert_true(allocated(f.img) - before < 64 * 1024);
	stop(&f);
}

static void test_later_ones_take_what_changed(void **unused)
{
	uint8_t *first = malloc(RAM_BYTES);
	struct fixture f;
	uint64_t before;

	(void)unused;
	start(&f, "later");
	for (uint64_t page = 0; page < NR_PAGES; page++)
		write_page(&f, page, (int)(page & 0xff) | 1, page & 1);
	snapshot(&f, "a", 0);
	memcpy(first, f.shadow, RAM_BYTES);
	before = allocated(f.img);
	write_page(&f, 5, 0xaa, false);
	write_page(&f, 6, 0, true); /* becomes zero: must not stay as in the base */
	write_page(&f, 700, 0xbb, true);
	snapshot(&f, "b", 0);
	expect(f.img, "a", first);
	expect(f.img, "b", f.shadow);
	assert_true(allocated(f.img) - before < 256 * 1024);
	free(first);
	stop(&f);
}

/* What is written between the rounds is in the snapshot as it was at the end, also a page that becomes zero half way. */
static void test_changes_while_saving(void **unused)
{
	struct fixture f;

	(void)unused;
	start(&f, "while");
	write_page(&f, 1, 0x33, false);
	{
		struct img_error err = { 0 };

		assert_int_equal(saver_begin(&f.saver, &err), 0);
		round_of(&f, true);
		write_page(&f, 1, 0, false);
		write_page(&f, 2, 0x44, true);
		round_of(&f, false);
		assert_int_equal(img_snapshot_create(f.img, "a", IMG_SNAPSHOT_VMSTATE, &err), 0);
		saver_commit(&f.saver);
	}
	expect(f.img, "a", f.shadow);
	stop(&f);
}

/* How much of the working state is not zeros. */
static uint64_t working_pages(struct img *img)
{
	uint8_t *got = malloc(RAM_BYTES), *zeros = calloc(1, MEMORY_PAGE);
	struct img_error err = { 0 };
	uint64_t bytes = 0, nr = 0;

	assert_int_equal(img_vmstate_size(img, NULL, &bytes, &err), 0);
	if (bytes) {
		assert_int_equal(img_vmstate_read(img, NULL, got, RAM_BYTES, STATE_AREA_BYTES, &err), 0);
		for (uint64_t page = 0; page < NR_PAGES; page++)
			nr += memcmp(got + page * MEMORY_PAGE, zeros, MEMORY_PAGE) != 0;
	}
	free(got);
	free(zeros);
	return nr;
}

/* An attempt that came to nothing leaves no page out of the next one, and holds no space until then. */
static void test_after_a_failed_attempt(void **unused)
{
	struct img_error err = { 0 };
	struct fixture f;
	uint64_t before;

	(void)unused;
	start(&f, "failed");
	for (unsigned base = 0; base < 2; base++) {
		before = working_pages(f.img);
		write_some(&f, 200);
		assert_int_equal(saver_begin(&f.saver, &err), 0);
		round_of(&f, true);
		write_some(&f, 50);
		round_of(&f, true);
		assert_true(working_pages(f.img) > before + 50);
		/* no commit: the name was taken, the disk was full... */
		saver_abandon(&f.saver);
		assert_true(working_pages(f.img) <= before);
		write_some(&f, 50);
		snapshot(&f, base ? "b" : "a", 20);
		expect(f.img, base ? "b" : "a", f.shadow);
	}
	stop(&f);
}

/* Many snapshots, back to any of them by mapping, and on from there. */
static void test_back_and_on(void **unused)
{
	enum { NR = 6 };
	uint8_t *kept[NR];
	struct img_error err = { 0 };
	struct fixture f;
	char name[8];

	(void)unused;
	start(&f, "back");
	for (unsigned i = 0; i < NR; i++) {
		write_some(&f, 300);
		snprintf(name, sizeof(name), "s%u", i);
		snapshot(&f, name, 30);
		kept[i] = malloc(RAM_BYTES);
		memcpy(kept[i], f.shadow, RAM_BYTES);
	}
	for (unsigned turn = 0; turn < 12; turn++) {
		unsigned to = (unsigned)rand_r(&f.seed) % NR;
		int ret;

		snprintf(name, sizeof(name), "s%u", to);
		write_some(&f, 100);
		assert_int_equal(img_snapshot_revert(f.img, name, &err), 0);
		if (saver_load(&f.saver, f.img, NULL, true, &err) != 0)
			fail_msg("%s", err.msg);
		assert_memory_equal(f.mem.base, kept[to], RAM_BYTES);
		memcpy(f.shadow, kept[to], RAM_BYTES);
		while ((ret = saver_verify_step(&f.saver, &err)) > 0)
			;
		assert_int_equal(ret, 0);
		write_some(&f, 100);
		snprintf(name, sizeof(name), "t%u", turn);
		snapshot(&f, name, 10);
		expect(f.img, name, f.shadow);
	}
	for (unsigned i = 0; i < NR; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		expect(f.img, name, kept[i]);
		free(kept[i]);
	}
	stop(&f);
}

/* KVM may name pages that nobody wrote: what they were mapped from goes with the snapshot that held it. */
static void test_named_and_not_written(void **unused)
{
	static uint8_t junk[1 << 20];
	struct img_error err = { 0 };
	struct fixture f;

	(void)unused;
	start(&f, "named");
	write_some(&f, 600);
	snapshot(&f, "a", 0);
	write_some(&f, 100);
	assert_int_equal(img_snapshot_revert(f.img, "a", &err), 0);
	if (saver_load(&f.saver, f.img, NULL, true, &err) != 0)
		fail_msg("%s", err.msg);
	memcpy(f.shadow, f.mem.base, RAM_BYTES);
	for (uint64_t page = 0; page < NR_PAGES; page += 2)
		mark(&f, page, false);
	snapshot(&f, "b", 0);
	expect(f.img, "b", f.shadow);
	/* What only the first one held is free now, and written over. */
	assert_int_equal(img_snapshot_delete(f.img, "a", &err), 0);
	memset(junk, 0xa5, sizeof(junk));
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(img_pwrite(f.img, junk, sizeof(junk), 0, 0, &err), 0);
		assert_int_equal(img_flush(f.img, IMG_FLUSH_CHECKPOINT, &err), 0);
	}
	assert_memory_equal(f.mem.base, f.shadow, RAM_BYTES);
	stop(&f);
}

/* Resumed from one image, saved into another: everything is written, also what was never touched. */
static void test_into_another_image(void **unused)
{
	struct img_error err = { 0 };
	struct fixture from, to;

	(void)unused;
	start(&from, "from");
	write_some(&from, 500);
	snapshot(&from, "a", 0);
	start(&to, "to");
	assert_int_equal(saver_load(&to.saver, from.img, "a", false, &err), 0);
	assert_memory_equal(to.mem.base, from.shadow, RAM_BYTES);
	memcpy(to.shadow, from.shadow, RAM_BYTES);
	snapshot(&to, "b", 40);
	expect(to.img, "b", to.shadow);
	stop(&to);
	stop(&from);
}

/* What was mapped is read, and compared with its checksums, before it is believed for good. */
static void test_damage_is_found(void **unused)
{
	struct img_error err = { 0 };
	struct fixture f;
	FILE *file;
	uint8_t *at = NULL, *all;
	struct stat st;
	int ret;

	(void)unused;
	start(&f, "damage");
	for (uint64_t page = 256; page < 768; page++)
		write_page(&f, page, 0x5a, false);
	memcpy(f.mem.base + 300 * MEMORY_PAGE, "a place that is found again", 27);
	snapshot(&f, "a", 0);
	assert_int_equal(img_flush(f.img, 0, &err), 0);
	file = fopen(f.path, "r+b");
	assert_non_null(file);
	assert_int_equal(fstat(fileno(file), &st), 0);
	all = malloc((size_t)st.st_size);
	assert_int_equal(fread(all, 1, (size_t)st.st_size, file), (size_t)st.st_size);
	at = memmem(all, (size_t)st.st_size, "a place that is found again", 27);
	assert_non_null(at);
	assert_int_equal(fseek(file, (long)(at - all), SEEK_SET), 0);
	assert_int_equal(fputc('A', file), 'A');
	assert_int_equal(fclose(file), 0);
	free(all);
	assert_int_equal(saver_load(&f.saver, f.img, NULL, true, &err), 0);
	while ((ret = saver_verify_step(&f.saver, &err)) > 0)
		;
	assert_int_equal(ret, IMG_E_CORRUPT);
	stop(&f);
}

static int make_folder(void **unused)
{
	(void)unused;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **unused)
{
	(void)unused;
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_first_takes_what_was_touched),
		cmocka_unit_test(test_later_ones_take_what_changed),
		cmocka_unit_test(test_changes_while_saving),
		cmocka_unit_test(test_after_a_failed_attempt),
		cmocka_unit_test(test_back_and_on),
		cmocka_unit_test(test_named_and_not_written),
		cmocka_unit_test(test_into_another_image),
		cmocka_unit_test(test_damage_is_found),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
