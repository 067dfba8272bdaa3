/* SPDX-License-Identifier: MIT */
/* Which image a machine writes to, what it refuses to throw away, and what a throw-away overlay leaves behind: nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "disks.h"

#define DISK_BYTES (UINT64_C(1) << 20)

static char folder[] = "disks-XXXXXX";
static char path[64], scratch[64];

static void create(const char *format)
{
	struct img_create_options how = {
		.struct_size = sizeof(how), .format = format, .size_bytes = DISK_BYTES, .flags = IMG_CREATE_OVERWRITE
	};
	struct img_error err = { 0 };

	if (img_create(path, &how, &err) != 0)
		fail_msg("%s", err.msg);
}

static void open_or_fail(struct disk *disk, struct disk_options opts)
{
	struct img_error err = { 0 };

	opts.path = path;
	opts.scratch = scratch;
	if (disk_open(disk, &opts, &err) != 0 || disk_settle(disk, &err) != 0)
		fail_msg("%s", err.msg);
}

#define MSG_BYTES sizeof(((struct img_error *)NULL)->msg)

static int try_open(struct disk_options opts, char msg[MSG_BYTES])
{
	struct img_error err = { 0 };
	struct disk disk;
	int ret;

	opts.path = path;
	opts.scratch = scratch;
	ret = disk_open(&disk, &opts, &err);
	strcpy(msg, err.msg);
	if (ret == 0)
		disk_close(&disk, NULL);
	return ret;
}

static void put(struct disk *disk, int byte)
{
	struct img_error err = { 0 };
	uint8_t block[4096];

	memset(block, byte, sizeof(block));
	assert_int_equal(img_pwrite(disk->img, block, sizeof(block), 0, 0, &err), 0);
}

static int get(struct disk *disk)
{
	struct img_error err = { 0 };
	uint8_t byte;

	assert_int_equal(img_pread(disk->img, &byte, 1, 0, 0, &err), 0);
	return byte;
}

static unsigned files_in(const char *name)
{
	DIR *dir = opendir(name);
	unsigned nr = 0;

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));)
		nr += e->d_name[0] != '.';
	closedir(dir);
	return nr;
}

/* Content 1 with the snapshots "plain", and "vm", which holds a machine's state. */
static void prepare(void)
{
	struct img_error err = { 0 };
	struct disk disk;

	create("limg");
	open_or_fail(&disk, (struct disk_options){ 0 });
	put(&disk, 1);
	assert_int_equal(img_snapshot_create(disk.img, "plain", 0, &err), 0);
	assert_int_equal(img_vmstate_write(disk.img, "state", 5, 0, &err), 0);
	assert_int_equal(img_snapshot_create(disk.img, "vm", IMG_SNAPSHOT_VMSTATE, &err), 0);
	assert_int_equal(disk_close(&disk, &err), 0);
}

static void test_head(void **unused)
{
	struct disk disk;

	(void)unused;
	prepare();
	open_or_fail(&disk, (struct disk_options){ 0 });
	assert_true(disk.holds_machine);
	assert_false(disk.has_machine);
	assert_true(disk.has_uuid);
	assert_string_equal(disk.snapshot, "");
	assert_ptr_equal(disk_machine_image(&disk), disk.img);
	put(&disk, 2);
	assert_int_equal(disk_close(&disk, NULL), 0);
	open_or_fail(&disk, (struct disk_options){ .read_only = true });
	assert_int_equal(get(&disk), 2);
	assert_int_equal(disk_close(&disk, NULL), 0);
}

static void test_snapshot(void **unused)
{
	struct img_snapshot snap;
	struct disk disk;
	char msg[MSG_BYTES];

	(void)unused;
	prepare();
	/* the head is what the snapshots are: nothing is lost */
	open_or_fail(&disk, (struct disk_options){ .snapshot = "vm" });
	assert_true(disk.has_machine);
	assert_int_equal(disk_find_snapshot(&disk, "vm", &snap, NULL), 0);
	assert_memory_equal(snap.uuid, disk.snapshot_uuid, 16);
	assert_int_equal(disk_find_snapshot_uuid(&disk, snap.uuid, &snap, NULL), 0);
	assert_string_equal(snap.name, "vm");
	put(&disk, 3);
	assert_int_equal(disk_close(&disk, NULL), 0);
	/* now it is not */
	assert_int_equal(try_open((struct disk_options){ .snapshot = "vm" }, msg), IMG_E_REFUSED);
	assert_non_null(strstr(msg, "--revert"));
	open_or_fail(&disk, (struct disk_options){ 0 });
	assert_int_equal(get(&disk), 3);
	assert_int_equal(disk_close(&disk, NULL), 0);
	/* unless it is said so; opening alone throws nothing away */
	assert_int_equal(try_open((struct disk_options){ .snapshot = "plain", .revert = true }, msg), 0);
	open_or_fail(&disk, (struct disk_options){ 0 });
	assert_int_equal(get(&disk), 3);
	assert_int_equal(disk_close(&disk, NULL), 0);
	open_or_fail(&disk, (struct disk_options){ .snapshot = "plain", .revert = true });
	assert_false(disk.has_machine);
	assert_int_equal(get(&disk), 1);
	assert_int_equal(disk_close(&disk, NULL), 0);
	assert_int_equal(try_open((struct disk_options){ .snapshot = "nowhere" }, msg), IMG_E_NOENT);
	assert_int_equal(try_open((struct disk_options){ .snapshot = "nowhere", .revert = true }, msg), IMG_E_NOENT);
}

