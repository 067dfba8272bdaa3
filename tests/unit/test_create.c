/* SPDX-License-Identifier: MIT */
/* New images on the host's files: what is replaced, when, and what stays where it fails. */
#include "image_fixture.h"

#include "image.h"

#define SIZE MIB

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_use),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
