/* SPDX-License-Identifier: MIT */
/*
 * streamOptimized: every byte of what is written is where the format wants it; both dialects are read; what is cut off,
 * or leads elsewhere than its markers say, is named. format-spec/vmdk-stream.md has the rules.
 */
#include "image_fixture.h"

#include <zlib.h>

#include "codec.h"
#include "mem.h"
#include "sequence.h"
#include "stream.h"

#define SECTOR UINT64_C(512)
#define GRAIN  (64 * KIB)
#define TABLE  (512 * GRAIN)
#define SIZE   (2 * TABLE + 5 * GRAIN + 3 * SECTOR) /* 131715 sectors: three tables, and a grain that is cut */

static const struct img_driver stream_driver = { .name = "vmdk", .kind = DRIVER_FORMAT, .sequence = &vmdk_sequence };

/* Grains of the source that hold something: first and last of the disk, at both sides of a border between tables. */
static const uint64_t grains[] = { 0, 1, 300, 511, 512, 1024, 1027, 1028, 1029 };
#define NR_GRAINS (sizeof(grains) / sizeof(grains[0]))

static struct img *make_source(void)
{
	struct img *src;

	make_image("src", "limg", SIZE, NULL, NULL);
	src = open_image("src", "limg", IMG_OPEN_WRITE);
	for (size_t i = 0; i < NR_GRAINS; i++)
		if (grains[i] * GRAIN < SIZE)
			write_pattern(src, grains[i] * GRAIN, 512, i + 1);
	write_pattern(src, GRAIN, GRAIN, 99); /* a whole one */
	return src;
}

static uint64_t last_grain(void)
{
	return SIZE / GRAIN;
}

/* Writes src to a new file in memory. */
static struct node *write_stream(struct img *src, const char *options, unsigned threads)
{
	struct driver_create args = { .size_bytes = img_size(src), .options = options };
	struct img_copy_options opts = { .struct_size = sizeof(opts), .threads = threads };
	struct node *file;

	assert_ok(mem_node_new("stream", &file, ERR));
	assert_ok(sequence_write(&stream_driver, file, &args, src, &opts, ERR));
	return file;
}

static uint8_t *bytes_of(struct node *file)
{
	uint8_t *buf = malloc(node_size(file));

	assert_non_null(buf);
	assert_ok(node_pread(file, buf, node_size(file), 0, 0, ERR));
	return buf;
}

/* A node whose disk is the extent, for messages. */
static struct node *shell(void)
{
	static struct node node;

	node.path = (char *)(uintptr_t) "stream";
	return &node;
}

static int open_stream(struct node *file, struct vmdk_stream **out)
{
	struct vmdk_header h;
	int ret = vmdk_header_load(file, 0, &h, ERR);

	*out = NULL;
	return ret ? ret : vmdk_stream_open(shell(), file, &h, NULL, out, ERR);
}

static void assert_reads(struct node *file, struct img *src)
{
	uint64_t size = img_size(src);
	uint8_t *want = read_all(src), *got = malloc(size);
	struct vmdk_stream *s;

	assert_non_null(got);
	assert_ok(open_stream(file, &s));
	assert_int_equal(vmdk_stream_size(s), size);
	assert_ok(vmdk_stream_pread(s, got, size, 0, ERR));
	assert_memory_equal(got, want, size);
	/* in small steps too */
	for (uint64_t off = 300; off + 700 <= 3 * GRAIN; off += 700) {
		assert_ok(vmdk_stream_pread(s, got, 700, off, ERR));
		assert_memory_equal(got, want + off, 700);
	}
	vmdk_stream_free(s);
	free(want);
	free(got);
}

/* ---- what is written --------------------------------------------------------------------------------------------- */

static bool holds_data(uint64_t grain)
{
	for (size_t i = 0; i < NR_GRAINS; i++)
		if (grains[i] == grain && grain * GRAIN < SIZE)
			return true;
	return false;
}

