/* SPDX-License-Identifier: MIT */
/* img_convert() of what only the native format has: onto a backing image, and with internal snapshots. */
#include "fault_env.h"

#define SIZE	  (6 * MIB)
#define MAX_SNAPS 24

static struct img_create_options limg_onto(const char *backing, const char *backing_format)
{
	return (struct img_create_options){
		.struct_size = sizeof(struct img_create_options),
		.format = "limg",
		.backing = backing,
		.backing_format = backing_format,
	};
}

static struct img_copy_options with_flags(unsigned flags)
{
	return (struct img_copy_options){ .struct_size = sizeof(struct img_copy_options),
					  .flags = flags,
					  .threads = 3 };
}

/* ---- onto a backing image ---------------------------------------------------------------------------------------- */

static uint64_t own_bytes(struct img *img)
{
	uint64_t bytes = 0;
	struct img_extent ext;
	size_t nr;

	for (uint64_t off = 0; off < img_size(img); off += ext.bytes) {
		assert_ok(img_extents(img, img_size(img) - off, off, IMG_EXTENTS_OWN, &ext, 1, &nr, ERR));
		bytes += ext.flags & (IMG_EXT_DATA | IMG_EXT_ZERO) ? ext.bytes : 0;
	}
	return bytes;
}

/* A copy of the base with a few changes: only those are stored, zeros over data included. */
static void stores_only_the_difference(void **state)
{
	static const char *const formats[] = { "raw", "limg" };

	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		struct img_create_options create = limg_onto("base", formats[i % 2]);
		struct img_copy_options opts = with_flags(i & 4 ? IMG_COPY_COMPRESS : 0);
		uint64_t src_bytes = i & 2 ? SIZE + MIB : SIZE;
		struct img *img, *src;
		uint8_t *content;

		make_image("base", formats[i % 2], SIZE, NULL, NULL);
		img = open_image("base", formats[i % 2], IMG_OPEN_WRITE);
		write_pattern(img, 0, 4 * MIB, i);
		content = read_all(img);
		close_image(img);
		make_image("src", "raw", src_bytes, NULL, NULL);
		src = open_image("src", "raw", IMG_OPEN_WRITE);
		assert_ok(img_pwrite(src, content, SIZE, 0, 0, ERR));
		free(content);
		write_pattern(src, MIB, 4096, 70);
		assert_ok(img_zero(src, 8192, 2 * MIB, 0, ERR));
		write_pattern(src, 5 * MIB, 4096, 71);
		write_pattern(src, src_bytes - 512, 512, 72);
		assert_ok(img_convert(src, in_dir("over"), &create, &opts, ERR));
		content = read_all(src);
		img = open_image("over", "limg", 0);
		assert_non_null(img_backing(img));
		assert_content(img, content, src_bytes);
		assert_int_equal(own_bytes(img), 4096 + 8192 + 4096 + 4096);
		close_image(img);
		close_image(src);
		free(content);
		fixture_files(true);
	}
}

static void random_content_onto_a_base(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		uint64_t base_bytes = i % 4 == 1 ? 2 * SIZE : i % 4 == 2 ? SIZE / 2 + 512 : SIZE;
		struct img_create_options create = limg_onto("base", "limg");
		struct img_copy_options opts = with_flags(i & 4 ? IMG_COPY_COMPRESS : 0);
		struct img *img, *src;
		uint8_t *content;

		make_image("base", "limg", base_bytes, NULL, NULL);
		img = open_image("base", "limg", IMG_OPEN_WRITE);
		scribble(img, 12, 800 * KIB);
		close_image(img);
		make_image("src", "raw", SIZE, NULL, NULL);
		src = open_image("src", "raw", IMG_OPEN_WRITE);
		scribble(src, 12, 800 * KIB);
		assert_ok(img_convert(src, in_dir("over"), &create, &opts, ERR));
		content = read_all(src);
		img = open_image("over", "limg", 0);
		assert_int_equal(img_size(img), SIZE);
		assert_content(img, content, SIZE);
		close_image(img);
		close_image(src);
		free(content);
		fixture_files(true);
	}
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

struct state_model {
	char name[32];
	uint64_t bytes, vm_bytes;
	uint8_t *content, *vm;
};

