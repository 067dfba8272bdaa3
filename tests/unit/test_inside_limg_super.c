/* SPDX-License-Identifier: MIT */
/*
 * limg's superblocks: every field that decoding checks, wrong by itself under a right checksum, and which of the four
 * copies is taken.
 */
#include "inside.h"

#include "engine.h"

static struct super good(void)
{
	struct super sb = {
		.generation = 4,
		.block_shift = 12,
		.unit_shift = 17,
		.codec = CODEC_ZSTD,
		.file_bytes = 1024 * AU_BYTES,
		.epoch = 3,
		.head_parent = 1,
		.next_id = 2,
		.nr_slots = 1,
		.salt = 5,
		.ring_addr = 300,
		.ring_aus = 4,
		.ring_seq = 1,
		.nr_groups = 1,
		.used_aus = 400,
	};

	memset(sb.uuid, 7, sizeof(sb.uuid));
	sb.disk.size_bytes = 4 * MIB;
	sb.disk.levels = 1;
	sb.disk.root = (struct ptr){ .word = word_make(500, 2, ST_NODE), .csum = 9, .count = 3 };
	sb.vm.root.word = word_make(0, 1, ST_ZERO);
	sb.vm.root.logical[0] = 1;
	sb.catalog.size_bytes = AU_BYTES;
	return sb;
}

static struct super with_backing(void)
{
	struct super sb = good();

	sb.has_backing = true;
	strcpy(sb.backing.name, "base.img");
	strcpy(sb.backing.format, "limg");
	strcpy(sb.backing.snapshot, "monday");
	sb.backing.pin.kind = PIN_STRONG;
	return sb;
}

static void refit(uint8_t *page)
{
	xxh128_store(page, offsetof(struct disk_super, csum), page + offsetof(struct disk_super, csum));
}

/* ---- one wrong field --------------------------------------------------------------------------------------------- */

struct wrong {
	size_t at;
	unsigned bytes;
	uint64_t value;
	int code;
	const char *words;
};
#define F(field)    offsetof(struct disk_super, field), sizeof(((struct disk_super *)0)->field)
#define BYTE(field) offsetof(struct disk_super, field), 1

static void put(uint8_t *page, const struct wrong *w)
{
	for (unsigned i = 0; i < w->bytes; i++)
		page[w->at + i] = (uint8_t)(w->value >> (8 * i));
}

static void decode_each(const struct super *sb, const struct wrong *list, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		uint8_t page[AU_BYTES];
		struct super out;

		super_encode(sb, page);
		put(page, &list[i]);
		refit(page);
		if (list[i].code)
			assert_fails(super_decode(page, &out, ERR), list[i].code, list[i].words);
		else
			assert_ok(super_decode(page, &out, ERR));
	}
}

