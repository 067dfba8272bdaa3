/* SPDX-License-Identifier: MIT */
/*
 * The broker, and a process at its other end that was taken over: names that nobody granted, packets that are none,
 * anything at all. What the broker must not do is looked for in the folder afterwards.
 */
#include "host_fixture.h"

#include "host_wire.h"

/* ---- requests that are made by hand ------------------------------------------------------------------------------- */

/* Sends bytes as they are and takes the answer. *fd: what came with it, or -1. */
static struct wire_answer exchange(const void *bytes, size_t nr, int *fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct wire_answer a = { .code = 0 };
	struct iovec iov = { .iov_base = &a, .iov_len = sizeof(a) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *c;

	*fd = -1;
	assert_int_equal(send(broker.raw, bytes, nr, MSG_NOSIGNAL), (ssize_t)nr);
	assert_true(recvmsg(broker.raw, &m, MSG_CMSG_CLOEXEC) > 0);
	c = CMSG_FIRSTHDR(&m);
	if (c)
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	return a;
}

static size_t build(struct wire_request *r, struct wire_head head, const char *a, const char *b)
{
	size_t n = 0;

	r->head = head;
	r->head.a_bytes = a ? (uint32_t)strlen(a) + 1 : 0;
	r->head.b_bytes = b ? (uint32_t)strlen(b) + 1 : 0;
	if (a)
		memcpy(r->text, a, r->head.a_bytes);
	n = r->head.a_bytes;
	if (b)
		memcpy(r->text + n, b, r->head.b_bytes);
	return offsetof(struct wire_request, text) + n + r->head.b_bytes;
}

/* Asks, and gives the code of the answer; a descriptor that comes is closed. */
static int ask(struct wire_head head, const char *a, const char *b)
{
	static struct wire_request r;
	size_t bytes = build(&r, head, a, b);
	struct wire_answer answer;
	int fd;

	answer = exchange(&r, bytes, &fd);
	if (fd >= 0) {
		assert_int_equal(answer.code, 0);
		close(fd);
	}
	if (answer.code != 0)
		assert_true(answer.msg[0] != '\0');
	return answer.code;
}

#define HEAD(...)                     \
	(struct wire_head)            \
	{                             \
		.fd = -1, __VA_ARGS__ \
	}

static void test_lies(void **state)
{
	struct img_grant grants[] = { GRANT("r", IMG_GRANT_READ), GRANT("w", IMG_GRANT_WRITE),
				      GRANT("new", IMG_GRANT_CREATE) };
	const char *r = grants[0].path, *w = grants[1].path, *new = grants[2].path;
	const struct wire_head any = HEAD(.what = WIRE_OPEN_REF, .refs = IMG_REFS_ANY);
	const struct wire_head write_any = HEAD(.what = WIRE_OPEN_REF, .refs = IMG_REFS_ANY, .number = 1);
	char absolute[600];

	(void)state;
	make_file("r", "1");
	make_file("w", "2");
	make_file("secret", "3");
	make_file("data", "4");
	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), r, NULL), 0);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN, .number = 1), w, NULL), 0);
	/* names that were not granted, or not for that */
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), "/etc/passwd", NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), in_dir("secret"), NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), in_dir("./r"), NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), new, NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN, .number = 1), r, NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_CREATE), w, NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_CREATE), in_dir("x"), NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_IDENTIFY), "/etc/passwd", NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_HOLDER), "/etc/passwd", NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_CHECK_TARGET), w, NULL), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_CHECK_TARGET, .number = 1), new, NULL), IMG_E_REFUSED);
	/* references: the policy is the broker's */
	assert_int_equal(ask(any, r, "../r"), IMG_E_REFUSED);
	assert_int_equal(ask(any, r, "/etc/passwd"), IMG_E_REFUSED);
	assert_int_equal(ask(any, "/etc/hosts", "passwd"), IMG_E_REFUSED);
	assert_int_equal(ask(any, "", "/etc/passwd"), IMG_E_INVALID);
	assert_int_equal(ask(any, r, "nbd://host/x"), IMG_E_REFUSED);
	assert_int_equal(ask(any, r, "/dev/null"), IMG_E_REFUSED);
	assert_int_equal(ask(any, r, "."), IMG_E_INVALID);
	assert_int_equal(ask(any, r, "secret"), 0); /* in its folder: what the policy allows */
	snprintf(absolute, sizeof(absolute), "%s", in_dir("secret"));
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN, .number = 1), absolute, NULL), IMG_E_REFUSED);
	assert_int_equal(symlink("/etc/passwd", in_dir("link")), 0);
	assert_int_equal(ask(any, r, "link"), IMG_E_REFUSED);
	/* for writing: one data file of what is written itself, and that has none */
	assert_int_equal(ask(write_any, r, "data"), IMG_E_REFUSED);
	assert_int_equal(ask(write_any, absolute, "data"), IMG_E_REFUSED);
	assert_int_equal(ask(write_any, w, "data"), 0);
	assert_int_equal(ask(write_any, w, "data"), 0);
	assert_int_equal(ask(write_any, w, "secret"), IMG_E_REFUSED);
	assert_int_equal(ask(write_any, in_dir("data"), "secret"), IMG_E_REFUSED);
	end_raw();
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_lies_about_new_files(void **state)
{
	struct img_grant grants[] = { GRANT("new", IMG_GRANT_CREATE), GRANT("old", IMG_GRANT_READ) };
	const char *new = grants[0].path, *old = grants[1].path;
	const struct wire_head publish = HEAD(.what = WIRE_PUBLISH), discard = HEAD(.what = WIRE_DISCARD);
	const struct wire_head data = HEAD(.what = WIRE_NEW_PATH, .refs = IMG_REFS_ANY);
	static struct wire_request r;
	struct wire_answer a;
	char temp[sizeof(a.text)];
	int fd;

	(void)state;
	make_file("old", "1");
	make_file("victim", "2");
	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	a = exchange(&r, build(&r, HEAD(.what = WIRE_CREATE), new, NULL), &fd);
	assert_int_equal(a.code, 0);
	assert_true(fd >= 0);
	close(fd);
	memcpy(temp, a.text, sizeof(temp));
	assert_int_equal(access(temp, F_OK), 0);
	assert_int_equal(ask(HEAD(.what = WIRE_CREATE), new, NULL), IMG_E_REFUSED); /* once at a time */
	assert_int_equal(ask(publish, new, in_dir("victim")), IMG_E_REFUSED);
	assert_int_equal(ask(publish, old, temp), IMG_E_REFUSED);
	assert_int_equal(ask(publish, in_dir("x"), temp), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_PUBLISH, .number = IMG_CREATE_OVERWRITE), new, temp), IMG_E_REFUSED);
	assert_int_equal(ask(HEAD(.what = WIRE_PUBLISH, .number = UINT64_C(1) << 31), new, temp), IMG_E_REFUSED);
	assert_int_equal(ask(discard, in_dir("victim"), NULL), IMG_E_REFUSED);
	assert_int_equal(ask(discard, old, NULL), IMG_E_REFUSED);
	assert_int_equal(ask(discard, new, NULL), IMG_E_REFUSED);
	/* a data file: beside the new image, one, and it replaces nothing */
	assert_int_equal(ask(data, old, "d"), IMG_E_REFUSED);
	assert_int_equal(ask(data, new, "../d"), IMG_E_REFUSED);
	assert_int_equal(ask(data, new, "victim"), IMG_E_REFUSED); /* a second one: the first was "../d" */
	assert_int_equal(ask(publish, new, temp), 0);
	assert_int_equal(ask(discard, new, NULL), IMG_E_REFUSED);	/* it is there, and no data file */
	assert_int_equal(ask(HEAD(.what = WIRE_CREATE), new, NULL), 0); /* goes when we go */
	end_raw();
	assert_int_equal(fixture_files(false), 3);
	assert_true(file_exists("victim"));
	assert_true(file_exists("new"));

	/* taking the name of what is there for a data file */
	begin_raw(grants, 1, IMG_REFS_DIR, 0);
	assert_int_equal(ask(data, new, "victim"), 0);
	a = exchange(&r, build(&r, HEAD(.what = WIRE_CREATE), in_dir("victim"), NULL), &fd);
	assert_int_equal(a.code, 0);
	close(fd);
	memcpy(temp, a.text, sizeof(temp));
	assert_int_equal(ask(publish, in_dir("victim"), temp), IMG_E_EXISTS);
	assert_int_equal(ask(HEAD(.what = WIRE_PUBLISH, .number = IMG_CREATE_OVERWRITE), in_dir("victim"), temp),
			 IMG_E_REFUSED);
	assert_int_equal(ask(discard, in_dir("victim"), NULL), IMG_E_REFUSED);
	end_raw();
	assert_int_equal(fixture_files(false), 3);
	forget(grants, NR(grants));
	fixture_files(true);
}