/* Goes through the file from front to back: nothing is anywhere but where it has to be. */
static void is_written_byte_for_byte(void **state)
{
	static const unsigned threads[] = { 1, 4 };
	struct img *src = make_source();
	uint8_t *content = calloc(1, SIZE + GRAIN), *grain = malloc(GRAIN);

	(void)state;
	assert_true(content && grain);
	assert_ok(img_pread(src, content, SIZE, 0, 0, ERR));
	for (size_t t = 0; t < 2; t++) {
		struct node *file = write_stream(src, "subformat=streamOptimized", threads[t]);
		uint64_t size = node_size(file), off = 65536, at[3 * 512] = { 0 }, tables[3] = { 0 };
		uint8_t *d = bytes_of(file);

		/* header */
		assert_memory_equal(d, "KDMV", 4);
		assert_int_equal(le32_at(d, 4), 3);
		assert_int_equal(le32_at(d, 8), 0x30001);
		assert_int_equal(le64_at(d, 12), SIZE / SECTOR);
		assert_int_equal(le64_at(d, 20), 128);
		assert_int_equal(le64_at(d, 28), 1);
		assert_int_equal(le64_at(d, 36), 20);
		assert_int_equal(le32_at(d, 44), 512);
		assert_int_equal(le64_at(d, 48), 0);
		assert_true(le64_at(d, 56) == UINT64_MAX);
		assert_int_equal(le64_at(d, 64), 128);
		assert_memory_equal(d + 72, "\0\n \r\n\1\0", 7);
		/* descriptor */
		assert_memory_equal(d + 512, "# Disk DescriptorFile\n", 22);
		assert_non_null(strstr((char *)d + 512, "\ncreateType=\"streamOptimized\"\n"));
		assert_non_null(strstr((char *)d + 512, "\nparentCID=ffffffff\n"));
		assert_non_null(strstr((char *)d + 512, "\nRW 131715 SPARSE \""));
		assert_null(strstr((char *)d + 512, "\n\n\n"));
		/* grains and tables */
		for (uint64_t g = 0; g <= last_grain(); g++) {
			if (g % 512 == 0 && g > 0) {
				uint64_t table = g / 512 - 1;

				assert_int_equal(le64_at(d, off), 4);
				assert_int_equal(le32_at(d, off + 8), 0);
				assert_int_equal(le32_at(d, off + 12), 1);
				tables[table] = off + 512;
				for (uint64_t i = 0; i < 512; i++)
					assert_int_equal(le32_at(d, off + 512 + 4 * i) * SECTOR, at[table * 512 + i]);
				off += 512 + 2048;
			}
			if (!holds_data(g))
				continue;
			at[g] = off;
			assert_int_equal(le64_at(d, off), g * 128);
			uLongf n = GRAIN;
			assert_int_equal(uncompress(grain, &n, d + off + 12, le32_at(d, off + 8)), Z_OK);
			assert_int_equal(n, GRAIN);
			assert_memory_equal(grain, content + g * GRAIN, GRAIN);
			for (uint64_t end = off + 12 + le32_at(d, off + 8); end % 512 != 0; end++)
				assert_int_equal(d[end], 0);
			off = (off + 12 + le32_at(d, off + 8) + 511) / 512 * 512;
		}
		tables[2] = off + 512;
		off += 512 + 2048;
		/* directory, footer, end */
		assert_int_equal(le64_at(d, off), 1);
		assert_int_equal(le32_at(d, off + 8), 0);
		assert_int_equal(le32_at(d, off + 12), 2);
		for (uint64_t i = 0; i < 128; i++)
			assert_int_equal(le32_at(d, off + 512 + 4 * i) * SECTOR, i < 3 ? tables[i] : 0);
		assert_int_equal(off + 2 * SECTOR + 3 * SECTOR, size);
		assert_int_equal(le64_at(d, size - 1536), 1);
		assert_int_equal(le32_at(d, size - 1536 + 8), 0);
		assert_int_equal(le32_at(d, size - 1536 + 12), 3);
		assert_int_equal(le64_at(d, size - 1024 + 56) * SECTOR, off + 512);
		memset(d + size - 1024 + 56, 0xff, 8);
		assert_memory_equal(d + size - 1024, d, 512);
		for (uint64_t i = size - 512; i < size; i++)
			assert_int_equal(d[i], 0);
		assert_reads(file, src);
		free(d);
		assert_ok(node_close(file, ERR));
	}
	free(grain);
	free(content);
	close_image(src);
	fixture_files(true);
}

