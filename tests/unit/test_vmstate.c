/* SPDX-License-Identifier: MIT */
/*
 * Machine state as a runner uses it: written page by page, zeroed, kept in snapshots, loaded into memory by reading and
 * by mapping, and mapped memory that stays as it is whatever becomes of the image. The truth is a flat array; every
 * load is compared with it, both ways.
 */
#include "fault_env.h"

#include <fcntl.h>
#include <sys/mman.h>

#define VM	 (6 * MIB)
#define PAGE	 4096u
#define MAX_SNAP 4

struct flavour {
	const char *format, *options;
	bool maps; /* what is written in large pieces can be mapped */
};

static const struct flavour flavours[] = {
	{ "limg", NULL, true },
	{ "limg", "compression=zstd", true },
	{ "limg", "block_size=64K", true },
	{ "qcow2", NULL, true },
	{ "qcow2", "cluster_size=512", false },
	{ "qcow2", "cluster_size=16384,extended_l2=on", true },
};
#define NR_FLAVOURS (sizeof(flavours) / sizeof(flavours[0]))

static uint8_t *room(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

static struct img *make(const struct flavour *f)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = f->format,
		.size_bytes = 4 * MIB,
		.options = f->options,
		.flags = IMG_CREATE_OVERWRITE,
	};

	assert_ok(img_create(in_dir("vm"), &create, ERR));
	return open_image("vm", f->format, IMG_OPEN_WRITE);
}

/* No two pages alike, none of them compressible. */
static void noise(uint8_t *buf, uint64_t bytes, uint64_t seed)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t v = mix(seed * 0x100000001b3 + i);

		memcpy(buf + i, &v, bytes - i < 8 ? bytes - i : 8);
	}
}

static void put(struct img *img, uint8_t *truth, uint64_t bytes, uint64_t off, uint64_t seed)
{
	noise(truth + off, bytes, seed);
	assert_ok(img_vmstate_write(img, truth + off, bytes, off, ERR));
}

static void put_zeros(struct img *img, uint8_t *truth, uint64_t bytes, uint64_t off)
{
	memset(truth + off, 0, bytes);
	assert_ok(img_vmstate_zero(img, bytes, off, ERR));
}

/* How much of [p, p + bytes) is mapped from a file of this name. */
static uint64_t mapped_bytes(const uint8_t *p, uint64_t bytes, const char *name)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[1024];
	uint64_t sum = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		unsigned long long from, to;

		if (!strstr(line, name) || sscanf(line, "%llx-%llx", &from, &to) != 2)
			continue;
		from = from > (uintptr_t)p ? from : (uintptr_t)p;
		to = to < (uintptr_t)p + bytes ? to : (uintptr_t)p + bytes;
		sum += from < to ? to - from : 0;
	}
	fclose(f);
	return sum;
}

/* Whole pages of the range, by reading and by mapping, over memory that has other content. */
static void assert_loads(struct img *img, const char *snap, const uint8_t *truth, uint64_t size, uint64_t bytes,
			 uint64_t off)
{
	uint8_t *mem = room(bytes + 2 * PAGE);
	uint64_t have = 0;

	assert_ok(img_vmstate_size(img, snap, &have, ERR));
	assert_int_equal(have, size);
	for (unsigned flags = 0; flags <= IMG_VMSTATE_MAP; flags++) {
		memset(mem, 0xa5, bytes + 2 * PAGE);
		assert_ok(img_vmstate_load(img, snap, mem + PAGE, bytes, off, flags, ERR));
		assert_memory_equal(mem + PAGE, truth + off, bytes);
		/* Over what was mapped before, and copied: our own writes are gone. */
		memset(mem + PAGE, 0x5a, bytes / 2);
		assert_ok(img_vmstate_load(img, snap, mem + PAGE, bytes, off, flags, ERR));
		assert_memory_equal(mem + PAGE, truth + off, bytes);
		for (unsigned i = 0; i < PAGE; i++)
			assert_true(mem[i] == 0xa5 && mem[PAGE + bytes + i] == 0xa5);
	}
	assert_ok(img_vmstate_verify(img, snap, bytes, off, ERR));
	munmap(mem, bytes + 2 * PAGE);
}