static void test_fields(void **state)
{
	static const struct wrong list[] = {
		{ BYTE(magic), 'l', IMG_E_FORMAT, "magic" },
		{ F(version), 2, IMG_E_UNSUPPORTED, "version" },
		{ F(header_bytes), 512, IMG_E_UNSUPPORTED, "version" },
		{ F(incompat), 1, IMG_E_UNSUPPORTED, "incompatible" },
		{ F(zero), 1, IMG_E_CORRUPT, "LIMG-2" },
		{ BYTE(zero2), 1, IMG_E_CORRUPT, "LIMG-2" },
		{ BYTE(zero3), 1, IMG_E_CORRUPT, "LIMG-2" },
		{ F(block_shift), 14, 0, "" },
		{ F(block_shift), 16, 0, "" },
		{ F(block_shift), 17, IMG_E_CORRUPT, "block_shift" },
		{ F(unit_shift), 15, IMG_E_CORRUPT, "unit_shift" },
		{ F(unit_shift), 21, IMG_E_CORRUPT, "unit_shift" },
		{ F(codec), CODEC_NONE, 0, "" },
		{ F(codec), CODEC_DEFLATE, 0, "" },
		{ F(codec), 1, IMG_E_CORRUPT, "codec" },
		{ F(generation), 0, IMG_E_CORRUPT, "out of range" },
		{ F(epoch), 0, IMG_E_CORRUPT, "out of range" },
		{ F(epoch), MAX_EPOCH + 1, IMG_E_CORRUPT, "out of range" },
		{ F(next_id), 0, IMG_E_CORRUPT, "out of range" },
		{ F(generation), UINT64_MAX, IMG_E_CORRUPT, "out of range" },
		{ F(next_id), UINT64_MAX, IMG_E_CORRUPT, "out of range" },
		{ F(ring_seq), UINT64_MAX, IMG_E_CORRUPT, "out of range" },
		{ F(head_parent), 2, IMG_E_CORRUPT, "out of range" },
		{ F(nr_slots), MAX_SNAPSHOTS + 2, IMG_E_CORRUPT, "out of range" },
		{ F(nr_slots), 9, IMG_E_CORRUPT, "sizes" },
		{ F(file_bytes), AU_BYTES, IMG_E_CORRUPT, "LIMG-3" },
		{ F(file_bytes), 1024 * AU_BYTES + 1, IMG_E_CORRUPT, "LIMG-3" },
		{ F(file_bytes), UINT64_C(1) << 51, IMG_E_CORRUPT, "LIMG-3" },
		{ F(nr_groups), 2, IMG_E_CORRUPT, "LIMG-10" },
		{ F(ring_aus), MAX_RING_AUS + 1, IMG_E_CORRUPT, "LIMG-16" },
		{ F(ring_aus), 1, IMG_E_CORRUPT, "LIMG-16" },
		{ F(ring_aus), 0, 0, "" },
		{ F(ring_addr), 1021, IMG_E_CORRUPT, "LIMG-16" },
		{ F(ring_tail), 512, IMG_E_CORRUPT, "LIMG-16" },
		{ F(ring_tail), 4 * AU_BYTES, IMG_E_CORRUPT, "LIMG-16" },
		{ F(ring_seq), 0, IMG_E_CORRUPT, "LIMG-16" },
		{ BYTE(backing), 1, IMG_E_CORRUPT, "LIMG-14" }, /* a flag, and nothing behind it */
		{ BYTE(backing.name), 1, IMG_E_CORRUPT, "LIMG-14" },
	};
	struct super sb = good();

	(void)state;
	decode_each(&sb, list, ARRAY_LEN(list));
}

static void test_volumes(void **state)
{
	static const struct wrong list[] = {
		{ BYTE(disk.zero), 1, IMG_E_CORRUPT, "LIMG-2" },
		{ F(disk.size), MAX_VOLUME_BYTES + 512, IMG_E_CORRUPT, "larger" },
		{ F(disk.levels), MAX_LEVELS + 1, IMG_E_CORRUPT, "levels" },
		{ F(disk.levels), 0, IMG_E_CORRUPT, "levels" },
		{ F(disk.size), 4 * 1024 * 1024 - 1, IMG_E_CORRUPT, "sizes" },
		{ BYTE(vm.zero), 1, IMG_E_CORRUPT, "LIMG-2" },
		{ BYTE(catalog.zero), 1, IMG_E_CORRUPT, "LIMG-2" },
		/* a node without a place, or without a birth; a state that there is not */
		{ F(disk.root.word), UINT64_C(2) << 60 | UINT64_C(1) << 38, IMG_E_CORRUPT, "LIMG-5" },
		{ F(disk.root.word), UINT64_C(2) << 60 | 500, IMG_E_CORRUPT, "LIMG-5" },
		{ F(disk.root.word), UINT64_C(5) << 60, IMG_E_CORRUPT, "LIMG-5" },
		/* holes: of nothing, and of zeros */
		{ F(disk.root.word), 0, IMG_E_CORRUPT, "LIMG-5" },
		{ F(vm.root.word), UINT64_C(1) << 60 | 500, IMG_E_CORRUPT, "LIMG-5" },
		{ F(vm.root.csum), 1, IMG_E_CORRUPT, "LIMG-5" },
		{ F(vm.root.count), 1, IMG_E_CORRUPT, "LIMG-5" },
		{ BYTE(vm.root.logical), 2, IMG_E_CORRUPT, "LIMG-5" },
		{ offsetof(struct disk_super, vm.root.logical) + 15, 1, 1, IMG_E_CORRUPT, "LIMG-5" },
	};
	struct super sb = good();

	(void)state;
	decode_each(&sb, list, ARRAY_LEN(list));
}