struct history {
	struct state_model snap[MAX_SNAPS];
	size_t nr;
};

static void save_state(struct history *h, struct img *img, const char *name, uint64_t vm_bytes)
{
	struct state_model *s = &h->snap[h->nr++];

	snprintf(s->name, sizeof(s->name), "%s", name);
	s->bytes = img_size(img);
	s->content = read_all(img);
	s->vm_bytes = vm_bytes;
	s->vm = calloc(1, vm_bytes + 1);
	if (vm_bytes > 0)
		assert_ok(img_vmstate_read(img, NULL, s->vm, vm_bytes, 0, ERR));
}

static void drop_state(struct history *h, size_t i)
{
	free(h->snap[i].content);
	free(h->snap[i].vm);
	h->snap[i] = h->snap[--h->nr];
}

static void free_history(struct history *h)
{
	while (h->nr > 0)
		drop_state(h, 0);
}

/* Writes, snapshots with and without machine state, reverts, deletions and other sizes, in random order. */
static void live_through(struct img *img, struct history *h, unsigned steps)
{
	unsigned next_name = 0;
	uint64_t vm_bytes = 0;

	for (unsigned i = 0; i < steps; i++) {
		size_t which = h->nr ? random_below(h->nr) : 0;
		char name[32];

		switch (random_below(8)) {
		case 0:
			if (h->nr > 0) {
				assert_ok(img_snapshot_revert(img, h->snap[which].name, ERR));
				assert_ok(img_vmstate_size(img, NULL, &vm_bytes, ERR));
			}
			break;
		case 1:
			if (h->nr > 2) {
				assert_ok(img_snapshot_delete(img, h->snap[which].name, ERR));
				drop_state(h, which);
			}
			break;
		case 2: assert_ok(img_resize(img, SIZE - 512 * random_below(4000), IMG_RESIZE_SHRINK, ERR)); break;
		case 3: {
			uint8_t buf[9000];

			pattern(buf, sizeof(buf), i);
			assert_ok(img_vmstate_write(img, buf, sizeof(buf), random_below(2 * MIB), ERR));
			assert_ok(img_vmstate_size(img, NULL, &vm_bytes, ERR));
			break;
		}
		case 4:
		case 5:
			if (h->nr < MAX_SNAPS - 1) {
				bool vm = vm_bytes > 0 && random_below(2);

				snprintf(name, sizeof(name), "s%u", next_name++);
				assert_ok(img_snapshot_create(img, name, vm ? IMG_SNAPSHOT_VMSTATE : 0, ERR));
				save_state(h, img, name, vm ? vm_bytes : 0);
			}
			break;
		default: scribble(img, 3, 300 * KIB);
		}
	}
	save_state(h, img, "", 0); /* the head */
}

static void check_history(const char *name, const struct history *h)
{
	struct img *img = open_image(name, "limg", 0);
	struct img_snapshot list[MAX_SNAPS];
	size_t nr;

	assert_ok(img_snapshot_list(img, list, MAX_SNAPS, &nr, ERR));
	assert_int_equal(nr, h->nr - 1);
	for (size_t i = 0; i < h->nr; i++) {
		const struct state_model *s = &h->snap[i];
		struct img *view = img;
		uint64_t vm_bytes = 0;

		if (s->name[0])
			assert_ok(img_snapshot_open(img, s->name, &view, ERR));
		assert_int_equal(img_size(view), s->bytes);
		assert_content(view, s->content, s->bytes);
		if (s->name[0]) {
			uint8_t *vm = calloc(1, s->vm_bytes + 1);

			close_image(view);
			assert_ok(img_vmstate_size(img, s->name, &vm_bytes, ERR));
			assert_int_equal(vm_bytes, s->vm_bytes);
			if (vm_bytes > 0)
				assert_ok(img_vmstate_read(img, s->name, vm, vm_bytes, 0, ERR));
			assert_memory_equal(vm, s->vm, vm_bytes + 1);
			free(vm);
		}
	}
	close_image(img);
}

static void assert_clean(const char *name)
{
	struct img *img = open_image(name, "limg", IMG_OPEN_NO_BACKING);
	struct img_check_result result;

	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage + result.leaks + result.redundancy, 0);
	close_image(img);
}