static int make_and_publish(const char *path)
{
	static struct wire_request r;
	struct wire_answer a;
	char temp[sizeof(a.text)];
	int fd;

	a = exchange(&r, build(&r, HEAD(.what = WIRE_CREATE), path, NULL), &fd);
	if (fd >= 0)
		close(fd);
	memcpy(temp, a.text, sizeof(temp));
	return a.code == 0 ? ask(HEAD(.what = WIRE_PUBLISH), path, temp) : a.code;
}

/*
 * An image of several files: as many as the rules say. Beside one that is being made no file is opened for writing: who
 * makes it has what he made. What got its name is taken back when he goes before the image has its own; what lies there
 * instead by then is not.
 */
static void test_several_data_files(void **state)
{
	struct img_grant grants[] = { GRANT("new", IMG_GRANT_CREATE), GRANT("w", IMG_GRANT_WRITE) };
	const char *new = grants[0].path, *w = grants[1].path;
	const struct wire_head data = HEAD(.what = WIRE_NEW_PATH, .refs = IMG_REFS_ANY);
	const struct wire_head write_any = HEAD(.what = WIRE_OPEN_REF, .refs = IMG_REFS_ANY, .number = 1);
	static const char *const names[] = { "d1", "d2" };

	(void)state;
	make_file("w", "1");
	make_file("victim", "2");
	broker.max_data_files = 2;
	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	for (size_t i = 0; i < NR(names); i++) {
		assert_int_equal(ask(data, new, names[i]), 0);
		assert_int_equal(make_and_publish(in_dir(names[i])), 0);
		assert_int_equal(ask(write_any, new, names[i]), IMG_E_REFUSED);
	}
	assert_int_equal(ask(data, new, "d3"), IMG_E_REFUSED);
	assert_int_equal(ask(write_any, new, "victim"), IMG_E_REFUSED);
	assert_int_equal(ask(write_any, w, "d1"), 0);
	assert_int_equal(ask(write_any, w, "victim"), 0);
	assert_int_equal(ask(write_any, w, "d2"), IMG_E_REFUSED);
	assert_true(file_exists("d1") && file_exists("d2"));
	make_file("another", "3");
	assert_int_equal(rename(in_dir("another"), in_dir("d2")), 0);
	end_raw();
	assert_false(file_exists("d1"));
	assert_true(file_exists("d2"));
	assert_int_equal(unlink(in_dir("d2")), 0);

	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	assert_int_equal(ask(data, new, "d1"), 0);
	assert_int_equal(make_and_publish(in_dir("d1")), 0);
	assert_int_equal(make_and_publish(new), 0);
	assert_int_equal(ask(HEAD(.what = WIRE_DISCARD), in_dir("d1"), NULL), IMG_E_REFUSED);
	end_raw();
	assert_true(file_exists("d1") && file_exists("new"));
	broker.max_data_files = 0;
	forget(grants, NR(grants));
	fixture_files(true);
}

