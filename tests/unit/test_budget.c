/* SPDX-License-Identifier: MIT */
/* Budgets: each limit refuses one more than it allows, names itself, and passes what it allows; the defaults pass all
 * of it. */
#include "budget.h"
#include "image_fixture.h"

#define GIB (UINT64_C(1) << 30)

static struct img_budget budget_of(void)
{
	return (struct img_budget){ .struct_size = sizeof(struct img_budget) };
}

static int try_open(const char *name, const struct img_open_options *how)
{
	struct img_open_options o = how ? *how : (struct img_open_options){ 0 };
	struct img *img;
	int ret;

	o.struct_size = sizeof(o);
	memset(ERR, 0, sizeof(*ERR));
	ret = img_open(in_dir(name), &o, &img, ERR);
	if (ret == 0)
		close_image(img);
	return ret;
}

/* Refused, with a message that names the option and the value that would do. */
static void assert_limit(int ret, const char *option)
{
	assert_int_equal(ret, IMG_E_LIMIT);
	if (!strstr(ERR->msg, option))
		fail_msg("'%s' is not in: %s", option, ERR->msg);
}

static void test_virtual_size(void **state)
{
	(void)state;
	make_image("a", "limg", MIB, NULL, NULL);
	assert_ok(try_open("a", NULL));
	assert_ok(try_open("a", &(struct img_open_options){ .max_virtual_bytes = MIB }));
	assert_limit(try_open("a", &(struct img_open_options){ .max_virtual_bytes = MIB - 1 }),
		     "limit of 1048575; --limit virtual-size=1048576");
}

static void test_depth_and_references(void **state)
{
	struct img_budget b = budget_of();
	const struct img_open_options how = { .budget = &b };

	(void)state;
	make_image("base", "limg", MIB, NULL, NULL);
	make_image("b", "limg", MIB, "base", NULL);
	make_image("c", "qcow2", MIB, "b", "limg");
	assert_ok(try_open("c", NULL));
	assert_ok(try_open("c", &(struct img_open_options){ .max_depth = 3 }));
	assert_limit(try_open("c", &(struct img_open_options){ .max_depth = 2 }), "limit of 2; --limit depth=3");
	b.references = 2;
	assert_ok(try_open("c", &how));
	b.references = 1;
	assert_limit(try_open("c", &how), "limit of 1; --limit references=2");
}

/* A data file is a reference like any other. */
static void test_data_file_is_a_reference(void **state)
{
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "qcow2", .size_bytes = MIB, .options = "data_file=d.raw"
	};
	struct img_budget b = budget_of();
	const struct img_open_options how = { .budget = &b };

	(void)state;
	assert_ok(img_create(in_dir("d"), &create, ERR));
	make_image("e", "qcow2", MIB, "d", "qcow2");
	b.references = 2;
	assert_ok(try_open("e", &how));
	b.references = 1;
	assert_limit(try_open("e", &how), "--limit references=2");
}

static void check_snapshots(const char *format)
{
	struct img_budget b = budget_of();
	const struct img_open_options how = { .budget = &b };
	struct img *img;

	make_image("s", format, MIB, NULL, NULL);
	img = open_image("s", format, IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "one", 0, ERR));
	assert_ok(img_snapshot_create(img, "two", 0, ERR));
	close_image(img);
	assert_ok(try_open("s", NULL));
	b.snapshots = 2;
	assert_ok(try_open("s", &how));
	b.snapshots = 1;
	assert_limit(try_open("s", &how), "wants 2 snapshots, above the limit of 1; --limit snapshots=2");
	unlink(in_dir("s"));
}

static void test_snapshots(void **state)
{
	(void)state;
	check_snapshots("limg");
	check_snapshots("qcow2");
}

/* The table that 1 TiB needs, and what is in the message is what is wanted. */
static void test_metadata(void **state)
{
	struct img_budget b = budget_of();
	const struct img_open_options how = { .budget = &b };

	(void)state;
	make_image("m", "qcow2", GIB * 1024, NULL, NULL);
	b.metadata_bytes = 1;
	assert_limit(try_open("m", &how), "--limit metadata=");
	b.metadata_bytes = strtoull(strstr(ERR->msg, "metadata=") + strlen("metadata="), NULL, 10);
	assert_true(b.metadata_bytes >= 2048 * 8);
	assert_ok(try_open("m", &how));
	b.metadata_bytes--;
	assert_limit(try_open("m", &how), "--limit metadata=");

	make_image("n", "limg", MIB, NULL, NULL);
	b.metadata_bytes = 1;
	assert_limit(try_open("n", &how), "--limit metadata=");
}