static void carries_random_histories(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		struct img_create_options create = limg_onto(NULL, NULL);
		struct img_copy_options opts = with_flags(IMG_COPY_SNAPSHOTS | (i % 3 == 2 ? IMG_COPY_COMPRESS : 0));
		struct history h = { .nr = 0 };
		struct img *src;

		random_state = 1000 + i;
		if (i % 2) { /* over a backing image, which the target then does not need */
			make_image("base", "raw", SIZE - MIB, NULL, NULL);
			src = open_image("base", "raw", IMG_OPEN_WRITE);
			scribble(src, 8, 600 * KIB);
			close_image(src);
		}
		make_image("src", "limg", SIZE, i % 2 ? "base" : NULL, i % 2 ? "raw" : NULL);
		src = open_image("src", "limg", IMG_OPEN_WRITE);
		live_through(src, &h, 50);
		if (i % 4 >= 2) { /* onto another one, which the snapshots may be smaller or larger than */
			struct img *other;

			make_image("other", "limg", i % 8 < 4 ? 2 * SIZE : SIZE / 2, NULL, NULL);
			other = open_image("other", "limg", IMG_OPEN_WRITE);
			write_pattern(other, 0, img_size(other), 3);
			if (img_size(other) >= img_size(src)) /* much is the same, but beyond the end there is more */
				assert_ok(img_copy(src, other, NULL, ERR));
			if (img_size(other) > img_size(src))
				write_pattern(other, img_size(src), img_size(other) - img_size(src), 5);
			write_pattern(other, img_size(other) / 2, 100 * KIB, 4);
			close_image(other);
			create = limg_onto("other", "limg");
		}
		assert_ok(img_convert(src, in_dir("dst"), &create, &opts, ERR));
		close_image(src);
		check_history("src", &h);
		unlink(in_dir("base"));
		assert_clean("dst");
		check_history("dst", &h);
		free_history(&h);
		fixture_files(true);
	}
}

/* The target is made with the head's size and grows for the snapshot: there it does not read as its backing any more. */
static void larger_snapshots_onto_a_base(void **state)
{
	struct img_copy_options opts = with_flags(IMG_COPY_SNAPSHOTS);
	struct img_create_options create = limg_onto("base", "raw");
	struct img *src, *base, *dst, *view;
	uint8_t *content;

	(void)state;
	make_image("base", "raw", 4 * MIB, NULL, NULL);
	base = open_image("base", "raw", IMG_OPEN_WRITE);
	write_pattern(base, 0, 4 * MIB, 8);
	make_image("src", "limg", 4 * MIB, NULL, NULL);
	src = open_image("src", "limg", IMG_OPEN_WRITE);
	assert_ok(img_copy(base, src, NULL, ERR));
	content = read_all(base);
	close_image(base);
	assert_ok(img_snapshot_create(src, "s", 0, ERR));
	assert_ok(img_resize(src, 2 * MIB, IMG_RESIZE_SHRINK, ERR));
	assert_ok(img_convert(src, in_dir("dst"), &create, &opts, ERR));
	close_image(src);
	dst = open_image("dst", "limg", 0);
	assert_int_equal(img_size(dst), 2 * MIB);
	assert_content(dst, content, 2 * MIB);
	assert_ok(img_snapshot_open(dst, "s", &view, ERR));
	assert_int_equal(img_size(view), 4 * MIB);
	assert_content(view, content, 4 * MIB);
	close_image(view);
	close_image(dst);
	free(content);
}