static void test_too_many(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_READ) };
	unsigned nr = 0;

	(void)state;
	make_file("a", "1");
	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	end_raw();
	broker.rules.max_requests = 5;
	{
		int ends[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
		broker.socket = ends[1];
		broker.raw = ends[0];
		assert_int_equal(pthread_create(&broker.thread, NULL, serve, NULL), 0);
	}
	while (nr < 10 && ask(HEAD(.what = WIRE_OPEN), grants[0].path, NULL) == 0)
		nr++;
	assert_int_equal(nr, 5);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), grants[0].path, NULL), IMG_E_LIMIT);
	end_raw();
	forget(grants, NR(grants));
	fixture_files(true);
}

/* A packet that is none is answered by INVALID, and the next good one is served. */
static void malformed(const void *bytes, size_t nr, const char *good)
{
	struct wire_answer a;
	int fd;

	a = exchange(bytes, nr, &fd);
	assert_int_equal(a.code, IMG_E_INVALID);
	assert_int_equal(fd, -1);
	assert_int_equal(ask(HEAD(.what = WIRE_OPEN), good, NULL), 0);
}

static void test_malformed(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_READ) };
	const char *a = grants[0].path;
	static char large[65536];
	struct wire_request r = { 0 };
	size_t bytes, head = offsetof(struct wire_request, text);

	(void)state;
	memset(large, 1, sizeof(large));
	make_file("a", "1");
	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	malformed("x", 1, a);
	malformed(large, sizeof(large), a);
	malformed(large, sizeof(r) + 1, a);
	bytes = build(&r, HEAD(.what = WIRE_OPEN), a, NULL);
	malformed(&r, head - 1, a);
	malformed(&r, head, a);
	malformed(&r, bytes - 1, a);
	malformed(&r, bytes + 1, a);
	r.head.a_bytes = UINT32_MAX;
	malformed(&r, bytes, a);
	bytes = build(&r, HEAD(.what = WIRE_OPEN), a, NULL);
	r.head.b_bytes = UINT32_MAX - 3;
	malformed(&r, bytes, a);
	bytes = build(&r, HEAD(.what = WIRE_OPEN), a, NULL);
	r.text[strlen(a)] = 'x'; /* no end */
	malformed(&r, bytes, a);
	bytes = build(&r, HEAD(.what = WIRE_OPEN), a, NULL);
	r.text[2] = '\0'; /* an end too early */
	malformed(&r, bytes, a);
	bytes = build(&r, HEAD(.what = WIRE_OPEN_REF, .refs = IMG_REFS_DIR), a, "xy");
	r.text[bytes - head - 1] = 'z';
	malformed(&r, bytes, a);
	malformed(&r, build(&r, HEAD(.what = WIRE_OPEN_REF, .refs = IMG_REFS_DIR), a, NULL), a);
	malformed(&r, build(&r, HEAD(.what = WIRE_OPEN_REF, .refs = 77), a, "b"), a);
	malformed(&r, build(&r, HEAD(.what = WIRE_OPEN_REF), a, "b"), a);
	malformed(&r, build(&r, HEAD(.what = 0), a, "b"), a);
	malformed(&r, build(&r, HEAD(.what = WIRE_HOLDER + 1), a, "b"), a);
	malformed(&r, build(&r, HEAD(.what = UINT32_MAX), a, "b"), a);
	end_raw();
	forget(grants, NR(grants));
	fixture_files(true);
}