static void empty_and_sizes(void **state)
{
	static const uint64_t sizes[] = { 512, GRAIN, GRAIN + 512, TABLE, TABLE + 512, UINT64_C(64) << 40 };
	struct vmdk_options o;

	(void)state;
	assert_ok(vmdk_options_parse("subformat=streamOptimized", &o, ERR));
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct driver_create args = { .size_bytes = sizes[i] };
		struct img_measure_args measure = { .size_bytes = sizes[i] };
		struct img_check_result found = { 0 };
		struct img_measure told;
		struct vmdk_stream *s;
		struct node *file;
		uint8_t last[512];

		assert_ok(mem_node_new("stream", &file, ERR));
		assert_ok(vmdk_stream_create(file, &args, &o, ERR));
		assert_ok(vmdk_stream_measure(&measure, &o, &told, ERR));
		assert_true(told.required_bytes >= node_size(file));
		assert_true(told.fully_allocated_bytes > sizes[i]);
		assert_ok(open_stream(file, &s));
		assert_int_equal(vmdk_stream_size(s), sizes[i]);
		assert_ok(vmdk_stream_pread(s, last, 512, sizes[i] - 512, ERR));
		if (sizes[i] <= TABLE + 512)
			assert_ok(vmdk_stream_check(s, 0, NULL, NULL, NULL, &found, ERR));
		assert_int_equal(found.damage, 0);
		vmdk_stream_free(s);
		assert_ok(node_close(file, ERR));
	}
	for (int i = 0; i < 2; i++) {
		struct driver_create args = { .size_bytes = i ? (UINT64_C(64) << 40) + 512 : 0 };
		struct node *file;

		assert_ok(mem_node_new("stream", &file, ERR));
		assert_int_equal(vmdk_stream_create(file, &args, &o, ERR), IMG_E_INVALID);
		assert_ok(node_close(file, ERR));
	}
}

static void options_change_it(void **state)
{
	static const char *const options[] = {
		"subformat=streamOptimized,grain_size=4K",
		"subformat=streamOptimized,grain_size=2M,compression=zlib:1",
		"subformat=streamOptimized,compression=zlib:9,adapter_type=ide,hwversion=13",
		"subformat=streamOptimized,compression=zlib",
	};
	struct img *src = make_source();
	struct vmdk_options o;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		struct node *file = write_stream(src, options[i], 3);

		assert_reads(file, src);
		assert_ok(node_close(file, ERR));
	}
	assert_int_equal(vmdk_options_parse("compression=zlib", &o, ERR), IMG_E_INVALID);
	assert_int_equal(vmdk_options_parse("subformat=streamOptimized,compression=zstd", &o, ERR), IMG_E_INVALID);
	assert_int_equal(vmdk_options_parse("subformat=streamOptimized,compression=none", &o, ERR), IMG_E_INVALID);
	assert_ok(vmdk_options_parse("compression=none", &o, ERR));
	close_image(src);
	fixture_files(true);
}

/* ---- what is read ------------------------------------------------------------------------------------------------ */

struct findings {
	char rules[256]; /* "VMDK-42 VMDK-45 " */
};

static void collect(void *ctx, const struct img_finding *f)
{
	struct findings *all = ctx;

	strncat(all->rules, f->rule, sizeof(all->rules) - strlen(all->rules) - 1);
	strncat(all->rules, " ", sizeof(all->rules) - strlen(all->rules) - 1);
}

static void assert_found(struct node *file, const char *rules)
{
	struct img_check_result out = { 0 };
	struct findings all = { "" };
	struct vmdk_stream *s;

	assert_ok(open_stream(file, &s));
	assert_ok(vmdk_stream_check(s, 0, collect, &all, NULL, &out, ERR));
	assert_string_equal(all.rules, rules);
	vmdk_stream_free(s);
}

/* Offset of the n-th thing behind the head: a grain, or another marker. */
static uint64_t nth(const uint8_t *d, unsigned n)
{
	uint64_t off = 65536;

	while (n-- > 0)
		off += le32_at(d, off + 8) ? (12 + le32_at(d, off + 8) + 511) / 512 * 512 :
					     512 + le64_at(d, off) * SECTOR;
	return off;
}