/* Each layer has its own: three small tables are not one large one. */
static void test_metadata_is_of_a_layer(void **state)
{
	struct img_budget b = budget_of();
	const struct img_open_options how = { .budget = &b };

	(void)state;
	make_image("p", "qcow2", GIB * 1024, NULL, NULL);
	make_image("q", "qcow2", GIB * 1024, "p", "qcow2");
	b.metadata_bytes = 1;
	assert_limit(try_open("p", &how), "--limit metadata=");
	b.metadata_bytes = strtoull(strstr(ERR->msg, "metadata=") + strlen("metadata="), NULL, 10);
	assert_ok(try_open("q", &how));
}

static void put_be64(const char *name, uint64_t off, uint64_t value, uint64_t times)
{
	FILE *f = fopen(in_dir(name), "r+b");
	uint8_t bytes[8];

	assert_non_null(f);
	for (unsigned i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(value >> (56 - 8 * i));
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	while (times-- > 0)
		assert_int_equal(fwrite(bytes, 1, 8, f), 8);
	assert_int_equal(fclose(f), 0);
}

static uint64_t get_be64(const char *name, uint64_t off)
{
	FILE *f = fopen(in_dir(name), "rb");
	uint64_t value = 0;

	assert_non_null(f);
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	for (unsigned i = 0; i < 8; i++)
		value = value << 8 | (unsigned)fgetc(f);
	fclose(f);
	return value;
}

#define BOMB_CLUSTER (64 * KIB)
#define OFFSET_MASK  UINT64_C(0x00fffffffffffe00)

static void make_one_cluster(const char *name, const char *snapshot)
{
	struct img *img;

	make_image(name, "qcow2", 64 * GIB, NULL, NULL);
	img = open_image(name, "qcow2", IMG_OPEN_WRITE);
	write_pattern(img, 0, BOMB_CLUSTER, 1);
	if (snapshot)
		assert_ok(img_snapshot_create(img, snapshot, 0, ERR));
	close_image(img);
}

/* Makes the L1 table, whose first L2 table maps one cluster, a disk of 64 GiB that this cluster is all of. */
static void make_bomb(const char *name, uint64_t l1)
{
	uint64_t l2 = get_be64(name, l1) & OFFSET_MASK;

	put_be64(name, l2, get_be64(name, l2) & OFFSET_MASK, BOMB_CLUSTER / 8);
	put_be64(name, l1, l2, 64 * GIB / BOMB_CLUSTER / (BOMB_CLUSTER / 8));
}

static void test_expansion(void **state)
{
	struct img_budget b = budget_of();
	const struct img_open_options how = { .budget = &b };

	(void)state;
	make_one_cluster("x", NULL);
	make_bomb("x", get_be64("x", 40));
	assert_limit(try_open("x", NULL), "limit of 50000; --limit expansion=");
	b.expansion = strtoull(strstr(ERR->msg, "expansion=") + strlen("expansion="), NULL, 10);
	assert_in_range(b.expansion, 50001, 64 * GIB / (5 * BOMB_CLUSTER));
	b.expansion = 64 * GIB / (4 * BOMB_CLUSTER);
	assert_ok(try_open("x", &how));

	/* A disk that is nearly empty leads nowhere. */
	make_image("y", "qcow2", 64 * GIB, NULL, NULL);
	b.expansion = 1;
	assert_ok(try_open("y", &how));
}

/* The snapshot that is opened counts, not the head; and the other way round. */
static void test_expansion_of_a_snapshot(void **state)
{
	const struct img_open_options snapshot = { .snapshot = "full" };

	(void)state;
	make_one_cluster("z", "full");
	assert_ok(try_open("z", &snapshot));
	make_bomb("z", get_be64("z", get_be64("z", 64)));
	assert_ok(try_open("z", NULL)); /* one table of 512 MiB */
	assert_limit(try_open("z", &snapshot), "--limit expansion=");
}

static void test_expansion_arithmetic(void **state)
{
	struct budget b = { .limit = { [BUDGET_EXPANSION] = 10 } };

	(void)state;
	assert_true(budget_expansion_fits(NULL, UINT64_MAX, 1));
	assert_true(budget_expansion_fits(&b, GIB, 1)); /* harmless */
	assert_false(budget_expansion_fits(&b, GIB + 1, 1));
	assert_false(budget_expansion_fits(&b, UINT64_MAX, 0));
	assert_true(budget_expansion_fits(&b, 20 * GIB, 2 * GIB));
	assert_false(budget_expansion_fits(&b, 20 * GIB + 1, 2 * GIB));
}

static int count_calls(void *ctx, uint64_t done, uint64_t total)
{
	(void)done;
	(void)total;
	return ++*(int *)ctx < 0;
}

static void test_check_time(void **state)
{
	int calls = 0;
	const struct img_progress caller = { .fn = count_calls, .ctx = &calls };
	struct budget_timer t;
	struct img_error err = { .code = IMG_E_CANCELLED };

	(void)state;
	budget_timer_start(&t, 3600, &caller);
	assert_int_equal(t.progress.fn(t.progress.ctx, 1, 2), 0);
	assert_int_equal(calls, 1);
	/* Who stopped it was the caller. */
	assert_int_equal(budget_timer_end(&t, IMG_E_CANCELLED, 3600, "f", &err), IMG_E_CANCELLED);
	t.end_ms = budget_now_ms();
	assert_int_not_equal(t.progress.fn(t.progress.ctx, 1, 2), 0);
	assert_int_equal(calls, 1);
	assert_int_equal(budget_timer_end(&t, IMG_E_CANCELLED, 3600, "f", &err), IMG_E_LIMIT);
	assert_non_null(strstr(err.msg, "3600 seconds; --limit check-time="));
	/* It ended by itself just before. */
	assert_int_equal(budget_timer_end(&t, 0, 3600, "f", &err), 0);
	budget_timer_start(&t, UINT64_MAX, NULL);
	assert_int_equal(t.progress.fn(t.progress.ctx, 1, 2), 0);
}

/* From the option to the check: what takes longer than a second ends after it. */
static int slow_down(void *ctx, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)done;
	(void)total;
	usleep(1100 * 1000);
	return 0;
}