/* Ten snapshots of one disk, a little changed each time, take little more than one; the ancestry is kept. */
static void sharing_and_ancestry_are_kept(void **state)
{
	struct img_copy_options opts = with_flags(IMG_COPY_SNAPSHOTS);
	struct img_create_options create = limg_onto(NULL, NULL);
	struct img_snapshot list[12];
	struct img *img;
	char name[8];
	size_t nr;

	(void)state;
	make_image("src", "limg", 16 * MIB, NULL, NULL);
	img = open_image("src", "limg", IMG_OPEN_WRITE);
	write_pattern(img, 0, 12 * MIB, 9);
	for (unsigned i = 0; i < 10; i++) {
		write_pattern(img, i * MIB, 8192, 100 + i);
		snprintf(name, sizeof(name), "s%u", i);
		assert_ok(img_snapshot_create(img, name, 0, ERR));
		if (i == 4)
			assert_ok(img_snapshot_revert(img, "s2", ERR)); /* s5 grows from s2 */
	}
	assert_ok(img_snapshot_revert(img, "s3", ERR));
	write_pattern(img, 0, 100, 1);
	assert_ok(img_convert(img, in_dir("dst"), &create, &opts, ERR));
	close_image(img);
	assert_true(allocated_bytes("dst") < 14 * MIB);
	img = open_image("dst", "limg", 0);
	assert_ok(img_snapshot_list(img, list, 12, &nr, ERR));
	assert_int_equal(nr, 10);
	for (unsigned i = 0; i < 10; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		assert_string_equal(list[i].name, name);
		assert_int_equal(list[i].parent, i == 0 ? 0 : i == 5 ? list[2].id : list[i - 1].id);
	}
	close_image(img);
	assert_clean("dst");
}

/* ---- machine state ----------------------------------------------------------------------------------------------- */

#define STATE (40 * MIB + 16 * KIB)

/* Little data in a large state, a third of it written as zeros, and only one page that changes from one to the next. */
static void make_states(struct img *src, uint8_t *truth[3])
{
	static uint8_t page[4 * KIB];
	char name[] = "s0";

	for (unsigned i = 0; i < 3; i++) {
		truth[i] = calloc(1, STATE);
		assert_non_null(truth[i]);
		if (i > 0)
			memcpy(truth[i], truth[i - 1], STATE);
		for (uint64_t off = 0; off < STATE && i == 0; off += 4 * MIB)
			memset(truth[i] + off, 1 + (int)(off / MIB), 5000);
		memset(truth[i] + (10 + i) * MIB, 200 + (int)i, sizeof(page));
		if (i == 2)
			memset(truth[i] + 8 * MIB, 0, 5000);
		for (uint64_t off = 0; off < STATE; off += sizeof(page)) {
			if (off / MIB % 3 == 0 || memcmp(truth[i] + off, page, sizeof(page)) != 0)
				assert_ok(img_vmstate_write(src, truth[i] + off, sizeof(page), off, ERR));
		}
		assert_ok(img_vmstate_zero(src, 4 * KIB, STATE - 4 * KIB, ERR));
		if (i == 2)
			assert_ok(img_vmstate_zero(src, 2 * MIB, 7 * MIB, ERR));
		name[1] = (char)('0' + i);
		assert_ok(img_snapshot_create(src, name, IMG_SNAPSHOT_VMSTATE, ERR));
	}
}

/* States share in the copy what they have in common, and their zeros take no space. */
static void machine_states_stay_sparse(void **state)
{
	static const struct {
		const char *format, *options;
		uint64_t most;
	} kinds[] = {
		{ "limg", NULL, 2 * MIB },
		{ "limg", "block_size=64K", 4 * MIB },
		{ "qcow2", NULL, 3 * MIB },
		{ "qcow2", "cluster_size=4096", 2 * MIB },
		{ "qcow2", "cluster_size=2M", 60 * MIB },
	};

	(void)state;
	for (unsigned k = 0; k < 2 * sizeof(kinds) / sizeof(kinds[0]); k++) {
		struct img_copy_options opts = with_flags(IMG_COPY_SNAPSHOTS);
		struct img_create_options create = {
			.struct_size = sizeof(create),
			.format = kinds[k / 2].format,
			.options = kinds[k / 2].options,
		};
		const char *format = k % 2 ? "qcow2" : "limg";
		uint8_t *truth[3], *have = malloc(STATE);
		struct img_check_result check;
		struct img *img;
		char name[] = "s0";

		assert_non_null(have);
		make_image("src", format, MIB, NULL, NULL);
		img = open_image("src", format, IMG_OPEN_WRITE);
		make_states(img, truth);
		assert_ok(img_convert(img, in_dir("dst"), &create, &opts, ERR));
		close_image(img);
		if (allocated_bytes("dst") > kinds[k / 2].most)
			fail_msg("kind %u: %llu bytes", k, (unsigned long long)allocated_bytes("dst"));
		img = open_image("dst", kinds[k / 2].format, 0);
		for (unsigned i = 0; i < 3; i++) {
			uint64_t bytes;

			name[1] = (char)('0' + i);
			assert_ok(img_vmstate_size(img, name, &bytes, ERR));
			assert_int_equal(bytes, STATE);
			assert_ok(img_vmstate_read(img, name, have, STATE, 0, ERR));
			assert_memory_equal(have, truth[i], STATE);
			free(truth[i]);
		}
		assert_ok(img_check(img, 0, NULL, NULL, NULL, &check, ERR));
		assert_int_equal(check.damage + check.leaks, 0);
		close_image(img);
		free(have);
		fixture_files(true);
	}
}