static void put(struct node *file, uint64_t off, uint64_t value, unsigned bytes)
{
	uint8_t raw[8];

	for (unsigned i = 0; i < 8; i++)
		raw[i] = (uint8_t)(value >> 8 * i);
	assert_ok(node_pwrite(file, raw, bytes, off, 0, ERR));
}

/* A fresh file, and what is to be known of it. */
struct sample {
	struct node *file;
	uint8_t *d;
	uint64_t size;
};

static struct sample fresh(struct img *src)
{
	struct sample s = { .file = write_stream(src, "subformat=streamOptimized", 2) };

	s.size = node_size(s.file);
	s.d = bytes_of(s.file);
	return s;
}

static void done(struct sample *s)
{
	free(s->d);
	assert_ok(node_close(s->file, ERR));
}

static void damage_has_names(void **state)
{
	struct img *src = make_source();
	struct sample s = fresh(src);
	uint64_t table, grain;

	(void)state;
	assert_found(s.file, "");
	grain = nth(s.d, 1);
	/* The second grain says that it is for the third's sector: it is in nobody's place now. */
	put(s.file, grain, 300 * 128, 8);
	assert_found(s.file, "VMDK-42 VMDK-45 VMDK-44 ");
	put(s.file, grain, 128, 8);
	/* Its data is damaged: by a bit of the checksum alone. */
	put(s.file, grain + 12 + le32_at(s.d, grain + 8) - 1, s.d[grain + 12 + le32_at(s.d, grain + 8) - 1] ^ 1u, 1);
	assert_found(s.file, "VMDK-43 ");
	put(s.file, grain + 12 + le32_at(s.d, grain + 8) - 1, s.d[grain + 12 + le32_at(s.d, grain + 8) - 1], 1);
	/* Longer than it is. */
	put(s.file, grain + 8, le32_at(s.d, grain + 8) + 1, 4);
	assert_found(s.file, "VMDK-43 ");
	put(s.file, grain + 8, le32_at(s.d, grain + 8), 4);
	/* Its entry says nothing, leads to another, leads nowhere. */
	table = nth(s.d, 4) + 512;
	assert_int_equal(le32_at(s.d, table + 4) * SECTOR, grain);
	put(s.file, table + 4, 0, 4);
	assert_found(s.file, "VMDK-45 ");
	put(s.file, table + 4, le32_at(s.d, table), 4);
	assert_found(s.file, "VMDK-42 VMDK-45 ");
	put(s.file, table + 4, 0xfffffff0, 4);
	assert_found(s.file, "VMDK-47 ");
	put(s.file, table + 4, le32_at(s.d, table + 4), 4);
	/* A marker of no type, an end in the middle, no end. */
	put(s.file, table - 512 + 12, 7, 4);
	assert_found(s.file, "VMDK-41 ");
	put(s.file, table - 512 + 12, 0, 4);
	assert_found(s.file, "VMDK-41 ");
	put(s.file, table - 512 + 12, 1, 4);
	put(s.file, s.size - 100, 1, 1);
	assert_found(s.file, "VMDK-41 ");
	put(s.file, s.size - 100, 0, 1);
	/* The header names a directory of its own. */
	put(s.file, 56, le64_at(s.d, s.size - 1024 + 56) - 5, 8);
	assert_found(s.file, "VMDK-40 ");
	put(s.file, 56, UINT64_MAX, 8);
	assert_found(s.file, "");
	done(&s);
	close_image(src);
	fixture_files(true);
}

static void what_is_damaged_is_not_read(void **state)
{
	struct img *src = make_source();
	struct sample s = fresh(src);
	struct vmdk_stream *stream;
	uint8_t *buf = malloc(GRAIN);

	(void)state;
	assert_non_null(buf);
	put(s.file, nth(s.d, 1), 0, 8); /* for another sector */
	assert_ok(open_stream(s.file, &stream));
	assert_int_equal(vmdk_stream_pread(stream, buf, 512, GRAIN, ERR), IMG_E_CORRUPT);
	assert_non_null(strstr(fixture_error.msg, "is for another sector"));
	assert_ok(vmdk_stream_pread(stream, buf, 512, 0, ERR));
	put(s.file, nth(s.d, 1), 128, 8);
	assert_ok(vmdk_stream_pread(stream, buf, GRAIN, GRAIN, ERR));
	put(s.file, nth(s.d, 1) + 8, 0xffffff, 4);
	assert_int_equal(vmdk_stream_pread(stream, buf, GRAIN, GRAIN, ERR), IMG_E_CORRUPT);
	put(s.file, nth(s.d, 1) + 8, 0, 4);
	assert_int_equal(vmdk_stream_pread(stream, buf, GRAIN, GRAIN, ERR), IMG_E_CORRUPT);
	vmdk_stream_free(stream);
	free(buf);
	done(&s);
	close_image(src);
	fixture_files(true);
}

