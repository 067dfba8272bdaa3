/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of qcow2 through the library: what imgtool cannot say, that is machine state, views beside changes, several
 * threads. qemu-img's judgement of the same is in tests/cli/055 to 058; here our own check is asked.
 */
#include "image_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define SIZE	   (4 * MIB)
#define MAX_VM	   (3 * MIB)
#define NR_FLAVOUR 5

static const char *const flavours[NR_FLAVOUR] = {
	NULL,	       "cluster_size=512", "cluster_size=16384,extended_l2=on", "cluster_size=4096,refcount_bits=8",
	"compat=0.10",
};

static struct img *make(const char *options, uint64_t size)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "qcow2",
		.size_bytes = size,
		.options = options,
		.flags = IMG_CREATE_OVERWRITE,
	};

	assert_ok(img_create(in_dir("a"), &create, ERR));
	return open_image("a", "qcow2", IMG_OPEN_WRITE);
}

static struct img *again(struct img *img)
{
	close_image(img);
	return open_image("a", "qcow2", IMG_OPEN_WRITE);
}

static void assert_sound(struct img *img)
{
	struct img_check_result result;

	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage, 0);
	assert_int_equal(result.leaks, 0);
}

static void assert_vm(struct img *img, const char *snap, uint64_t bytes, uint64_t seed)
{
	uint8_t *want = malloc(MAX_VM), *have = malloc(MAX_VM);
	uint64_t size = 1;

	assert_non_null(want);
	assert_non_null(have);
	assert_ok(img_vmstate_size(img, snap, &size, ERR));
	assert_int_equal(size, bytes);
	pattern(want, bytes, seed);
	if (bytes) {
		assert_ok(img_vmstate_read(img, snap, have, bytes, 0, ERR));
		assert_memory_equal(want, have, bytes);
	}
	assert_int_equal(img_vmstate_read(img, snap, have, 1, bytes, NULL), IMG_E_INVALID);
	free(want);
	free(have);
}

static void put_vm(struct img *img, uint64_t bytes, uint64_t seed)
{
	uint8_t *buf = malloc(bytes);

	assert_non_null(buf);
	pattern(buf, bytes, seed);
	for (uint64_t off = 0, step; off < bytes; off += step) {
		step = bytes - off < 300001 ? bytes - off : 300001;
		assert_ok(img_vmstate_write(img, buf + off, step, off, ERR));
	}
	free(buf);
}

/* It is in the snapshot that takes it, in no other, and comes back with it. */
static void machine_state(void **state)
{
	(void)state;
	for (unsigned i = 0; i < NR_FLAVOUR; i++) {
		struct img *img = make(flavours[i], SIZE);

		write_pattern(img, 0, SIZE, 1);
		put_vm(img, MAX_VM, 10);
		assert_ok(img_snapshot_create(img, "with", IMG_SNAPSHOT_VMSTATE, ERR));
		assert_vm(img, "with", MAX_VM, 10);
		assert_vm(img, NULL, MAX_VM, 10);
		put_vm(img, 1000, 11);
		assert_ok(img_vmstate_resize(img, 1000, ERR));
		write_pattern(img, 0, SIZE, 2);
		assert_ok(img_snapshot_create(img, "disk", 0, ERR));
		assert_ok(img_snapshot_create(img, "small", IMG_SNAPSHOT_VMSTATE, ERR));
		assert_sound(img);
		img = again(img);
		assert_vm(img, NULL, 0, 0);
		assert_vm(img, "with", MAX_VM, 10);
		assert_vm(img, "disk", 0, 0);
		assert_vm(img, "small", 1000, 11);
		assert_ok(img_snapshot_revert(img, "with", ERR));
		assert_vm(img, NULL, MAX_VM, 10);
		assert_ok(img_snapshot_delete(img, "with", ERR));
		assert_vm(img, NULL, MAX_VM, 10);
		assert_ok(img_snapshot_create(img, "with again", IMG_SNAPSHOT_VMSTATE, ERR));
		assert_ok(img_snapshot_revert(img, "disk", ERR));
		assert_vm(img, NULL, 0, 0);
		assert_vm(img, "with again", MAX_VM, 10);
		assert_sound(img);
		img = again(img);
		assert_sound(img);
		assert_vm(img, "with again", MAX_VM, 10);
		assert_ok(img_snapshot_delete(img, "with again", ERR));
		assert_ok(img_snapshot_delete(img, "small", ERR));
		assert_ok(img_snapshot_delete(img, "disk", ERR));
		assert_sound(img);
		close_image(img);
	}
}