/* ---- zeros ------------------------------------------------------------------------------------------------------- */

static void zeros(void **state)
{
	uint8_t *truth = malloc(VM), *have = malloc(VM);
	uint64_t size;

	(void)state;
	assert_non_null(truth);
	assert_non_null(have);
	for (size_t i = 0; i < NR_FLAVOURS; i++) {
		struct img *img = make(&flavours[i]);

		memset(truth, 0, VM);
		put_zeros(img, truth, 0, MIB); /* nothing */
		assert_ok(img_vmstate_size(img, NULL, &size, ERR));
		assert_int_equal(size, 0);
		put_zeros(img, truth, 1000, MIB); /* grows */
		assert_ok(img_vmstate_size(img, NULL, &size, ERR));
		assert_int_equal(size, MIB + 1000);
		put(img, truth, 2 * MIB, 500, 1);
		put_zeros(img, truth, 700000, 12345);
		put_zeros(img, truth, 10, MIB + 3);
		put_zeros(img, truth, VM - 2 * MIB, 2 * MIB); /* across the end */
		assert_ok(img_vmstate_size(img, NULL, &size, ERR));
		assert_int_equal(size, VM);
		assert_ok(img_vmstate_read(img, NULL, have, VM, 0, ERR));
		assert_memory_equal(have, truth, VM);
		assert_loads(img, NULL, truth, VM, VM, 0);
		put(img, truth, 5000, 3 * MIB - 1000, 2); /* data again */
		assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
		put_zeros(img, have, VM, 0);
		assert_loads(img, "s", truth, VM, VM, 0);
		assert_loads(img, NULL, have, VM, VM, 0);
		assert_int_equal(img_vmstate_zero(img, UINT64_MAX, 1, NULL), IMG_E_INVALID);
		assert_int_equal(img_vmstate_zero(img, 1, INT64_MAX - 1, NULL), IMG_E_LIMIT);
		close_image(img);
		img = open_image("vm", flavours[i].format, 0);
		assert_loads(img, "s", truth, VM, VM, 0);
		assert_int_equal(img_vmstate_zero(img, 1, 0, NULL), IMG_E_READONLY);
		close_image(img);
	}
	free(truth);
	free(have);
}

/* Zeroed state holds no space: neither what was there, nor what is zero from the start. */
static void zeros_take_no_space(void **state)
{
	struct flavour plain = { "limg", NULL, true };
	uint8_t *truth = malloc(VM);
	struct img *img = make(&plain);
	struct img_info info;
	struct img_snapshot list[2];
	uint64_t empty;
	size_t nr;

	(void)state;
	assert_non_null(truth);
	assert_ok(img_info(img, &info, ERR));
	empty = info.used_bytes;
	put(img, truth, VM, 0, 1);
	assert_ok(img_snapshot_create(img, "a", IMG_SNAPSHOT_VMSTATE, ERR));
	assert_ok(img_info(img, &info, ERR));
	assert_true(info.used_bytes > empty + VM);
	put_zeros(img, truth, VM, 0);
	assert_ok(img_vmstate_zero(img, UINT64_C(64) << 30, VM, ERR)); /* 64 GiB */
	assert_ok(img_snapshot_create(img, "b", IMG_SNAPSHOT_VMSTATE, ERR));
	assert_ok(img_snapshot_list(img, list, 2, &nr, ERR));
	assert_int_equal(nr, 2);
	assert_int_equal(list[0].vmstate_data_bytes, VM);
	assert_int_equal(list[1].vmstate_data_bytes, 0);
	assert_ok(img_snapshot_delete(img, "a", ERR));
	assert_ok(img_info(img, &info, ERR));
	assert_true(info.used_bytes < empty + 64 * KIB);
	assert_loads(img, "b", truth, VM + (UINT64_C(64) << 30), VM, 0);
	close_image(img);
	free(truth);
}

