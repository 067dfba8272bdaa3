/* SPDX-License-Identifier: MIT */
/* The reference broker: what an image may name under which policy, and what it can never make us open. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "image_fixture.h"
#include "broker.h"

/* Folder layout: images/child, images/base, images/sub/base, secret; links that lead out and in. */
static void put(const char *name, const char *text)
{
	FILE *f = fopen(in_dir(name), "w");

	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
}

static int layout(void **state)
{
	if (fixture_setup(state) != 0)
		return -1;
	assert_int_equal(mkdir(in_dir("images"), 0755), 0);
	assert_int_equal(mkdir(in_dir("images/sub"), 0755), 0);
	put("images/child", "child");
	put("images/base", "base");
	put("images/sub/base", "sub base");
	put("images/nbd:base", "colon");
	put("secret", "secret");
	assert_int_equal(symlink("../secret", in_dir("images/out")), 0);
	assert_int_equal(symlink("..", in_dir("images/up")), 0);
	assert_int_equal(symlink("sub/base", in_dir("images/in")), 0);
	assert_int_equal(symlink("loop", in_dir("images/loop")), 0);
	assert_int_equal(mkfifo(in_dir("images/fifo"), 0600), 0);
	return 0;
}

static int clean(void **state)
{
	char command[600];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf '%s'", fixture_dir);
	return system(command);
}

/* The file's text, or the code as it was returned. */
static int try(const char *name, enum img_refs refs, const char *expected)
{
	char text[32] = "", *resolved;
	struct stat here, there;
	int fd, ret;

	memset(ERR, 0, sizeof(*ERR));
	ret = broker_open(in_dir("images/child"), name, refs, &fd, &resolved, ERR);
	if (ret != 0) {
		assert_int_equal(fd, -1);
		assert_null(resolved);
		assert_int_equal(ERR->code, ret);
		return ret;
	}
	assert_true(read(fd, text, sizeof(text) - 1) >= 0);
	if (expected)
		assert_string_equal(text, expected);
	/* Read-only, not inherited, and blocking again. */
	assert_int_equal(fcntl(fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(fstat(fd, &here), 0);
	assert_int_equal(stat(resolved, &there), 0);
	assert_int_equal(here.st_ino, there.st_ino);
	close(fd);
	free(resolved);
	return 0;
}

static bool no_openat2(void)
{
	return syscall(SYS_openat2, -1, "", NULL, 0) == -1 && errno == ENOSYS;
}

static void test_none(void **state)
{
	(void)state;
	assert_int_equal(try("base", IMG_REFS_NONE, NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "--allow-refs dir"));
}

static void test_dir_allows_the_folder_and_below(void **state)
{
	(void)state;
	assert_ok(try("base", IMG_REFS_DIR, "base"));
	assert_ok(try("./base", IMG_REFS_DIR, "base"));
	assert_ok(try("sub/base", IMG_REFS_DIR, "sub base"));
	if (no_openat2()) {
		print_message("SKIP: no openat2() here to follow '..' and links\n");
	} else {
		assert_ok(try("sub/../base", IMG_REFS_DIR, "base"));
		assert_ok(try("in", IMG_REFS_DIR, "sub base"));
	}
	assert_ok(try(in_dir("images/base"), IMG_REFS_DIR, "base"));
	assert_ok(try(in_dir("images/sub//base"), IMG_REFS_DIR, "sub base"));
	/* The default is dir. */
	assert_ok(try("base", IMG_REFS_DEFAULT, "base"));
	assert_int_equal(try("../secret", IMG_REFS_DEFAULT, NULL), IMG_E_REFUSED);
}

static void test_dir_refuses_what_leads_out(void **state)
{
	static const char *const names[] = { "../secret",	 "out",		"up/secret",
					     "sub/../../secret", "/etc/passwd", "/proc/self/exe",
					     "up/images/base",	 "/dev/null" };

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		assert_int_equal(try(names[i], IMG_REFS_DIR, NULL), IMG_E_REFUSED);
		assert_non_null(strstr(ERR->msg, "--allow-refs any"));
	}
	/* A folder whose name only begins like ours. */
	assert_int_equal(mkdir(in_dir("images2"), 0755), 0);
	put("images2/base", "other");
	assert_int_equal(try(in_dir("images2/base"), IMG_REFS_DIR, NULL), IMG_E_REFUSED);
	assert_int_equal(try(in_dir("images/../secret"), IMG_REFS_DIR, NULL), IMG_E_REFUSED);
}

static void test_any(void **state)
{
	(void)state;
	assert_ok(try("../secret", IMG_REFS_ANY, "secret"));
	assert_ok(try("out", IMG_REFS_ANY, "secret"));
	assert_ok(try(in_dir("secret"), IMG_REFS_ANY, "secret"));
	assert_ok(try("base", IMG_REFS_ANY, "base"));
}

static void test_schemes_are_not_paths(void **state)
{
	static const char *const names[] = { "json:{\"driver\":\"file\"}",
					     "nbd:base",
					     "nbd://host/x",
					     "https://example.org/x",
					     "file:base",
					     ":x",
					     "a:b/c" };

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		assert_int_equal(try(names[i], IMG_REFS_DIR, NULL), IMG_E_REFUSED);
		assert_int_equal(try(names[i], IMG_REFS_ANY, NULL), IMG_E_REFUSED);
		assert_non_null(strstr(ERR->msg, "./NAME"));
	}
	assert_ok(try("./nbd:base", IMG_REFS_DIR, "colon"));
}