/* Descriptors that nobody asked for do not pile up at the broker. */
static void test_descriptors(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_READ) };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct wire_request r;
	struct wire_answer a;
	size_t bytes;
	int before, after;

	(void)state;
	make_file("a", "1");
	begin_raw(grants, NR(grants), IMG_REFS_DIR, 0);
	bytes = build(&r, HEAD(.what = WIRE_IDENTIFY), grants[0].path, NULL);
	before = dup(0);
	for (unsigned i = 0; i < 100; i++) {
		struct iovec iov = { .iov_base = &r, .iov_len = bytes };
		struct msghdr m = { .msg_iov = &iov,
				    .msg_iovlen = 1,
				    .msg_control = control.bytes,
				    .msg_controllen = sizeof(control) };
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &before, sizeof(int));
		assert_int_equal(sendmsg(broker.raw, &m, 0), (ssize_t)bytes);
		assert_true(recv(broker.raw, &a, sizeof(a), 0) > 0);
		assert_int_equal(a.code, 0);
	}
	after = dup(0);
	assert_int_equal(after, before + 1);
	close(after);
	close(before);
	end_raw();
	forget(grants, NR(grants));
	fixture_files(true);
}

/* ---- anything at all --------------------------------------------------------------------------------------------- */

/* Names of a session, right and wrong. */
static const char *some_name(const char *temp)
{
	static const char *const names[] = { "r",    "w",      "new",	 "data",  "secret", "../x",   "/etc/passwd",
					     ".",    "",       "x/../r", "r",	  "w",	    "victim", "nbd:x",
					     "new2", "victim", "link",	 "./new", "//r",    "new" };
	uint64_t i = random_below(NR(names));

	if (random_below(6) == 0)
		return temp;
	if (random_below(2))
		return in_dir(names[i % (random_below(3) ? 4 : NR(names))]);
	return names[i];
}