static void test_transient(void **unused)
{
	struct img_error err = { 0 };
	struct disk disk, second;
	char msg[MSG_BYTES];

	(void)unused;
	prepare();
	open_or_fail(&disk, (struct disk_options){ 0 });
	put(&disk, 4);
	assert_int_equal(disk_close(&disk, NULL), 0);
	open_or_fail(&disk, (struct disk_options){ .snapshot = "vm", .transient = true });
	assert_int_equal(files_in(scratch), 0);
	assert_true(disk.has_machine && disk.holds_machine);
	assert_ptr_equal(disk_machine_image(&disk), disk.base);
	assert_int_equal(get(&disk), 1);
	put(&disk, 5);
	assert_int_equal(img_snapshot_create(disk.img, "inside", 0, &err), 0);
	/* the image is only read: a second one beside it, and nobody who writes it */
	open_or_fail(&second, (struct disk_options){ .snapshot = "vm", .transient = true });
	assert_int_equal(get(&second), 1);
	assert_int_equal(disk_close(&second, NULL), 0);
	assert_int_equal(get(&disk), 5);
	assert_int_equal(disk_close(&disk, NULL), 0);
	assert_int_equal(files_in(scratch), 0);
	open_or_fail(&disk, (struct disk_options){ .transient = true });
	assert_int_equal(get(&disk), 4);
	assert_int_equal(disk_close(&disk, NULL), 0);
	assert_int_equal(try_open((struct disk_options){ .snapshot = "inside", .transient = true }, msg), IMG_E_NOENT);
}

/* Formats that are not ours: the disk alone. */
static void test_other_formats(void **unused)
{
	struct img_error err = { 0 };
	struct disk disk;
	char msg[MSG_BYTES];

	(void)unused;
	create("qcow2");
	open_or_fail(&disk, (struct disk_options){ 0 });
	assert_false(disk.holds_machine);
	put(&disk, 6);
	assert_int_equal(img_snapshot_create(disk.img, "q", 0, &err), 0);
	put(&disk, 7);
	assert_int_equal(disk_close(&disk, NULL), 0);
	/* it keeps no books of what its head is: only by order */
	assert_int_equal(try_open((struct disk_options){ .snapshot = "q" }, msg), IMG_E_REFUSED);
	open_or_fail(&disk, (struct disk_options){ .snapshot = "q", .transient = true });
	assert_int_equal(get(&disk), 6);
	assert_int_equal(disk_close(&disk, NULL), 0);
	open_or_fail(&disk, (struct disk_options){ .snapshot = "q", .revert = true });
	assert_int_equal(get(&disk), 6);
	assert_int_equal(disk_close(&disk, NULL), 0);
	/* raw is never guessed */
	create("raw");
	assert_int_equal(try_open((struct disk_options){ 0 }, msg), IMG_E_REFUSED);
	open_or_fail(&disk, (struct disk_options){ .format = "raw" });
	put(&disk, 8);
	assert_int_equal(disk_close(&disk, NULL), 0);
	open_or_fail(&disk, (struct disk_options){ .format = "raw", .transient = true });
	assert_int_equal(get(&disk), 8);
	put(&disk, 9);
	assert_int_equal(disk_close(&disk, NULL), 0);
	open_or_fail(&disk, (struct disk_options){ .format = "raw", .read_only = true });
	assert_int_equal(get(&disk), 8);
	assert_int_equal(disk_close(&disk, NULL), 0);
}

static int make_folder(void **unused)
{
	(void)unused;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/disk", folder);
	snprintf(scratch, sizeof(scratch), "%s/scratch", folder);
	return mkdir(scratch, 0700);
}

static int remove_folder(void **unused)
{
	(void)unused;
	unlink(path);
	rmdir(scratch);
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_head),
		cmocka_unit_test(test_snapshot),
		cmocka_unit_test(test_transient),
		cmocka_unit_test(test_other_formats),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