static void test_backing(void **state)
{
	static const struct wrong list[] = {
		{ F(backing.flags), 3, 0, "" },
		{ F(backing.flags), 7, 0, "" },
		{ F(backing.flags), 0, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.flags), 11, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.flags), 1, IMG_E_CORRUPT, "LIMG-14" }, /* names a snapshot all the same */
		{ BYTE(backing.pin), 3, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.name_bytes), 0, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.name_bytes), 7, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.name_bytes), 9, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.name_bytes), 1024, IMG_E_CORRUPT, "LIMG-14" },
		{ F(backing.snapshot_bytes), 5, IMG_E_CORRUPT, "LIMG-14" },
		{ BYTE(backing.format), 0, IMG_E_CORRUPT, "LIMG-14" },
		{ offsetof(struct disk_super, backing.format) + 15, 1, 'x', IMG_E_CORRUPT, "LIMG-14" },
	};
	struct super sb = with_backing();

	(void)state;
	decode_each(&sb, list, ARRAY_LEN(list));
	strcpy(sb.backing.format, "fifteen-letters");
	decode_each(&sb, list, 1);
	sb.backing.snapshot[0] = '\0';
	decode_each(&sb, &(struct wrong){ F(backing.flags), 3, IMG_E_CORRUPT, "LIMG-14" }, 1);
}

static void test_format_without_end(void **state)
{
	struct super sb = with_backing(), out;
	uint8_t page[AU_BYTES];

	(void)state;
	super_encode(&sb, page);
	memset(page + offsetof(struct disk_super, backing.format), 'x', 16);
	refit(page);
	assert_fails(super_decode(page, &out, ERR), IMG_E_CORRUPT, "LIMG-14");
}

static void test_checksum(void **state)
{
	struct super sb = good(), out;
	uint8_t page[AU_BYTES];

	(void)state;
	super_encode(&sb, page);
	page[4095] ^= 1;
	assert_fails(super_decode(page, &out, ERR), IMG_E_CORRUPT, "checksum");
	assert_int_equal(super_decode(page, &out, NULL), IMG_E_CORRUPT);
}

/* ---- four copies ------------------------------------------------------------------------------------------------- */

/* A file with the copies of these generations in the slots of place A and B; 0: blank. */
static struct node *file_with(const uint64_t gen[4])
{
	struct node *file;

	assert_ok(mem_node_new("f", &file, ERR));
	assert_ok(node_resize(file, 1024 * AU_BYTES, ERR));
	for (unsigned i = 0; i < 4; i++) {
		struct super sb = good();
		uint8_t page[AU_BYTES];

		sb.generation = gen[i];
		super_encode(&sb, page);
		if (gen[i])
			assert_ok(node_pwrite(file, page, AU_BYTES, au_off(super_slot_au(i >> 1, i & 1)), 0, ERR));
	}
	return file;
}

static void write_copy(struct node *file, unsigned copy, const struct wrong *w)
{
	uint64_t off = au_off(super_slot_au(copy >> 1, copy & 1));
	uint8_t page[AU_BYTES];

	assert_ok(node_pread(file, page, AU_BYTES, off, 0, ERR));
	put(page, w);
	refit(page);
	assert_ok(node_pwrite(file, page, AU_BYTES, off, 0, ERR));
}