static void random_request(struct wire_request *r, size_t *bytes, const char *temp)
{
	struct wire_head head = { .what = (uint32_t)random_below(WIRE_HOLDER + 2),
				  .refs = (uint32_t)random_below(5),
				  .number = random_below(4),
				  .fd = (int)random_below(8) };

	if (head.what == WIRE_PUBLISH && random_below(2)) {
		head.number = random_below(8) == 0;
		*bytes = build(r, head, in_dir("new"), temp);
		return;
	}
	*bytes = build(r, head, random_below(20) ? some_name(temp) : NULL, random_below(3) ? some_name(temp) : NULL);
	if (random_below(8) == 0)
		((uint8_t *)r)[random_below(*bytes)] ^= (uint8_t)(1 + random_below(255));
	if (random_below(16) == 0)
		*bytes = 1 + random_below(*bytes + 20);
}

/* Whatever is asked: nothing that was there changes, nothing is made but what was granted and one data file. */
static void test_random(void **state)
{
	struct img_grant grants[] = { GRANT("r", IMG_GRANT_READ), GRANT("w", IMG_GRANT_WRITE),
				      GRANT("new", IMG_GRANT_CREATE) };
	static const char *const allowed[] = { ".",    "..",   "r",   "w",    "secret", "victim",
					       "data", "link", "new", "new2", "x" };
	const char *seed = getenv("HOST_SEED");
	static struct wire_request r;
	char temp[WIRE_PATH_BYTES] = "";
	unsigned nr_served = 0, nr_made = 0;
	struct dirent *entry;
	struct stat sb;
	DIR *dir;

	(void)state;
	random_state = seed ? strtoull(seed, NULL, 0) : (uint64_t)getpid() * 2654435761u;
	print_message("HOST_SEED=%llu\n", (unsigned long long)random_state);
	for (unsigned session = 0; session < 20; session++) {
		make_file("r", "r");
		make_file("w", "w");
		make_file("secret", "secret");
		make_file("victim", "victim");
		assert_int_equal(symlink("/etc/passwd", in_dir("link")), 0);
		begin_raw(grants, NR(grants), 1 + (enum img_refs)random_below(2), 0);
		for (unsigned i = 0; i < 500; i++) {
			struct wire_answer a;
			size_t bytes;
			int fd;

			random_request(&r, &bytes, temp);
			a = exchange(&r, bytes, &fd);
			nr_served += a.code == 0;
			if (a.code == 0 && r.head.what == WIRE_CREATE)
				memcpy(temp, a.text, sizeof(temp));
			if (fd >= 0) {
				/* what comes for writing is what may be written */
				assert_int_equal(fstat(fd, &sb), 0);
				assert_true(S_ISREG(sb.st_mode));
				close(fd);
			}
		}
		end_raw();
		dir = opendir(fixture_dir);
		while ((entry = readdir(dir))) {
			size_t i = 0;

			while (i < NR(allowed) && strcmp(allowed[i], entry->d_name) != 0)
				i++;
			if (i == NR(allowed))
				fail_msg("%s was made", entry->d_name);
			nr_made += strcmp(entry->d_name, "new") == 0;
		}
		closedir(dir);
		assert_int_equal(stat(in_dir("secret"), &sb), 0);
		assert_int_equal(sb.st_size, 6);
		assert_int_equal(stat(in_dir("victim"), &sb), 0);
		assert_int_equal(sb.st_size, 6);
		fixture_files(true);
	}
	print_message("%u of 10000 requests were served, %u files made\n", nr_served, nr_made);
	assert_true(nr_served > 100);
	forget(grants, NR(grants));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lies),
		cmocka_unit_test(test_lies_about_new_files),
		cmocka_unit_test(test_several_data_files),
		cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_descriptors),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
