/* SPDX-License-Identifier: MIT */
/* New images on the host's files: what is replaced, when, and what stays where it fails. */
#include "host_fixture.h"

#include "image.h"

#define SIZE   MIB
#define NOBODY 65534

int __real_fsync(int fd);
int __wrap_fsync(int fd);
static unsigned folder_fails; /* the sync of a folder, from 1 */
int __wrap_fsync(int fd)
{
	struct stat sb;

	if (folder_fails > 0 && fstat(fd, &sb) == 0 && S_ISDIR(sb.st_mode) && --folder_fails == 0) {
		errno = EIO;
		return -1;
	}
	return __real_fsync(fd);
}

static struct image_env env; /* the host's, with something that happens in between */
static const char *target;
static struct img *user;
static struct img_open_options how_used;

/* Somebody opens the target after it was looked at, and before it is replaced. */
static int create_meanwhile(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	assert_ok(img_open(target, &how_used, &user, ERR));
	return image_env_host.create_file(ctx, path, out, temp_path, err);
}

static struct img_create_options replacing(void)
{
	return (struct img_create_options){ .struct_size = sizeof(struct img_create_options),
					    .format = "limg",
					    .size_bytes = 2 * SIZE,
					    .flags = IMG_CREATE_OVERWRITE };
}

static void assert_size(const char *name, uint64_t size)
{
	struct img_open_options open = { .struct_size = sizeof(open) };
	struct img *img;

	assert_ok(img_open(in_dir(name), &open, &img, ERR));
	assert_int_equal(img_size(img), size);
	assert_ok(img_close(img, ERR));
}

static void test_in_use(void **state)
{
	struct img_create_options create = replacing();
	struct img *src;

	(void)state;
	make_image("a", "limg", SIZE, NULL, NULL);
	make_image("src", "limg", 2 * SIZE, NULL, NULL);
	target = in_dir("a");
	src = open_image("src", NULL, 0);
	for (unsigned writes = 0; writes < 2; writes++) {
		how_used = (struct img_open_options){ .struct_size = sizeof(how_used),
						      .flags = writes ? IMG_OPEN_WRITE : 0 };
		/* before */
		assert_ok(img_open(target, &how_used, &user, ERR));
		assert_int_equal(img_create(target, &create, ERR), IMG_E_BUSY);
		assert_int_equal(img_convert(src, target, &create, NULL, ERR), IMG_E_BUSY);
		assert_ok(img_close(user, ERR));
		/* meanwhile */
		env = image_env_host;
		env.create_file = create_meanwhile;
		assert_int_equal(image_create_env(target, &create, &env, ERR), IMG_E_BUSY);
		assert_ok(img_close(user, ERR));
		assert_int_equal(image_convert_env(src, target, &create, NULL, &env, ERR), IMG_E_BUSY);
		assert_ok(img_close(user, ERR));
		assert_size("a", SIZE);
		assert_int_equal(fixture_files(false), 2);
	}
	assert_int_equal(img_convert(src, in_dir("src"), &create, NULL, ERR), IMG_E_BUSY);
	assert_non_null(strstr(ERR->msg, "is what is converted"));
	assert_ok(img_close(src, ERR));
	assert_ok(img_create(target, &create, ERR));
	assert_size("a", 2 * SIZE);
	fixture_files(true);
}

static bool is_there(const char *name)
{
	return access(in_dir(name), F_OK) == 0;
}

static int replace(struct img *src, const struct img_create_options *create)
{
	return src ? img_convert(src, in_dir("a"), create, NULL, ERR) : img_create(in_dir("a"), create, ERR);
}

/* A new image with a data file in place of an old one. */
static void replace_undurably(struct img_host *host, struct img *src)
{
	struct img_create_options create = replacing();

	create.format = "qcow2";
	create.host = host;
	create.options = "data_file=a.data";
	folder_fails = 1; /* for the data file's name, which comes first and replaces nothing */
	assert_int_equal(replace(src, &create), IMG_E_IO);
	assert_false(is_there("a.data"));
	assert_size("a", SIZE);

	folder_fails = 2; /* for its own: the old one is gone */
	assert_int_equal(replace(src, &create), IMG_E_IO);
	assert_int_equal(folder_fails, 0);
	assert_non_null(strstr(ERR->msg, "is complete and in its place"));
	assert_null(strstr(ERR->msg, "cannot create"));
}