/* Growing by zeros alone leaves no mapping behind, and yet it is part of what limg keeps. */
static void zeros_are_kept(void **state)
{
	struct img *img = make(&flavours[0]);
	uint64_t size;

	(void)state;
	assert_ok(img_vmstate_zero(img, 5000, 100000, ERR));
	close_image(img);
	img = open_image("vm", "limg", IMG_OPEN_WRITE);
	assert_ok(img_vmstate_size(img, NULL, &size, ERR));
	assert_int_equal(size, 105000);
	close_image(img);
}

/* An image that is a snapshot has no working state, and others by their names. */
static void of_a_snapshot(void **state)
{
	struct img_open_options open = { .struct_size = sizeof(open), .snapshot = "s" };
	uint8_t *truth = malloc(VM);
	uint64_t size;

	(void)state;
	assert_non_null(truth);
	for (size_t i = 0; i < NR_FLAVOURS; i++) {
		struct img *img = make(&flavours[i]), *view;

		put(img, truth, VM, 0, 1);
		assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
		assert_ok(img_snapshot_open(img, "s", &view, ERR));
		assert_loads(view, "s", truth, VM, VM, 0);
		assert_ok(img_vmstate_size(view, NULL, &size, ERR));
		assert_int_equal(size, 0);
		close_image(view);
		close_image(img);
		assert_ok(img_open(in_dir("vm"), &open, &img, ERR));
		assert_loads(img, "s", truth, VM, VM, 0);
		assert_ok(img_vmstate_size(img, NULL, &size, ERR));
		assert_int_equal(size, 0);
		assert_int_equal(img_vmstate_verify(img, NULL, 1, 0, NULL), IMG_E_INVALID);
		close_image(img);
	}
	free(truth);
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static void bad_arguments(void **state)
{
	uint8_t *truth = malloc(VM), *mem = room(VM);
	struct img *img = make(&flavours[0]);

	(void)state;
	assert_non_null(truth);
	put(img, truth, VM, 0, 1);
	assert_int_equal(img_vmstate_load(NULL, NULL, mem, PAGE, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, mem + 1, PAGE, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, mem, PAGE + 1, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, mem, PAGE, 512, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, NULL, PAGE, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, mem, PAGE, 0, 2, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, mem, VM, PAGE, IMG_VMSTATE_MAP, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, NULL, mem, PAGE, UINT64_MAX - PAGE + 1, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_load(img, "none", mem, PAGE, 0, 0, NULL), IMG_E_NOENT);
	assert_int_equal(img_vmstate_load(img, "", mem, PAGE, 0, 0, NULL), IMG_E_INVALID);
	assert_ok(img_vmstate_load(img, NULL, mem, 0, VM, 0, ERR));
	assert_int_equal(img_vmstate_verify(img, NULL, 1, VM, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_verify(img, NULL, UINT64_MAX, 1, NULL), IMG_E_INVALID);
	assert_int_equal(img_vmstate_verify(img, "none", 0, 0, NULL), IMG_E_NOENT);
	assert_int_equal(mem[0], 0);
	close_image(img);
	make_image("raw", "raw", MIB, NULL, NULL);
	img = open_image("raw", "raw", IMG_OPEN_WRITE);
	assert_int_equal(img_vmstate_load(img, NULL, mem, PAGE, 0, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_vmstate_verify(img, NULL, PAGE, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_vmstate_zero(img, PAGE, 0, NULL), IMG_E_UNSUPPORTED);
	close_image(img);
	munmap(mem, VM);
	free(truth);
}

static unsigned touched_pages(const uint8_t *p, uint64_t bytes)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	unsigned nr = 0;

	assert_true(fd >= 0);
	for (uint64_t i = 0; i < bytes / PAGE; i++) {
		uint64_t entry = 0;

		assert_int_equal(pread(fd, &entry, 8, (off_t)(((uintptr_t)p / PAGE + i) * 8)), 8);
		nr += (unsigned)(entry >> 63);
	}
	close(fd);
	return nr;
}

/* Large runs are mapped and not touched, holes are nothing, small runs are read. What is written there stays there. */
static void maps(void **state)
{
	uint8_t *truth = calloc(1, VM), *mem = room(VM);

	(void)state;
	assert_non_null(truth);
	for (size_t i = 0; i < NR_FLAVOURS; i++) {
		struct img *img = make(&flavours[i]);
		uint64_t mapped;

		memset(truth, 0, VM);
		put_zeros(img, truth, VM, 0);
		put(img, truth, 2 * MIB, MIB, 1);
		put(img, truth, PAGE, 5 * MIB, 2);
		assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
		close_image(img);
		img = open_image("vm", flavours[i].format, i % 2 ? IMG_OPEN_DIRECT : 0);
		assert_ok(img_vmstate_load(img, "s", mem, VM, 0, IMG_VMSTATE_MAP, ERR));
		mapped = mapped_bytes(mem, VM, in_dir("vm"));
		assert_true(!flavours[i].maps || mapped >= 3 * MIB / 2);
		assert_true(mapped <= 2 * MIB + 128 * KIB);
		if (flavours[i].maps)
			assert_true(touched_pages(mem, VM) <= (2 * MIB - mapped) / PAGE + 16);
		assert_memory_equal(mem, truth, VM);
		memset(mem + MIB, 7, 2 * MIB);
		assert_loads(img, "s", truth, VM, VM, 0);
		close_image(img);
		assert_int_equal(mem[MIB], 7); /* outlives the image */
		assert_memory_equal(mem + 3 * MIB, truth + 3 * MIB, VM - 3 * MIB);
	}
	munmap(mem, VM);
	free(truth);
}

/* Random changes, snapshots, reverts, deletions against flat arrays. */
static void random_life(void **state)
{
	static uint8_t *truth[MAX_SNAP + 1];
	uint64_t size[MAX_SNAP + 1] = { 0 };

	(void)state;
	for (unsigned k = 0; k <= MAX_SNAP; k++)
		assert_non_null(truth[k] = malloc(VM));
	for (size_t i = 0; i < NR_FLAVOURS; i++) {
		struct img *img = make(&flavours[i]);
		bool there[MAX_SNAP] = { false };

		memset(truth[MAX_SNAP], 0, VM);
		size[MAX_SNAP] = 0;
		for (unsigned round = 0; round < 56; round++) {
			uint64_t bytes = random_below(random_below(2) ? 20000 : 2 * MIB) + 1,
				 off = random_below(VM - bytes);
			unsigned k = (unsigned)random_below(MAX_SNAP), what = (unsigned)random_below(10);
			char name[2] = { (char)('a' + k), '\0' };

			if (random_below(2)) {
				off = off / PAGE * PAGE;
				bytes = (bytes + PAGE - 1) / PAGE * PAGE;
				bytes = bytes > VM - off ? VM - off : bytes;
			}
			if (what < 3)
				put(img, truth[MAX_SNAP], bytes, off, round);
			else if (what < 6)
				put_zeros(img, truth[MAX_SNAP], bytes, off);
			if (what < 6 && off + bytes > size[MAX_SNAP])
				size[MAX_SNAP] = off + bytes;
			if (what == 6 && there[k])
				assert_ok(img_snapshot_delete(img, name, ERR));
			if (what == 6 || (what == 7 && !there[k])) {
				assert_ok(img_snapshot_create(img, name, IMG_SNAPSHOT_VMSTATE, ERR));
				there[k] = true;
				memcpy(truth[k], truth[MAX_SNAP], VM);
				size[k] = size[MAX_SNAP];
			}
			if (what == 8 && there[k]) {
				assert_ok(img_snapshot_revert(img, name, ERR));
				memcpy(truth[MAX_SNAP], truth[k], VM);
				size[MAX_SNAP] = size[k];
			}
			if (what == 9) {
				bytes = random_below(size[MAX_SNAP] + 1);
				assert_ok(img_vmstate_resize(img, bytes, ERR));
				memset(truth[MAX_SNAP] + bytes, 0, VM - bytes);
				size[MAX_SNAP] = bytes;
			}
			if (round % 8 == 7) {
				off = size[MAX_SNAP] / PAGE * PAGE;
				if (off > 0)
					assert_loads(img, NULL, truth[MAX_SNAP], size[MAX_SNAP], off, 0);
				if (there[k] && size[k] >= 4 * PAGE)
					assert_loads(img, name, truth[k], size[k], size[k] / PAGE * PAGE - 2 * PAGE,
						     PAGE);
			}
		}
		close_image(img);
		img = open_image("vm", flavours[i].format, 0);
		for (unsigned k = 0; k < MAX_SNAP; k++)
			if (there[k] && size[k] >= PAGE)
				assert_loads(img, (char[]){ (char)('a' + k), '\0' }, truth[k], size[k],
					     size[k] / PAGE * PAGE, 0);
		close_image(img);
	}
	for (unsigned k = 0; k <= MAX_SNAP; k++)
		free(truth[k]);
}

/* ---- the life of a machine's image ------------------------------------------------------------------------------- */

/* After a snapshot, writing some pages costs some blocks, and the older state is as it was. */
static void incremental(void **state)
{
	struct flavour kinds[] = { { "limg", NULL, true }, { "limg", "compression=zstd", true } };
	uint8_t *old = calloc(1, VM), *now = calloc(1, VM);

	(void)state;
	assert_non_null(old);
	assert_non_null(now);
	for (unsigned i = 0; i < 2; i++) {
		struct img *img = make(&kinds[i]);
		struct img_info before, after;

		put(img, old, VM, 0, 1);
		assert_ok(img_snapshot_create(img, "old", IMG_SNAPSHOT_VMSTATE, ERR));
		memcpy(now, old, VM);
		assert_ok(img_info(img, &before, ERR));
		for (unsigned k = 0; k < 100; k++)
			put(img, now, PAGE, random_below(VM / PAGE) * PAGE, 1000 + k);
		assert_ok(img_snapshot_create(img, "now", IMG_SNAPSHOT_VMSTATE, ERR));
		assert_ok(img_info(img, &after, ERR));
		assert_true(after.used_bytes - before.used_bytes <= 100 * PAGE + 20 * PAGE);
		assert_loads(img, "old", old, VM, VM, 0);
		assert_loads(img, "now", now, VM, VM, 0);
		assert_ok(img_snapshot_revert(img, "old", ERR));
		assert_loads(img, NULL, old, VM, VM, 0);
		assert_ok(img_snapshot_delete(img, "old", ERR));
		assert_loads(img, "now", now, VM, VM, 0);
		close_image(img);
	}
	free(old);
	free(now);
}

/* A runner: pages mapped from the snapshot that it runs from, changed pages its own. */
struct runner {
	struct img *img;
	uint8_t *mem, *truth;
};

static void runner_touch(struct runner *r, unsigned nr, uint64_t seed)
{
	for (unsigned k = 0; k < nr; k++) {
		uint64_t off = random_below(VM / PAGE) * PAGE;

		noise(r->truth + off, PAGE, seed + k);
		memcpy(r->mem + off, r->truth + off, PAGE);
		assert_ok(img_vmstate_write(r->img, r->mem + off, PAGE, off, ERR));
	}
	for (unsigned k = 0; k < nr / 4; k++) {
		uint64_t off = random_below(VM / PAGE) * PAGE;

		memset(r->mem + off, 0, PAGE);
		put_zeros(r->img, r->truth, PAGE, off);
	}
}

/* Everything that is free in the file is written over, as far as it is free for the disk. */
static void use_up_space(struct img *img, uint64_t seed)
{
	write_pattern(img, 0, 4 * MIB, seed);
	assert_ok(img_flush(img, IMG_FLUSH_CHECKPOINT, ERR));
}

/*
 * Memory that is mapped from a snapshot which is deleted: what the working state shares with it is not touched in the
 * file, however much of it is freed, punched and used again.
 */
static void mapped_survives_deletion(void **state)
{
	(void)state;
	for (size_t i = 0; i < NR_FLAVOURS; i++) {
		struct runner r = { make(&flavours[i]), room(VM), malloc(VM) };
		uint64_t file_pages;

		assert_non_null(r.truth);
		put(r.img, r.truth, VM, 0, 1);
		assert_ok(img_snapshot_create(r.img, "a", IMG_SNAPSHOT_VMSTATE, ERR));
		runner_touch(&r, 50, 100); /* a second state, of which more is the head's alone */
		assert_ok(img_snapshot_create(r.img, "b", IMG_SNAPSHOT_VMSTATE, ERR));
		put(r.img, r.truth, VM, 0, 2);
		use_up_space(r.img, 3);
		assert_ok(img_vmstate_read(r.img, "b", r.truth, VM, 0, ERR));
		assert_ok(img_snapshot_revert(r.img, "b", ERR));
		assert_ok(img_vmstate_load(r.img, "b", r.mem, VM, 0, IMG_VMSTATE_MAP, ERR));
		file_pages = mapped_bytes(r.mem, VM, in_dir("vm"));
		assert_true(i > 1 || file_pages > VM / 8); /* large blocks are not mapped beside changes */
		for (unsigned round = 0; round < 6; round++) {
			char name[16], last[16];

			runner_touch(&r, 30, 1000 * round);
			snprintf(name, sizeof(name), "s%u", round);
			snprintf(last, sizeof(last), "s%u", round - 1);
			assert_ok(img_snapshot_create(r.img, name, IMG_SNAPSHOT_VMSTATE, ERR));
			if (round == 1)
				assert_ok(img_snapshot_delete(r.img, "a", ERR));
			if (round == 2)
				assert_ok(img_snapshot_delete(r.img, "b", ERR));
			if (round >= 3)
				assert_ok(img_snapshot_delete(r.img, last, ERR));
			use_up_space(r.img, 10 + round);
			assert_memory_equal(r.mem, r.truth, VM);
		}
		close_image(r.img); /* punches what is free, cuts the file */
		assert_memory_equal(r.mem, r.truth, VM);
		r.img = open_image("vm", flavours[i].format, 0);
		assert_loads(r.img, "s5", r.truth, VM, VM, 0);
		close_image(r.img);
		munmap(r.mem, VM);
		free(r.truth);
	}
}

/* ---- damage ------------------------------------------------------------------------------------------------------ */

/* Offset in the file of the first occurrence. */
static uint64_t find_in_file(const char *path, const uint8_t *bytes, size_t nr)
{
	int fd = open(path, O_RDONLY);
	struct stat sb;
	uint8_t *map, *at;
	uint64_t off;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &sb), 0);
	map = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_true(map != MAP_FAILED);
	at = memmem(map, (size_t)sb.st_size, bytes, nr);
	assert_non_null(at);
	off = (uint64_t)(at - map);
	munmap(map, (size_t)sb.st_size);
	close(fd);
	return off;
}

/* A flipped bit: reading finds it, mapping cannot, verifying does and says where. */
static void damage(void **state)
{
	uint8_t *truth = malloc(VM), *mem = room(VM), byte;
	struct img *img = make(&flavours[0]);
	uint64_t at;
	int fd;

	(void)state;
	assert_non_null(truth);
	put(img, truth, VM, 0, 1);
	assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
	close_image(img);
	at = find_in_file(in_dir("vm"), truth + 3 * MIB + 2 * PAGE, PAGE);
	fd = open(in_dir("vm"), O_RDWR);
	assert_int_equal(pread(fd, &byte, 1, (off_t)at + 100), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)at + 100), 1);
	close(fd);
	img = open_image("vm", "limg", 0);
	assert_int_equal(img_vmstate_load(img, "s", mem, VM, 0, 0, ERR), IMG_E_CORRUPT);
	assert_int_equal(fixture_error.offset, at);
	assert_ok(img_vmstate_load(img, "s", mem, VM, 0, IMG_VMSTATE_MAP, ERR));
	assert_int_equal(mem[3 * MIB + 2 * PAGE + 100], byte);
	assert_ok(img_vmstate_verify(img, "s", 3 * MIB, 0, ERR));
	assert_ok(img_vmstate_verify(img, "s", 2 * MIB, 3 * MIB + 3 * PAGE, ERR));
	assert_int_equal(img_vmstate_verify(img, "s", VM, 0, ERR), IMG_E_CORRUPT);
	assert_int_equal(fixture_error.offset, at);
	close_image(img);
	munmap(mem, VM);
	free(truth);
}