/* What is cut off, and what is skipped, reads as zeros; a disk that changes its size takes the state along. */
static void machine_state_moves(void **state)
{
	uint8_t zeros[1000] = { 0 }, have[1000];

	(void)state;
	for (unsigned i = 0; i < NR_FLAVOUR - 1; i++) { /* not version 2 */
		struct img *img = make(flavours[i], SIZE);

		write_pattern(img, 0, SIZE, 1);
		put_vm(img, MAX_VM, 20);
		assert_ok(img_vmstate_resize(img, 500, ERR));
		assert_ok(img_vmstate_write(img, "x", 1, 2 * MIB, ERR));
		assert_ok(img_vmstate_read(img, NULL, have, 1000, 500, ERR));
		assert_memory_equal(have, zeros, 1000);
		assert_ok(img_vmstate_read(img, NULL, have, 1000, MIB, ERR));
		assert_memory_equal(have, zeros, 1000);
		put_vm(img, MAX_VM, 21);
		assert_ok(img_resize(img, 3 * SIZE, 0, ERR));
		assert_vm(img, NULL, MAX_VM, 21);
		assert_ok(img_pread(img, have, 1000, SIZE, 0, ERR));
		assert_memory_equal(have, zeros, 1000);
		assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
		assert_ok(img_resize(img, SIZE / 2, IMG_RESIZE_SHRINK, ERR));
		assert_vm(img, NULL, MAX_VM, 21);
		assert_sound(img);
		img = again(img);
		assert_vm(img, "s", MAX_VM, 21);
		assert_ok(img_snapshot_revert(img, "s", ERR));
		assert_int_equal(img_size(img), 3 * SIZE);
		assert_vm(img, NULL, MAX_VM, 21);
		assert_sound(img);
		close_image(img);
	}
}

static void views(void **state)
{
	struct img *img = make(NULL, SIZE), *one, *two;
	uint8_t *content;

	(void)state;
	write_pattern(img, 0, SIZE, 1);
	content = read_all(img);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	assert_ok(img_snapshot_open(img, "s", &one, ERR));
	assert_ok(img_snapshot_open(img, "1", &two, ERR));
	write_pattern(img, 0, SIZE, 2);
	assert_int_equal(img_snapshot_delete(img, "s", NULL), IMG_E_BUSY);
	assert_ok(img_snapshot_rename(img, "s", "t", ERR));
	assert_ok(img_snapshot_create(img, "u", 0, ERR));
	assert_ok(img_snapshot_delete(img, "u", ERR));
	close_image(one);
	assert_int_equal(img_snapshot_delete(img, "t", NULL), IMG_E_BUSY);
	assert_content(two, content, SIZE);
	assert_int_equal(img_pwrite(two, content, 512, 0, 0, NULL), IMG_E_READONLY);
	assert_ok(img_snapshot_revert(img, "t", ERR));
	assert_content(two, content, SIZE);
	close_image(two);
	assert_ok(img_snapshot_delete(img, "t", ERR));
	assert_content(img, content, SIZE);
	assert_sound(img);
	close_image(img);
	free(content);
}

/* ---- several threads ----------------------------------------------------------------------------------------------- */

struct writer {
	struct img *img;
	uint64_t off, bytes;
	atomic_bool *stop;
	unsigned rounds;
};

/* Each block holds one byte value, the round it was written in. */
static void *keep_writing(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[4096];

	for (unsigned round = 1; !atomic_load(w->stop); round++) {
		memset(buf, (int)((round - 1) % 250 + 1), sizeof(buf));
		for (uint64_t off = w->off; off < w->off + w->bytes; off += sizeof(buf))
			if (img_pwrite(w->img, buf, sizeof(buf), off, 0, NULL) != 0)
				return "a write failed";
		w->rounds = round;
	}
	return NULL;
}

/* Ascending blocks are written in ascending order: a snapshot holds a front of one round and a rest of the one before. */
static void assert_one_moment(struct img *view, uint64_t from, uint64_t bytes)
{
	uint8_t buf[4096], first = 0;
	bool fell = false;

	for (uint64_t off = from; off < from + bytes; off += sizeof(buf)) {
		assert_ok(img_pread(view, buf, sizeof(buf), off, 0, ERR));
		for (unsigned i = 1; i < sizeof(buf); i++)
			assert_int_equal(buf[i], buf[0]);
		if (off == from)
			first = buf[0];
		if (buf[0] == first) {
			assert_false(fell);
			continue;
		}
		fell = true;
		assert_true(buf[0] + 1 == first || (first == 1 && (buf[0] == 250 || buf[0] == 0)));
	}
}

static void beside_writers(void **state)
{
	enum { THREADS = 3 };
	struct img *img = make("cluster_size=8192", SIZE), *view;
	struct writer writer[THREADS];
	pthread_t thread[THREADS];
	atomic_bool stop = false;
	char name[16];

	(void)state;
	for (unsigned i = 0; i < THREADS; i++) {
		writer[i] = (struct writer){ img, i * MIB, MIB, &stop, 0 };
		assert_int_equal(pthread_create(&thread[i], NULL, keep_writing, &writer[i]), 0);
	}
	for (unsigned i = 0; i < 15; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		assert_ok(img_snapshot_create(img, name, 0, ERR));
		assert_ok(img_snapshot_open(img, name, &view, ERR));
		for (unsigned t = 0; t < THREADS; t++)
			assert_one_moment(view, t * MIB, MIB);
		close_image(view);
		if (i % 5 == 4)
			assert_sound(img);
		if (i >= 5) {
			snprintf(name, sizeof(name), "s%u", i - 5);
			assert_ok(img_snapshot_delete(img, name, ERR));
		}
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < THREADS; i++) {
		void *why;

		pthread_join(thread[i], &why);
		assert_null(why);
		assert_true(writer[i].rounds > 0);
	}
	assert_sound(img);
	img = again(img);
	assert_sound(img);
	close_image(img);
}