static void test_not_durable(void **state)
{
	struct img_grant grants[] = { GRANT("a", IMG_GRANT_CREATE | IMG_GRANT_OVERWRITE) };
	struct img *src;

	(void)state;
	make_image("src", "limg", 2 * SIZE, NULL, NULL);
	src = open_image("src", NULL, 0);
	for (unsigned i = 0; i < 4; i++) {
		make_image("a", "limg", SIZE, NULL, NULL);
		replace_undurably(i & 1 ? begin(grants, NR(grants), IMG_REFS_DIR, 0) : NULL, i & 2 ? src : NULL);
		if (i & 1)
			end();
		assert_true(is_there("a.data"));
		assert_size("a", 2 * SIZE);
		assert_int_equal(fixture_files(false), 3);
		assert_int_equal(unlink(in_dir("a")), 0);
		assert_int_equal(unlink(in_dir("a.data")), 0);
	}
	close_image(src);
	forget(grants, NR(grants));
	fixture_files(true);
}

/* A folder in which names can be made, but never durably: found out before there is one. */
static void test_unreadable_folder(void **state)
{
	struct img_create_options create = replacing();
	uid_t me = geteuid();

	(void)state;
	make_image("a", "limg", SIZE, NULL, NULL);
	assert_int_equal(chmod(in_dir("a"), 0666), 0);
	assert_int_equal(chmod(fixture_dir, 0333), 0);
	assert_true(me != 0 || seteuid(NOBODY) == 0);
	assert_int_not_equal(img_create(in_dir("a"), &create, ERR), 0);
	assert_non_null(strstr(ERR->msg, "cannot open its folder"));
	assert_true(me != 0 || seteuid(0) == 0);
	assert_int_equal(chmod(fixture_dir, 0700), 0);
	assert_size("a", SIZE);
	assert_int_equal(fixture_files(true), 1);
}

static void put_old(uid_t owner, gid_t group, mode_t mode)
{
	make_image("a", "limg", SIZE, NULL, NULL);
	assert_int_equal(chown(in_dir("a"), owner, group), 0);
	assert_int_equal(chmod(in_dir("a"), mode), 0);
}

static void assert_new(uid_t owner, gid_t group, mode_t mode)
{
	struct img_create_options create = replacing();
	struct stat sb;

	assert_ok(img_create(in_dir("a"), &create, ERR));
	assert_int_equal(stat(in_dir("a"), &sb), 0);
	assert_int_equal(sb.st_mode & 07777, mode);
	assert_int_equal(sb.st_uid, owner);
	assert_int_equal(sb.st_gid, group);
	fixture_files(true);
}

/* What is replaced keeps its owner, group and rights; what is new has the umask's. */
static void test_rights(void **state)
{
	mode_t mask = umask(027);
	uid_t me = geteuid();
	gid_t group = getegid();

	(void)state;
	assert_new(me, group, 0640);
	put_old(me, group, 0666);
	assert_new(me, group, 0666);
	put_old(me, group, 0404);
	assert_new(me, group, 0404);
	if (me == 0) {
		put_old(NOBODY, NOBODY - 1, 0660);
		assert_new(NOBODY, NOBODY - 1, 0660);
		/* by who has neither: what the group might do is not for his own group */
		put_old(0, NOBODY - 1, 0664);
		assert_int_equal(chmod(fixture_dir, 0777), 0);
		assert_int_equal(seteuid(NOBODY), 0);
		assert_new(NOBODY, group, 0604);
		assert_int_equal(seteuid(0), 0);
		assert_int_equal(chmod(fixture_dir, 0700), 0);
	}
	umask(mask);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_use),
		cmocka_unit_test(test_not_durable),
		cmocka_unit_test(test_unreadable_folder),
		cmocka_unit_test(test_rights),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