/* A file that is shorter than it says is an error, not a page that kills when it is touched. */
static void cut_file(void **state)
{
	uint8_t *truth = malloc(VM), *mem = room(VM);
	struct img *img = make(&flavours[0]);
	uint64_t at;
	int ret;

	(void)state;
	assert_non_null(truth);
	put(img, truth, VM, 0, 1);
	assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
	close_image(img);
	at = find_in_file(in_dir("vm"), truth + 3 * MIB, PAGE);
	img = open_image("vm", "limg", 0);
	assert_ok(img_vmstate_load(img, "s", mem, VM, 0, IMG_VMSTATE_MAP, ERR)); /* the tree is in memory now */
	assert_int_equal(truncate(in_dir("vm"), (off_t)at + PAGE / 2), 0);
	ret = img_vmstate_load(img, "s", mem, VM, 0, IMG_VMSTATE_MAP, ERR);
	assert_true(ret == IMG_E_CORRUPT || ret == IMG_E_IO);
	ret = img_vmstate_verify(img, "s", VM, 0, ERR);
	assert_true(ret == IMG_E_CORRUPT || ret == IMG_E_IO);
	close_image(img);
	munmap(mem, VM);
	free(truth);
}

/* A file that cannot be mapped is read, and every read may fail. */
static void faults(void **state)
{
	uint8_t *truth = calloc(1, VM), *mem = room(VM);

	(void)state;
	assert_non_null(truth);
	for (size_t i = 0; i < NR_FLAVOURS; i++) {
		struct img *img = make(&flavours[i]);
		uint64_t n, failed = 0;

		memset(truth, 0, VM);
		put_zeros(img, truth, VM, 0);
		put(img, truth, 2 * MIB, MIB, 1);
		put(img, truth, PAGE, 5 * MIB, 2);
		assert_ok(img_snapshot_create(img, "s", IMG_SNAPSHOT_VMSTATE, ERR));
		close_image(img);
		for (n = 1;; n = next_call(n)) {
			int ret;

			img = open_faulty("vm", flavours[i].format, 0);
			fault_plan_arm(&fault_env_plan, 1u << FAULT_READ | 1u << FAULT_STAT, n, EIO, true);
			ret = img_vmstate_load(img, "s", mem, VM, 0, IMG_VMSTATE_MAP, ERR);
			if (ret == 0)
				assert_memory_equal(mem, truth, VM);
			else
				assert_int_equal(ret, IMG_E_IO);
			failed += fault_env_plan.failed;
			assert_true((ret == 0) == (fault_env_plan.failed == 0));
			fault_plan_disarm(&fault_env_plan);
			close_image(img);
			if (ret == 0)
				break;
		}
		assert_int_equal(mapped_bytes(mem, VM, in_dir("vm")), 0);
		assert_true(failed > 0 && n > 3);
	}
	munmap(mem, VM);
	free(truth);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zeros),
		cmocka_unit_test(zeros_take_no_space),
		cmocka_unit_test(zeros_are_kept),
		cmocka_unit_test(of_a_snapshot),
		cmocka_unit_test(bad_arguments),
		cmocka_unit_test(maps),
		cmocka_unit_test(random_life),
		cmocka_unit_test(incremental),
		cmocka_unit_test(mapped_survives_deletion),
		cmocka_unit_test(damage),
		cmocka_unit_test(cut_file),
		cmocka_unit_test(faults),
	};

	return cmocka_run_group_tests(tests, fault_env_setup, fault_env_teardown);
}
