/* SPDX-License-Identifier: MIT */
/* The broker and the environment of a process that opens no files: what verbs ask of it, and who may not ask for that. */
#include "host_fixture.h"

static int open_by(struct img_host *host, const char *name, unsigned flags, enum img_refs refs, struct img **out)
{
	struct img_open_options open = {
		.struct_size = sizeof(open), .flags = flags, .refs = refs, .host = host, .format = NULL
	};

	return img_open(in_dir(name), &open, out, ERR);
}

static void test_chain(void **state)
{
	struct img_grant grants[] = { GRANT("top", IMG_GRANT_READ) };
	struct img *img, *none;
	uint8_t buf[4096], want[4096];

	(void)state;
	make_image("base", "limg", MIB, NULL, NULL);
	img = open_image("base", NULL, IMG_OPEN_WRITE);
	write_pattern(img, 0, sizeof(want), 3);
	close_image(img);
	make_image("mid", "qcow2", 0, "base", NULL);
	make_image("top", "limg", 0, "mid", NULL);
	pattern(want, sizeof(want), 3);

	begin(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_ok(open_by(broker.host, "top", 0, IMG_REFS_DEFAULT, &img));
	assert_int_equal(img_chain_depth(img), 3);
	assert_ok(img_pread(img, buf, sizeof(buf), 0, 0, ERR));
	assert_memory_equal(buf, want, sizeof(want));
	close_image(img);
	/* neither what was not granted, nor the granted one for more */
	assert_int_equal(open_by(broker.host, "mid", IMG_OPEN_WRITE, 0, &none), IMG_E_REFUSED);
	assert_int_equal(open_by(broker.host, "top", IMG_OPEN_WRITE, 0, &none), IMG_E_REFUSED);
	assert_int_equal(open_by(broker.host, "elsewhere", 0, 0, &none), IMG_E_REFUSED);
	/* what the image's options refuse is refused as ever */
	assert_int_equal(open_by(broker.host, "top", 0, IMG_REFS_NONE, &none), IMG_E_REFUSED);
	end();

	/* the rules are the upper bound */
	begin(grants, NR(grants), IMG_REFS_NONE, 0);
	assert_int_equal(open_by(broker.host, "top", 0, IMG_REFS_ANY, &none), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "no references are allowed"));
	assert_ok(open_by(broker.host, "top", IMG_OPEN_NO_BACKING, IMG_REFS_ANY, &img));
	close_image(img);
	end();
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_direct(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_WRITE) };
	struct img *img;

	(void)state;
	make_image("a", "limg", MIB, NULL, NULL);
	begin(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_ok(open_by(broker.host, "a", IMG_OPEN_WRITE | IMG_OPEN_DIRECT, 0, &img));
	write_pattern(img, 4096, 64 * KIB, 1);
	assert_ok(img_flush(img, 0, ERR));
	close_image(img);
	end();
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_create_and_convert(void **state)
{
	struct img_grant grants[] = { GRANT("new", IMG_GRANT_CREATE), GRANT("copy", IMG_GRANT_CREATE),
				      GRANT("base", IMG_GRANT_READ) };
	struct img_create_options create = { .struct_size = sizeof(create), .format = "qcow2", .backing = "base" };
	struct img *img;

	(void)state;
	make_image("base", "limg", MIB, NULL, NULL);
	make_image("taken", "limg", MIB, NULL, NULL);
	create.host = begin(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_ok(img_create(in_dir("new"), &create, ERR));
	assert_int_equal(img_create(in_dir("new"), &create, ERR), IMG_E_EXISTS);
	assert_int_equal(img_create(in_dir("taken"), &create, ERR), IMG_E_REFUSED);
	create.flags = IMG_CREATE_OVERWRITE;
	assert_int_equal(img_create(in_dir("new"), &create, ERR), IMG_E_REFUSED);
	create.flags = 0;
	create.backing = "../outside";
	assert_int_equal(img_create(in_dir("copy"), &create, ERR), IMG_E_REFUSED);
	create.backing = "copy"; /* itself */
	assert_int_not_equal(img_create(in_dir("copy"), &create, ERR), 0);
	create.backing = NULL;
	create.format = "limg";
	assert_ok(open_by(broker.host, "base", 0, 0, &img));
	assert_ok(img_convert(img, in_dir("copy"), &create, NULL, ERR));
	close_image(img);
	end();
	assert_int_equal(fixture_files(false), 4);
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_overwrite(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_CREATE | IMG_GRANT_OVERWRITE) };
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "limg", .size_bytes = 2 * MIB, .flags = IMG_CREATE_OVERWRITE
	};
	struct img *img;

	(void)state;
	make_image("a", "limg", MIB, NULL, NULL);
	create.host = begin(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_ok(img_create(in_dir("a"), &create, ERR));
	end();
	img = open_image("a", NULL, 0);
	assert_int_equal(img_size(img), 2 * MIB);
	close_image(img);
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_data_file(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_CREATE) }, later[] = { GRANT("a", IMG_GRANT_WRITE) };
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "qcow2", .size_bytes = MIB, .options = "data_file=a.data"
	};
	char absolute[600];
	struct img *img;

	(void)state;
	create.host = begin(grants, NR(grants), IMG_REFS_DIR, 0);
	create.options = "data_file=../a.data";
	assert_int_equal(img_create(in_dir("a"), &create, ERR), IMG_E_REFUSED);
	end();
	assert_int_equal(fixture_files(false), 0);
	/* by an absolute name, which only the broker can compare with the folder's */
	create.host = begin(grants, NR(grants), IMG_REFS_DIR, 0);
	snprintf(absolute, sizeof(absolute), "data_file=%s", in_dir("a.data"));
	create.options = absolute;
	assert_ok(img_create(in_dir("a"), &create, ERR));
	end();
	assert_int_equal(fixture_files(false), 2);

	begin(later, NR(later), IMG_REFS_DIR, 0);
	assert_ok(open_by(broker.host, "a", IMG_OPEN_WRITE, 0, &img));
	write_pattern(img, 0, 128 * KIB, 9);
	close_image(img);
	end();
	assert_true(allocated_bytes("a.data") >= 128 * KIB);
	forget(grants, NR(grants));
	forget(later, NR(later));
	fixture_files(true);
}