static void snapshots_need_a_format_that_has_them(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw" };
	struct img_copy_options opts = with_flags(IMG_COPY_SNAPSHOTS);
	struct img *img, *view;

	(void)state;
	make_image("src", "limg", SIZE, NULL, NULL);
	img = open_image("src", "limg", IMG_OPEN_WRITE);
	assert_ok(img_convert(img, in_dir("none"), &create, &opts, ERR)); /* there are none to lose */
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	assert_int_equal(img_convert(img, in_dir("dst"), &create, &opts, ERR), IMG_E_UNSUPPORTED);
	assert_ok(img_snapshot_open(img, "s", &view, ERR));
	assert_ok(img_convert(view, in_dir("dst"), &create, NULL, ERR));
	close_image(view);
	close_image(img);
	assert_int_equal(fixture_files(false), 3);
}

/* ---- what is left behind ----------------------------------------------------------------------------------------- */

struct heard {
	unsigned kinds; /* bits */
	uint64_t nr[32];
};

static void hear(void *ctx, const struct img_left *left)
{
	struct heard *h = ctx;

	assert_in_range(left->kind, IMG_LEFT_SNAPSHOTS, IMG_LEFT_COMPRESSION);
	assert_false(h->kinds & 1u << left->kind);
	assert_true(left->name && left->name[0] && left->msg[0]);
	assert_int_equal(left->is_content, left->kind <= IMG_LEFT_EXTENDED);
	h->kinds |= 1u << left->kind;
	h->nr[left->kind] = left->nr;
}

static struct heard heard_of(struct img *src, const char *name, const char *format, unsigned flags, int want)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = format };
	struct img_copy_options opts = with_flags(flags);
	unsigned nr = fixture_files(false);
	struct heard heard = { .kinds = 0 };

	opts.left_behind = hear;
	opts.left_behind_ctx = &heard;
	assert_int_equal(img_convert(src, in_dir(name), &create, &opts, ERR), want);
	assert_int_equal(fixture_files(false), nr + (want == 0));
	return heard;
}

static void tells_what_is_left_behind(void **state)
{
	const unsigned snapshots = 1u << IMG_LEFT_SNAPSHOTS, size = 1u << IMG_LEFT_VIRTUAL_SIZE,
		       machine = 1u << IMG_LEFT_MACHINE_STATE, packed = 1u << IMG_LEFT_COMPRESSION;
	static uint8_t sevens[65536];
	struct heard heard;
	struct img *src;

	(void)state;
	memset(sevens, 7, sizeof(sevens));
	make_image("src", "limg", SIZE, NULL, NULL);
	src = open_image("src", "limg", IMG_OPEN_WRITE);
	assert_int_equal(heard_of(src, "a", "raw", IMG_COPY_STRICT_ALL, 0).kinds, 0);
	assert_ok(img_snapshot_create(src, "one", 0, ERR));
	assert_ok(img_snapshot_create(src, "two", 0, ERR));
	heard = heard_of(src, "b", "raw", 0, 0);
	assert_int_equal(heard.kinds, snapshots);
	assert_int_equal(heard.nr[IMG_LEFT_SNAPSHOTS], 2);
	assert_int_equal(heard_of(src, "c", "limg", IMG_COPY_STRICT, IMG_E_REFUSED).kinds, snapshots);
	assert_non_null(strstr(ERR->msg, "snapshots"));
	assert_int_equal(heard_of(src, "c", "limg", IMG_COPY_STRICT_ALL | IMG_COPY_SNAPSHOTS, 0).kinds, 0);
	assert_ok(img_vmstate_write(src, "state", 5, 0, ERR));
	heard = heard_of(src, "d", "qcow2", 0, 0);
	assert_int_equal(heard.kinds, snapshots | machine);
	assert_int_equal(heard.nr[IMG_LEFT_MACHINE_STATE], 5);
	assert_int_equal(heard_of(src, "e", "qcow2", IMG_COPY_SNAPSHOTS, 0).kinds, 0);
	close_image(src);
	src = open_image("d", "qcow2", IMG_OPEN_WRITE);
	assert_ok(img_pwrite(src, sevens, sizeof(sevens), 65536, IMG_IO_COMPRESS, ERR));
	assert_int_equal(heard_of(src, "f", "vdi", 0, 0).kinds, packed);
	assert_int_equal(heard_of(src, "g", "qcow2", IMG_COPY_COMPRESS, 0).kinds, 0);
	close_image(src);
	assert_int_equal(truncate(in_dir("b"), SIZE + 1), 0);
	src = open_image("b", "raw", 0);
	heard = heard_of(src, "h", "limg", 0, 0);
	assert_int_equal(heard.kinds, size);
	assert_int_equal(heard.nr[IMG_LEFT_VIRTUAL_SIZE], 511);
	assert_int_equal(heard_of(src, "i", "limg", IMG_COPY_STRICT, IMG_E_REFUSED).kinds, size);
	close_image(src);
}