static void test_what_is_no_file(void **state)
{
	(void)state;
	for (enum img_refs refs = IMG_REFS_DIR; refs <= IMG_REFS_ANY; refs++) {
		assert_int_equal(try("fifo", refs, NULL), IMG_E_REFUSED);
		assert_int_equal(try("sub", refs, NULL), IMG_E_INVALID);
		assert_int_equal(try("", refs, NULL), IMG_E_REFUSED);
		assert_int_equal(try("none", refs, NULL), IMG_E_NOENT);
		assert_int_not_equal(try("loop", refs, NULL), 0);
		assert_int_not_equal(try("base/", refs, NULL), 0);
	}
	assert_int_equal(try("/dev/null", IMG_REFS_ANY, NULL), IMG_E_REFUSED);
	assert_int_equal(try("/dev/zero", IMG_REFS_ANY, NULL), IMG_E_REFUSED);
}

static void test_named_by_the_user(void **state)
{
	int fd;

	(void)state;
	assert_ok(broker_open_named(in_dir("images/out"), false, &fd, ERR));
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	close(fd);
	assert_ok(broker_open_named(in_dir("images/base"), true, &fd, ERR));
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
	close(fd);
	assert_int_equal(broker_open_named("/dev/zero", false, &fd, ERR), IMG_E_REFUSED);
	assert_int_equal(broker_open_named(in_dir("none"), false, &fd, NULL), IMG_E_NOENT);
}

static void test_folder_of_a_path(void **state)
{
	static const char *const table[][2] = {
		{ "a", "." }, { "/a", "/" }, { "b/a", "b" }, { "/b/a", "/b" }, { "./a", "." }
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		char *folder = broker_folder(table[i][0], ERR);

		assert_string_equal(folder, table[i][1]);
		free(folder);
	}
}

/* From here on the process has no openat2(), as on an old kernel or in an old sandbox: must be the last test. */
static void test_without_openat2(void **state)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	(void)state;
	if (!no_openat2() && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
			      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)) {
		print_message("SKIP: the host has no seccomp filters, so openat2() cannot be taken away\n");
		skip();
	}
	assert_int_equal(syscall(SYS_openat2, 0, "", NULL, 0), -1);
	assert_int_equal(errno, ENOSYS);
	assert_ok(try("base", IMG_REFS_DIR, "base"));
	assert_ok(try("./sub//base", IMG_REFS_DIR, "sub base"));
	assert_ok(try(in_dir("images/sub/base"), IMG_REFS_DIR, "sub base"));
	assert_int_equal(try("none", IMG_REFS_DIR, NULL), IMG_E_NOENT);
	assert_int_equal(try("sub/none/x", IMG_REFS_DIR, NULL), IMG_E_NOENT);
	assert_int_not_equal(try("base/", IMG_REFS_DIR, NULL), 0);
	/* Stricter than the kernel's way: no link, no "..", wherever they lead. */
	assert_int_equal(try("sub/../base", IMG_REFS_DIR, NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "openat2"));
	assert_int_equal(try("in", IMG_REFS_DIR, NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "openat2"));
	assert_int_equal(try("up/secret", IMG_REFS_DIR, NULL), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "symbolic link"));
	assert_int_equal(try("../secret", IMG_REFS_DIR, NULL), IMG_E_REFUSED);
	assert_int_equal(try("out", IMG_REFS_DIR, NULL), IMG_E_REFUSED);
	assert_int_equal(try("/etc/passwd", IMG_REFS_DIR, NULL), IMG_E_REFUSED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_none),
		cmocka_unit_test(test_dir_allows_the_folder_and_below),
		cmocka_unit_test(test_dir_refuses_what_leads_out),
		cmocka_unit_test(test_any),
		cmocka_unit_test(test_schemes_are_not_paths),
		cmocka_unit_test(test_what_is_no_file),
		cmocka_unit_test(test_named_by_the_user),
		cmocka_unit_test(test_folder_of_a_path),
		cmocka_unit_test(test_without_openat2),
	};

	return cmocka_run_group_tests_name("broker", tests, layout, clean);
}