static void what_is_cut_off_is_not_opened(void **state)
{
	struct img *src = make_source();
	struct sample s = fresh(src);
	struct vmdk_stream *stream;

	(void)state;
	for (uint64_t size = s.size - 1; size > 1536; size = size > s.size - 1600 ? size - 1 : size / 2) {
		assert_ok(node_resize(s.file, size, ERR));
		assert_int_equal(open_stream(s.file, &stream), IMG_E_CORRUPT);
		assert_non_null(strstr(fixture_error.msg, "cut off"));
		assert_null(stream);
	}
	/* and what is padded: the footer has to be the last thing */
	done(&s);
	s = fresh(src);
	assert_ok(node_resize(s.file, s.size + 512, ERR));
	assert_int_equal(open_stream(s.file, &stream), IMG_E_CORRUPT);
	assert_ok(node_resize(s.file, s.size, ERR));
	/* of another disk */
	put(s.file, s.size - 1024 + 12, SIZE / SECTOR + 1, 8);
	assert_int_equal(open_stream(s.file, &stream), IMG_E_CORRUPT);
	put(s.file, s.size - 1024 + 12, SIZE / SECTOR, 8);
	put(s.file, s.size - 1024 + 56, s.size / SECTOR, 8);
	assert_int_equal(open_stream(s.file, &stream), IMG_E_CORRUPT);
	put(s.file, s.size - 1024 + 56, UINT64_MAX, 8);
	assert_int_equal(open_stream(s.file, &stream), IMG_E_CORRUPT);
	done(&s);
	close_image(src);
	fixture_files(true);
}

/*
 * The dialect with its tables at the head: without a footer, without marks between grains, with a second directory, and
 * with a last grain that is as short as the disk. Without markers too.
 */
static void tables_may_stand_at_the_head(void **state)
{
	for (int markers = 1; markers >= 0; markers--) {
		uint64_t disk = 3 * GRAIN + 512, off = 128 * SECTOR;
		struct vmdk_header h = {
			.version = 3,
			.flags = VMDK_NEWLINES_VALID | VMDK_RGD_VALID | VMDK_COMPRESSED |
				 (markers ? (uint32_t)VMDK_MARKERS : 0),
			.capacity_bytes = disk,
			.grain_bytes = GRAIN,
			.nr_gtes = 512,
			.rgd_off = 21 * SECTOR,
			.gd_off = 26 * SECTOR,
			.overhead_bytes = 128 * SECTOR,
			.compression = VMDK_DEFLATE,
		};
		uint8_t *content = calloc(1, 4 * GRAIN), *packed = malloc(2 * GRAIN), *got = malloc(disk);
		struct disk_vmdk_header raw;
		struct vmdk_stream *s;
		struct node *file;

		(void)state;
		assert_true(content && packed && got);
		pattern(content, GRAIN, 5);
		pattern(content + 3 * GRAIN, 512, 6);
		assert_ok(mem_node_new("head", &file, ERR));
		vmdk_header_encode(&h, &raw);
		assert_ok(node_pwrite(file, &raw, sizeof(raw), 0, 0, ERR));
		put(file, 21 * SECTOR, 22, 4);
		put(file, 26 * SECTOR, 27, 4);
		for (unsigned g = 0; g < 4; g += 3) {
			uLongf n = 2 * GRAIN;

			assert_int_equal(compress(packed, &n, content + g * GRAIN, g == 3 ? 512 : GRAIN), Z_OK);
			put(file, 22 * SECTOR + 4 * g, off / SECTOR, 4);
			put(file, 27 * SECTOR + 4 * g, off / SECTOR, 4);
			if (markers) {
				put(file, off, g * 128, 8);
				put(file, off + 8, n, 4);
				off += 12;
			}
			assert_ok(node_pwrite(file, packed, n, off, 0, ERR));
			off = (off + n + 511) / 512 * 512;
		}
		assert_ok(node_resize(file, off, ERR));
		assert_ok(open_stream(file, &s));
		assert_ok(vmdk_stream_pread(s, got, disk, 0, ERR));
		assert_memory_equal(got, content, disk);
		vmdk_stream_free(s);
		assert_found(file, "");
		put(file, 22 * SECTOR, 0, 4);
		assert_found(file, "VMDK-46 ");
		assert_ok(node_close(file, ERR));
		free(content);
		free(packed);
		free(got);
	}
}