/* What a format was asked before the copy and said no to is not what the copy fails of. */
static void the_first_failure_is_told(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "vmdk" };
	struct img *src;

	(void)state;
	if (!registry_find("vmdk"))
		skip();
	make_image("src", "limg", SIZE, NULL, NULL);
	make_image("dst", "limg", SIZE, NULL, NULL);
	src = open_image("src", "limg", 0);
	assert_int_equal(img_convert(src, in_dir("dst"), &create, NULL, ERR), IMG_E_EXISTS);
	assert_int_equal(ERR->code, IMG_E_EXISTS);
	assert_non_null(strstr(ERR->msg, "exists"));
	create.format = "raw";
	create.options = "preallocation=full";
	assert_int_equal(img_convert(src, in_dir("dst"), &create, NULL, ERR), IMG_E_EXISTS);
	assert_int_equal(ERR->code, IMG_E_EXISTS);
	close_image(src);
}

static void every_call_may_fail(void **state)
{
	struct heard heard = { .kinds = 0 };
	struct img_copy_options opts = with_flags(IMG_COPY_SNAPSHOTS);
	struct img_create_options create = limg_onto(NULL, NULL);
	struct history h = { .nr = 0 };
	struct img *src;
	unsigned failed = 0;

	(void)state;
	opts.left_behind = hear;
	opts.left_behind_ctx = &heard;
	random_state = 77;
	make_image("src", "limg", SIZE, NULL, NULL);
	src = open_image("src", "limg", IMG_OPEN_WRITE);
	live_through(src, &h, 20);
	close_image(src);
	for (uint64_t n = 1;; n = next_call(n)) {
		int r;

		heard.kinds = 0;
		src = open_faulty("src", "limg", 0);
		fault_plan_arm(&fault_env_plan, FAULT_ALL, n, EIO, true);
		r = image_convert_env(src, in_dir("dst"), &create, &opts, &fault_env, ERR);
		fault_plan_disarm(&fault_env_plan);
		assert_int_equal(r, ERR->code);
		close_image(src);
		if (r == 0)
			break;
		failed++;
		assert_int_equal(fixture_files(false), 1);
	}
	assert_true(failed > 20);
	check_history("dst", &h);
	free_history(&h);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(stores_only_the_difference),
		T(random_content_onto_a_base),
		T(carries_random_histories),
		T(larger_snapshots_onto_a_base),
		T(sharing_and_ancestry_are_kept),
		T(machine_states_stay_sparse),
		T(snapshots_need_a_format_that_has_them),
		T(tells_what_is_left_behind),
		T(the_first_failure_is_told),
		cmocka_unit_test_setup_teardown(every_call_may_fail, fault_env_setup, fault_env_teardown),
	};

	return cmocka_run_group_tests_name("convert", tests, NULL, NULL);
}