static void test_which_copy(void **state)
{
	struct node *file = file_with((const uint64_t[4]){ 4, 3, 2, 5 });
	struct super sb;
	unsigned damaged;

	(void)state;
	assert_ok(super_read(file, &sb, &damaged, ERR));
	assert_int_equal(sb.generation, 5);
	assert_int_equal(damaged, 0);
	node_close(file, NULL);

	/* In the slot of the other parity: not where a writer puts it. */
	file = file_with((const uint64_t[4]){ 4, 8, 0, 0 });
	assert_ok(super_read(file, &sb, &damaged, ERR));
	assert_int_equal(sb.generation, 4);
	assert_int_equal(damaged, 2);
	node_close(file, NULL);

	/* Nothing but that: no failure of a copy to tell of. */
	file = file_with((const uint64_t[4]){ 5, 8, 7, 2 });
	assert_fails(super_read(file, &sb, &damaged, ERR), IMG_E_CORRUPT, "no valid superblock");
	assert_int_equal(super_read(file, &sb, &damaged, NULL), IMG_E_CORRUPT);
	node_close(file, NULL);
}

static void test_no_copy(void **state)
{
	struct node *file = file_with((const uint64_t[4]){ 0, 3, 0, 0 });
	struct super sb;
	unsigned damaged;

	(void)state;
	/* Of several reasons the one that says more than that nothing is there. */
	write_copy(file, 1, &(struct wrong){ F(epoch), 0, 0, "" });
	assert_fails(super_read(file, &sb, &damaged, ERR), IMG_E_CORRUPT, "out of range");
	assert_int_equal(super_read(file, &sb, &damaged, NULL), IMG_E_CORRUPT);
	node_close(file, NULL);
	file = file_with((const uint64_t[4]){ 4, 3, 4, 3 });
	/* One copy of a later format: an older slot beside it is not the image. */
	write_copy(file, 0, &(struct wrong){ F(version), 2, 0, "" });
	assert_fails(super_read(file, &sb, &damaged, ERR), IMG_E_UNSUPPORTED, "version 2");
	assert_int_equal(super_read(file, &sb, &damaged, NULL), IMG_E_UNSUPPORTED);
	node_close(file, NULL);
}

static void test_short_file(void **state)
{
	struct node *file = file_with((const uint64_t[4]){ 4, 3, 4, 3 });
	struct super sb;
	unsigned damaged;

	(void)state;
	assert_ok(node_resize(file, 1023 * AU_BYTES, ERR));
	assert_fails(super_read(file, &sb, &damaged, ERR), IMG_E_CORRUPT, "cut short");
	assert_ok(node_resize(file, AU_BYTES, ERR));
	assert_fails(super_read(file, &sb, &damaged, ERR), IMG_E_CORRUPT, "cut short");
	assert_int_equal(damaged, 0xe);
	assert_ok(node_resize(file, 100, ERR));
	assert_fails(super_read(file, &sb, &damaged, ERR), IMG_E_CORRUPT, "the file ends before");
	node_close(file, NULL);
}

static enum super_copy copy_state(struct node *file, uint64_t generation)
{
	struct super sb = good();

	sb.generation = generation;
	return super_copy_state(file, 0, &sb, NULL);
}

static void test_state_of_a_copy(void **state)
{
	struct node *file = file_with((const uint64_t[4]){ 4, 0, 0, 0 });

	(void)state;
	assert_int_equal(copy_state(file, 4), SUPER_COPY_GOOD);
	assert_int_equal(copy_state(file, 6), SUPER_COPY_OLD);
	assert_int_equal(copy_state(file, 2), SUPER_COPY_DAMAGED); /* newer than what is current */
	assert_int_equal(copy_state(file, 1), SUPER_COPY_OLD);	   /* blank, and the slot's first use */
	assert_int_equal(copy_state(file, 3), SUPER_COPY_DAMAGED);
	write_copy(file, 0, &(struct wrong){ BYTE(uuid), 8, 0, "" });
	assert_int_equal(copy_state(file, 6), SUPER_COPY_DAMAGED);
	write_copy(file, 0, &(struct wrong){ F(epoch), 0, 0, "" });
	assert_int_equal(copy_state(file, 2), SUPER_COPY_DAMAGED);
	assert_int_equal(copy_state(file, 6), SUPER_COPY_DAMAGED);
	node_close(file, NULL);
}