/* Every entry of a directory leads to one table, and all of that to one grain: 1 TiB of data in some 200 KiB. */
static void what_expands_without_end_is_not_opened(void **state)
{
	struct vmdk_header h = {
		.version = 3,
		.flags = VMDK_NEWLINES_VALID | VMDK_COMPRESSED,
		.capacity_bytes = UINT64_C(1) << 40,
		.grain_bytes = GRAIN,
		.nr_gtes = 512,
		.gd_off = 128 * SECTOR,
		.overhead_bytes = 128 * SECTOR,
		.compression = VMDK_DEFLATE,
	};
	struct img_open_options defaults = { .struct_size = sizeof(defaults) };
	uint8_t *content = malloc(GRAIN), *packed = malloc(2 * GRAIN);
	uint64_t table = 512 * SECTOR, grain = table + 4 * SECTOR;
	struct disk_vmdk_header raw;
	struct vmdk_stream *s;
	struct budget budget;
	struct node *file;
	uLongf n = 2 * GRAIN;

	(void)state;
	assert_true(content && packed);
	memset(content, 'x', GRAIN);
	assert_int_equal(compress(packed, &n, content, GRAIN), Z_OK);
	assert_ok(mem_node_new("bomb", &file, ERR));
	vmdk_header_encode(&h, &raw);
	assert_ok(node_pwrite(file, &raw, sizeof(raw), 0, 0, ERR));
	for (uint64_t i = 0; i < h.capacity_bytes / TABLE; i++)
		put(file, h.gd_off + 4 * i, table / SECTOR, 4);
	for (uint64_t i = 0; i < 512; i++)
		put(file, table + 4 * i, grain / SECTOR, 4);
	assert_ok(node_pwrite(file, packed, n, grain, 0, ERR));
	assert_ok(budget_init(&budget, &defaults, ERR));
	assert_ok(vmdk_header_load(file, 0, &h, ERR));
	assert_int_equal(vmdk_stream_open(shell(), file, &h, &budget, &s, ERR), IMG_E_LIMIT);
	assert_ok(node_close(file, ERR));
	free(content);
	free(packed);
}

static void extents_tell_what_is_packed(void **state)
{
	struct img *src = make_source();
	struct sample s = fresh(src);
	struct status_extent ext[16];
	struct vmdk_stream *stream;
	size_t nr;

	(void)state;
	assert_ok(open_stream(s.file, &stream));
	assert_ok(vmdk_stream_status(stream, SIZE, 0, ext, 16, &nr, ERR));
	assert_true(nr >= 4);
	assert_int_equal(ext[0].kind, STATUS_COMPRESSED);
	assert_int_equal(ext[0].bytes, GRAIN);
	assert_int_equal(ext[2].kind, STATUS_UNALLOCATED);
	assert_int_equal(ext[2].off, 2 * GRAIN);
	assert_int_equal(ext[2].bytes, 298 * GRAIN);
	vmdk_stream_free(stream);
	done(&s);
	close_image(src);
	fixture_files(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(is_written_byte_for_byte),
		cmocka_unit_test(empty_and_sizes),
		cmocka_unit_test(options_change_it),
		cmocka_unit_test(damage_has_names),
		cmocka_unit_test(what_is_damaged_is_not_read),
		cmocka_unit_test(what_is_cut_off_is_not_opened),
		cmocka_unit_test(tables_may_stand_at_the_head),
		cmocka_unit_test(what_expands_without_end_is_not_opened),
		cmocka_unit_test(extents_tell_what_is_packed),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