/* ---- differences --------------------------------------------------------------------------------------------------- */

struct seen {
	uint8_t kind[SIZE / 512];
	uint64_t end;
};

static int note(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	struct seen *s = ctx;

	assert_true(off >= s->end);
	assert_true(bytes > 0 && off + bytes <= SIZE);
	s->end = off + bytes;
	memset(s->kind + off / 512, (int)kind, bytes / 512);
	return 0;
}

/* Every block that reads otherwise is named, with the right kind; none that nobody wrote to. */
static void differences(void **state)
{
	(void)state;
	for (unsigned i = 0; i < NR_FLAVOUR; i++) {
		struct img *img = make(flavours[i], SIZE), *view;
		struct seen seen = { .end = 0 };
		uint8_t *before, *after;

		write_pattern(img, 0, 2 * MIB, 1);
		assert_ok(img_snapshot_create(img, "a", 0, ERR));
		write_pattern(img, 100 * 1024, 5000, 2);
		write_pattern(img, 3 * MIB, 70000, 3);
		assert_ok(img_zero(img, 256 * 1024, MIB, 0, ERR));
		assert_ok(img_snapshot_open(img, "a", &view, ERR));
		before = read_all(view);
		after = read_all(img);
		close_image(view);
		assert_ok(img_snapshot_diff(img, "a", NULL, note, &seen, ERR));
		for (uint64_t k = 0; k < SIZE / 512; k++) {
			bool zero = true;

			for (unsigned j = 0; j < 512; j++)
				zero = zero && after[k * 512 + j] == 0;
			if (memcmp(before + k * 512, after + k * 512, 512) != 0)
				assert_int_equal(seen.kind[k], zero ? IMG_DIFF_ZERO : IMG_DIFF_DATA);
		}
		assert_int_equal(seen.kind[0], 0);
		assert_int_equal(seen.kind[SIZE / 512 - 1], 0);
		seen = (struct seen){ .end = 0 };
		assert_ok(img_snapshot_create(img, "b", 0, ERR));
		assert_ok(img_snapshot_diff(img, "b", NULL, note, &seen, ERR));
		assert_int_equal(seen.end, 0);
		assert_ok(img_snapshot_diff(img, NULL, "a", note, &seen, ERR));
		assert_int_equal(seen.end, 2 * MIB);
		free(before);
		free(after);
		close_image(img);
	}
}

/* Metadata is not encrypted; nothing of the content comes out, whoever asks for it. */
static void encrypted(void **state)
{
	const uint8_t luks[4] = { 0, 0, 0, 2 };
	struct img *img = make(NULL, SIZE), *view;
	uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct img_open_options open_it = { .struct_size = sizeof(open_it) };
	struct img_extent ext;
	struct img_info info;
	uint64_t bytes;
	size_t nr;
	int fd;

	(void)state;
	assert_true(page != MAP_FAILED);
	write_pattern(img, 0, 8192, 1);
	assert_ok(img_vmstate_write(img, page, 4096, 0, ERR));
	assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
	close_image(img);
	fd = open(in_dir("a"), O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, luks, sizeof(luks), 32), sizeof(luks));
	close(fd);
	assert_int_equal(img_open(in_dir("a"), &open_it, &img, NULL), IMG_E_UNSUPPORTED);
	open_it.flags = IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING;
	assert_int_equal(img_open(in_dir("a"), &open_it, &img, NULL), IMG_E_UNSUPPORTED);
	open_it.flags = IMG_OPEN_NO_BACKING;
	assert_ok(img_open(in_dir("a"), &open_it, &img, ERR));
	assert_ok(img_info(img, &info, ERR));
	assert_true(info.encrypted);
	assert_int_equal(info.nr_snapshots, 1);
	assert_ok(img_vmstate_size(img, "s", &bytes, ERR));
	assert_int_equal(bytes, 4096);
	assert_int_equal(img_pread(img, page, 512, 0, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_extents(img, 4096, 0, 0, &ext, 1, &nr, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_vmstate_read(img, "s", page, 512, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_vmstate_load(img, "s", page, 4096, 0, IMG_VMSTATE_MAP, NULL), IMG_E_UNSUPPORTED);
	assert_ok(img_snapshot_open(img, "s", &view, ERR));
	assert_int_equal(img_pread(view, page, 512, 0, 0, NULL), IMG_E_UNSUPPORTED);
	close_image(view);
	close_image(img);
	munmap(page, 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(machine_state, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(machine_state_moves, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(views, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(beside_writers, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(differences, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(encrypted, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