static bool other_lost(struct node *file, uint64_t generation, uint64_t *claims)
{
	struct super sb = good();

	sb.generation = generation;
	return super_other_slot_lost(file, &sb, claims);
}

static void test_other_slot(void **state)
{
	struct node *file = file_with((const uint64_t[4]){ 4, 1, 4, 1 });
	uint64_t claims;

	(void)state;
	assert_false(other_lost(file, 1, &claims));
	write_copy(file, 0, &(struct wrong){ F(epoch), 0, 0, "" });
	assert_false(other_lost(file, 1, &claims));
	assert_int_equal(claims, 4);
	write_copy(file, 2, &(struct wrong){ F(epoch), 0, 0, "" });
	assert_true(other_lost(file, 1, &claims));
	assert_int_equal(claims, 4);
	assert_true(other_lost(file, 5, &claims));
	assert_int_equal(claims, 0);
	write_copy(file, 2, &(struct wrong){ BYTE(uuid), 8, 0, "" });
	write_copy(file, 0, &(struct wrong){ BYTE(uuid), 8, 0, "" });
	assert_true(other_lost(file, 1, &claims));
	assert_int_equal(claims, 0);
	node_close(file, NULL);
	file = file_with((const uint64_t[4]){ 0, 1, 0, 1 });
	assert_false(other_lost(file, 1, &claims)); /* not used yet */
	assert_true(other_lost(file, 3, &claims));
	node_close(file, NULL);
}

static void test_mend(void **state)
{
	struct node *file = file_with((const uint64_t[4]){ 4, 3, 2, 3 });
	struct super sb = good();
	bool damaged = false;

	(void)state;
	assert_ok(super_mend(file, &sb, &damaged, ERR));
	assert_false(damaged);
	assert_int_equal(super_copy_state(file, 1, &sb, NULL), SUPER_COPY_GOOD);
	write_copy(file, 0, &(struct wrong){ F(epoch), 0, 0, "" });
	assert_ok(super_mend(file, &sb, &damaged, ERR));
	assert_true(damaged);
	assert_int_equal(super_copy_state(file, 0, &sb, NULL), SUPER_COPY_GOOD);
	node_close(file, NULL);
}

/* ---- a host and memory that fail --------------------------------------------------------------------------------- */

struct attempt {
	struct node *file;
	struct super sb;
};

static int read_mend_write(void *ctx)
{
	struct attempt *a = ctx;
	bool damaged = false;
	unsigned copies;
	uint64_t claims;
	int rc = super_read(a->file, &a->sb, &copies, ERR);

	if (!rc && super_other_slot_lost(a->file, &a->sb, &claims))
		rc = IMG_E_CORRUPT;
	if (!rc)
		rc = super_mend(a->file, &a->sb, &damaged, ERR);
	if (!rc)
		rc = super_write(a->file, &a->sb, ERR);
	return rc;
}

static void make_file(void *ctx)
{
	struct attempt *a = ctx;

	a->file = file_with((const uint64_t[4]){ 4, 3, 2, 3 });
	assert_ok(fault_node_new(a->file, &inside_plan, &a->file, ERR));
}

static void drop_file(void *ctx, int ret)
{
	struct attempt *a = ctx;

	(void)ret;
	node_close(a->file, NULL);
}

static void test_failures(void **state)
{
	struct attempt a;
	struct inside_failures f = { make_file, read_mend_write, drop_file, &a, FAULT_ALL, true };

	(void)state;
	assert_true(inside_fail_each(&f) >= 10);
	f.memory = false;
	assert_true(inside_fail_each(&f) >= 10);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_fields),	  T(test_volumes),    T(test_backing),	  T(test_format_without_end),
		T(test_checksum), T(test_which_copy), T(test_no_copy),	  T(test_short_file),
		T(test_mend),	  T(test_failures),   T(test_other_slot), T(test_state_of_a_copy),
	};

	return cmocka_run_group_tests_name("inside-limg-super", tests, NULL, NULL);
}