static void check_ends(const char *format)
{
	struct img_budget b = { .struct_size = sizeof(b), .check_seconds = 1 };
	struct img_open_options how = { .struct_size = sizeof(how), .budget = &b };
	struct img_progress progress = { .fn = slow_down };
	struct img *img;

	make_image("t", format, 96 * MIB, NULL, NULL);
	img = open_image("t", format, IMG_OPEN_WRITE);
	write_pattern(img, 0, 48 * MIB, 1);
	close_image(img);
	memset(ERR, 0, sizeof(*ERR));
	assert_limit(img_check_file(in_dir("t"), &how, 0, NULL, NULL, &progress, NULL, ERR), "--limit check-time=");
	assert_ok(img_open(in_dir("t"), &how, &img, ERR));
	assert_limit(img_check(img, 0, NULL, NULL, &progress, NULL, ERR), "--limit check-time=");
	close_image(img);
	b.check_seconds = 3600;
	assert_ok(img_check_file(in_dir("t"), &how, 0, NULL, NULL, NULL, NULL, ERR));
	unlink(in_dir("t"));
}

static void test_a_check_ends(void **state)
{
	(void)state;
	check_ends("limg");
}

/* New fields of a newer caller are refused, not ignored. */
static void test_newer_budget(void **state)
{
	struct {
		struct img_budget b;
		uint64_t newer;
	} newer = { .b = { .struct_size = sizeof(newer) }, .newer = 1 };
	const struct img_open_options how = { .budget = &newer.b };
	struct img_budget unset = { .snapshots = 1 };

	(void)state;
	make_image("u", "limg", MIB, NULL, NULL);
	assert_int_equal(try_open("u", &how), IMG_E_UNSUPPORTED);
	newer.newer = 0;
	assert_ok(try_open("u", &how));
	assert_int_equal(try_open("u", &(struct img_open_options){ .budget = &unset }), IMG_E_INVALID);
}

/* What is opened later on behalf of an image is opened under its budget. */
static void test_rebase_uses_the_budget(void **state)
{
	struct img_budget b = { .struct_size = sizeof(b), .snapshots = 1 };
	struct img_open_options how = { .struct_size = sizeof(how), .flags = IMG_OPEN_WRITE, .budget = &b };
	struct img_rebase_options rebase = { .struct_size = sizeof(rebase), .backing = "parent" };
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "limg", .backing = "parent", .budget = &b
	};
	struct img *img;

	(void)state;
	make_image("parent", "limg", MIB, NULL, NULL);
	img = open_image("parent", "limg", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "one", 0, ERR));
	assert_ok(img_snapshot_create(img, "two", 0, ERR));
	close_image(img);
	make_image("child", "limg", MIB, NULL, NULL);
	assert_ok(img_open(in_dir("child"), &how, &img, ERR));
	assert_limit(img_rebase(img, &rebase, ERR), "--limit snapshots=2");
	close_image(img);
	memset(ERR, 0, sizeof(*ERR));
	assert_limit(img_create(in_dir("other"), &create, ERR), "--limit snapshots=2");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_virtual_size),
		cmocka_unit_test(test_depth_and_references),
		cmocka_unit_test(test_data_file_is_a_reference),
		cmocka_unit_test(test_snapshots),
		cmocka_unit_test(test_metadata),
		cmocka_unit_test(test_metadata_is_of_a_layer),
		cmocka_unit_test(test_expansion),
		cmocka_unit_test(test_expansion_of_a_snapshot),
		cmocka_unit_test(test_expansion_arithmetic),
		cmocka_unit_test(test_check_time),
		cmocka_unit_test(test_a_check_ends),
		cmocka_unit_test(test_newer_budget),
		cmocka_unit_test(test_rebase_uses_the_budget),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