static void test_commit_and_rebase(void **state)
{
	struct img_grant grants[] = { GRANT("over", IMG_GRANT_WRITE) };
	struct img_rebase_options rebase = { .struct_size = sizeof(rebase), .backing = "other" };
	struct img *img;

	(void)state;
	make_image("base", "qcow2", MIB, NULL, NULL);
	make_image("other", "qcow2", MIB, NULL, NULL);
	make_image("over", "qcow2", 0, "base", NULL);
	begin(grants, NR(grants), IMG_REFS_DIR, IMG_HOST_WRITE_PARENTS);
	assert_ok(open_by(broker.host, "over", IMG_OPEN_WRITE, 0, &img));
	write_pattern(img, 0, 64 * KIB, 5);
	assert_ok(img_commit(img, NULL, ERR));
	close_image(img);
	end();
	/* not without being told so */
	begin(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_ok(open_by(broker.host, "over", IMG_OPEN_WRITE, 0, &img));
	write_pattern(img, 0, 64 * KIB, 6);
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_REFUSED);
	close_image(img);
	assert_ok(open_by(broker.host, "over", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING, 0, &img));
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_REFUSED);
	close_image(img);
	end();
	begin(grants, NR(grants), IMG_REFS_DIR, IMG_HOST_WRITE_PARENTS);
	assert_ok(open_by(broker.host, "over", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING, 0, &img));
	assert_ok(img_commit(img, NULL, ERR));
	close_image(img);
	assert_ok(open_by(broker.host, "over", IMG_OPEN_WRITE, 0, &img));
	assert_ok(img_rebase(img, &rebase, ERR));
	assert_string_equal(img_path(img_backing(img)), in_dir("other"));
	close_image(img);
	end();
	forget(grants, NR(grants));
	fixture_files(true);
}

static void ignore_finding(void *ctx, const struct img_inspect_finding *finding)
{
	(void)ctx;
	(void)finding;
}

static void test_check_and_inspect(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_READ) };
	struct img_open_options open = { .struct_size = sizeof(open) };
	struct img_inspect_options how = { .struct_size = sizeof(how) };
	struct img_inspect_result seen;

	(void)state;
	make_image("a", "qcow2", MIB, NULL, NULL);
	make_image("b", "qcow2", MIB, NULL, NULL);
	open.host = how.host = begin(grants, NR(grants), IMG_REFS_NONE, 0);
	assert_ok(img_check_file(in_dir("a"), &open, 0, NULL, NULL, NULL, NULL, ERR));
	assert_int_equal(img_check_file(in_dir("b"), &open, 0, NULL, NULL, NULL, NULL, ERR), IMG_E_REFUSED);
	assert_ok(img_inspect(in_dir("a"), &how, ignore_finding, NULL, &seen, ERR));
	assert_string_equal(seen.format, "qcow2");
	assert_int_equal(img_inspect(in_dir("b"), &how, ignore_finding, NULL, &seen, ERR), IMG_E_REFUSED);
	end();
	forget(grants, NR(grants));
	fixture_files(true);
}

/* Who is in the way is found by the broker; the asker's own descriptor is not. */
static void test_holder(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_WRITE) };
	struct img *img, *none;
	char pid[32];

	(void)state;
	make_image("a", "limg", MIB, NULL, NULL);
	img = open_image("a", NULL, IMG_OPEN_WRITE);
	begin(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_int_equal(open_by(broker.host, "a", IMG_OPEN_WRITE, 0, &none), IMG_E_BUSY);
	snprintf(pid, sizeof(pid), "pid %d", (int)getpid());
	assert_non_null(strstr(ERR->msg, pid));
	end();
	close_image(img);
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_broker_gone(void **state)
{
	struct img_host *host;
	struct img *img;
	int ends[2];

	(void)state;
	make_image("a", "limg", MIB, NULL, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	close(ends[1]);
	assert_ok(img_host_connect(ends[0], &host, ERR));
	assert_int_equal(open_by(host, "a", 0, 0, &img), IMG_E_IO);
	assert_null(img);
	img_host_disconnect(host);
	img_host_disconnect(NULL);
	fixture_files(true);
}

static void test_misuse(void **state)
{
	struct img_host_rules rules = { .struct_size = sizeof(rules), .nr_grants = 1 };
	struct img_host *host;

	(void)state;
	assert_int_equal(img_host_connect(-1, &host, ERR), IMG_E_INVALID);
	assert_int_equal(img_host_connect(dup(0), NULL, ERR), IMG_E_INVALID);
	assert_int_equal(img_host_serve(-1, NULL, ERR), IMG_E_INVALID);
	assert_int_equal(img_host_serve(0, &rules, ERR), IMG_E_INVALID);
	rules.nr_grants = 0;
	rules.refs = (enum img_refs)9;
	assert_int_equal(img_host_serve(0, &rules, ERR), IMG_E_INVALID);
	rules.refs = IMG_REFS_DIR;
	rules.flags = 1u << 31;
	assert_int_equal(img_host_serve(0, &rules, ERR), IMG_E_INVALID);
	rules.struct_size = 0;
	assert_int_equal(img_host_serve(0, &rules, ERR), IMG_E_INVALID);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_chain),
		cmocka_unit_test(test_direct),
		cmocka_unit_test(test_create_and_convert),
		cmocka_unit_test(test_overwrite),
		cmocka_unit_test(test_data_file),
		cmocka_unit_test(test_commit_and_rebase),
		cmocka_unit_test(test_check_and_inspect),
		cmocka_unit_test(test_holder),
		cmocka_unit_test(test_broker_gone),
		cmocka_unit_test(test_misuse),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
