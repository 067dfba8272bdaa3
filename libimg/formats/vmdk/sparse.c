/* SPDX-License-Identifier: MIT */
/*
 * KDMV extents, read and written. A page of the engine is a grain table; directory entries lead to the tables, and a
 * second directory to copies of them, which are kept equal.
 *
 * Order on disk (the engine's BM-1 to BM-4, and):
 *   mark    before the first change, the header says that the extent is open (unclean shutdown), durably; closing takes
 *           that back, after all is durable
 *   data    grains are durable before tables lead to them
 *   tables  then each table is written, and its copy; a new one is durable before the directories lead to it
 *
 * After a crash each entry is old or new, in the table and, by itself, in the copy. The table counts (VMDK-8); some
 * readers take the copies, so who opens a marked extent for writing first makes these equal, and cuts off what no
 * entry leads to.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "is_zero.h"
#include "sparse.h"

#define PLACE_ALIGN   4096u
#define ZERO_BYTES    (1u << 20)
#define OVERHEAD_UNIT UINT64_C(65536)

static struct vmdk_sparse *of(const struct blockmap *bm)
{
	return blockmap_format(bm);
}

/* ---- the engine's questions -------------------------------------------------------------------------------------- */

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	const struct vmdk_sparse *s = of(bm);
	uint32_t entry = le32_at(raw, 0);
	uint64_t off = (uint64_t)entry * VMDK_SECTOR_BYTES;

	(void)block;
	if (entry == 0) {
		out->state = BLOCKMAP_FREE;
		return 0;
	}
	if (entry == VMDK_GTE_ZERO && s->h.flags & VMDK_ZERO_GRAINS) {
		out->state = BLOCKMAP_ZERO;
		return 0;
	}
	if (vmdk_tables_take(&s->t, off, s->h.grain_bytes))
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
				 "leads to the extent's own tables, sector 0x%" PRIx32, entry);
	*out = (struct blockmap_entry){ .state = BLOCKMAP_DATA, .off = off };
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	struct le32 d = le32_of(entry->state == BLOCKMAP_FREE ? 0 :
				entry->state == BLOCKMAP_ZERO ? VMDK_GTE_ZERO :
								(uint32_t)(entry->off / VMDK_SECTOR_BYTES));

	(void)bm;
	(void)block;
	memcpy(raw, &d, sizeof(d));
}

static int too_long(uint64_t off, struct img_error *err)
{
	return error_set(err, IMG_E_NOSPC, 0, off, LAYER,
			 "a sparse extent has at most 2 TiB in its file: convert the image into another format");
}

static int allocate(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	uint64_t bytes;

	if (mul_overflows(nr, of(bm)->h.grain_bytes, &bytes) || add_overflows(*off, bytes, &bytes) ||
	    bytes / VMDK_SECTOR_BYTES > UINT32_MAX)
		return too_long(*off, err);
	return 0;
}

/* A new table, and its copy, behind everything else. The directories follow when they are durable: store(). */
static int make_table(struct vmdk_sparse *s, uint64_t page, struct img_error *err)
{
	uint64_t off = round_up(blockmap_end(s->bm), VMDK_SECTOR_BYTES);
	uint64_t bytes = round_up(s->t.table_bytes, VMDK_SECTOR_BYTES), end = off + bytes * (s->t.copy_place ? 2 : 1);
	int ret;

	if (end / VMDK_SECTOR_BYTES > UINT32_MAX)
		return too_long(off, err);
	ret = node_resize(s->file, max_u64(end, node_size(s->file)), err);
	if (ret != 0)
		return ret;
	s->t.place[page] = (uint32_t)(off / VMDK_SECTOR_BYTES);
	if (s->t.copy_place)
		s->t.copy_place[page] = (uint32_t)((off + bytes) / VMDK_SECTOR_BYTES);
	s->t.order[s->t.nr_order++] = page; /* behind all others */
	s->t.fresh[page] = 1;
	vmdk_tables_add(&s->t, off, end - off);
	blockmap_set_end(s->bm, end);
	return 0;
}

static int locate(struct blockmap *bm, uint64_t page, bool make, uint64_t *off, struct img_error *err)
{
	struct vmdk_sparse *s = of(bm);
	int ret = 0;

	pthread_mutex_lock(&s->tables_lock);
	if (s->t.place[page] == 0 && make)
		ret = make_table(s, page, err);
	*off = (uint64_t)s->t.place[page] * VMDK_SECTOR_BYTES;
	pthread_mutex_unlock(&s->tables_lock);
	return ret;
}

static int write_mark(struct vmdk_sparse *s, bool open, struct img_error *err)
{
	uint8_t unclean = open;

	return node_pwrite(s->file, &unclean, 1, offsetof(struct disk_vmdk_header, unclean), 0, err);
}

static int begin(struct blockmap *bm, struct img_error *err)
{
	struct vmdk_sparse *s = of(bm);
	int ret;

	if (s->bulk || atomic_load(&s->marked))
		return 0;
	ret = write_mark(s, true, err);
	if (ret == 0)
		ret = node_flush(s->file, 0, err);
	if (ret == 0)
		atomic_store(&s->marked, true);
	return ret;
}

/* ---- writing tables ---------------------------------------------------------------------------------------------- */

static int sync_file(struct vmdk_sparse *s, struct img_error *err)
{
	return s->bulk ? 0 : node_flush(s->file, 0, err);
}

/* The copies of the tables that w holds, as many at once as lie behind each other. */
static int write_copies(struct vmdk_sparse *s, const struct blockmap_write *w, struct img_error *err)
{
	const uint8_t *buf = w->buf;
	uint64_t bytes = s->t.table_bytes, from = 0, run_off = 0;
	int ret = 0;

	for (uint64_t at = 0; at < w->bytes && ret == 0; at += bytes) {
		uint64_t i, copy;

		pthread_mutex_lock(&s->tables_lock);
		i = vmdk_tables_find(&s->t, w->off + at);
		copy = i < s->t.nr ? (uint64_t)s->t.copy_place[i] * VMDK_SECTOR_BYTES : 0;
		pthread_mutex_unlock(&s->tables_lock);
		if (copy == run_off + (at - from) && at > from)
			continue;
		if (at > from && run_off)
			ret = node_pwrite(s->file, buf + from, at - from, run_off, 0, err);
		from = at;
		run_off = copy;
	}
	if (ret == 0 && run_off && w->bytes > from)
		ret = node_pwrite(s->file, buf + from, w->bytes - from, run_off, 0, err);
	return ret;
}

static int write_entry(struct vmdk_sparse *s, uint64_t i, struct img_error *err)
{
	struct le32 d = le32_of(s->t.place[i]);
	int ret = node_pwrite(s->file, &d, sizeof(d), s->h.gd_off + i * sizeof(d), 0, err);

	if (ret != 0 || !s->t.copy_place)
		return ret;
	d = le32_of(s->t.copy_place[i]);
	return node_pwrite(s->file, &d, sizeof(d), s->h.rgd_off + i * sizeof(d), 0, err);
}

/* Tables of w that the directories do not know yet, and are durable now. */
static int write_entries(struct vmdk_sparse *s, const struct blockmap_write *w, bool *written, struct img_error *err)
{
	int ret = 0;

	for (uint64_t at = 0; at < w->bytes && ret == 0; at += s->t.table_bytes) {
		uint64_t i;
		bool fresh;

		pthread_mutex_lock(&s->tables_lock);
		i = vmdk_tables_find(&s->t, w->off + at);
		fresh = i < s->t.nr && s->t.fresh[i];
		pthread_mutex_unlock(&s->tables_lock);
		if (!fresh)
			continue;
		ret = write_entry(s, i, err);
		*written = true;
		if (ret == 0) {
			pthread_mutex_lock(&s->tables_lock);
			s->t.fresh[i] = 0;
			pthread_mutex_unlock(&s->tables_lock);
		}
	}
	return ret;
}

static int store(struct blockmap *bm, const struct blockmap_write *writes, size_t nr, struct img_error *err)
{
	struct vmdk_sparse *s = of(bm);
	bool written = false;
	int ret = 0;

	for (size_t i = 0; i < nr && ret == 0; i++) {
		ret = node_pwrite(s->file, writes[i].buf, writes[i].bytes, writes[i].off, 0, err);
		if (ret == 0 && s->t.copy_place)
			ret = write_copies(s, &writes[i], err);
	}
	if (ret == 0)
		ret = sync_file(s, err);
	for (size_t i = 0; i < nr && ret == 0; i++)
		ret = write_entries(s, &writes[i], &written, err);
	return ret == 0 && written ? sync_file(s, err) : ret;
}

static const struct blockmap_ops ops = {
	.decode = decode,
	.encode = encode,
	.locate = locate,
	.allocate = allocate,
	.begin = begin,
	.store = store,
};

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

static struct blockmap_shape shape_of(const struct vmdk_sparse *s, uint64_t disk_off, uint64_t end_off)
{
	return (struct blockmap_shape){
		.disk_bytes = s->h.capacity_bytes,
		.block_bytes = s->h.grain_bytes,
		.nr_blocks = s->h.nr_grains,
		.nr_slots = s->h.nr_tables * s->h.nr_gtes,
		.entry_bytes = VMDK_GTE_BYTES,
		.page_bytes = (uint32_t)s->t.table_bytes,
		.place_align = s->h.grain_bytes < PLACE_ALIGN ? VMDK_SECTOR_BYTES : PLACE_ALIGN,
		.end_off = end_off,
		.file = s->file,
		.disk_off = disk_off,
		.has_zero = (s->h.flags & VMDK_ZERO_GRAINS) != 0,
	};
}

/* As the engine's check has it: what the last grain of the disk lacks is behind the disk's end. */
static bool in_file(const struct vmdk_sparse *s, uint64_t grain, uint64_t off)
{
	uint64_t start = grain * s->h.grain_bytes;

	return range_inside(off, min_u64(s->h.grain_bytes, s->h.capacity_bytes - start), node_size(s->file));
}

int vmdk_sparse_use(struct vmdk_sparse *s, struct vmdk_use *use, struct img_error *err)
{
	struct blockmap_entry e;

	*use = (struct vmdk_use){ 0 };
	for (uint64_t b = 0; b < s->h.nr_grains; b++) {
		struct img_error why = { .code = IMG_OK };
		int ret;

		b = blockmap_next_used(s->bm, b, s->h.nr_grains);
		if (b == s->h.nr_grains)
			break;
		ret = blockmap_get(s->bm, b, &e, &why);
		if (ret != 0 && ret != IMG_E_CORRUPT) {
			if (err)
				*err = why;
			return ret;
		}
		if (ret != 0) {
			uint64_t nr = max_u64(blockmap_unreadable(s->bm, b, s->h.nr_grains), 1);

			use->nr_bad += nr;
			b += nr - 1;
		} else if (e.state == BLOCKMAP_DATA && in_file(s, b, e.off)) {
			use->end = max_u64(use->end, e.off + s->h.grain_bytes);
		} else if (e.state == BLOCKMAP_DATA) {
			use->nr_outside++;
			use->outside_off = e.off;
		}
	}
	return 0;
}

/* The first byte behind all that is the extent's own, where its grains end at `end`. */
static uint64_t content_end(const struct vmdk_sparse *s, uint64_t end)
{
	for (size_t i = 0; i < s->t.nr_taken; i++)
		end = max_u64(end, s->t.taken[i].off + s->t.taken[i].bytes);
	return max_u64(round_up(end, VMDK_SECTOR_BYTES), min_u64(s->h.overhead_bytes, node_size(s->file)));
}

int vmdk_sparse_trim(struct vmdk_sparse *s, struct img_error *err)
{
	struct blockmap_shape shape = *blockmap_shape(s->bm);
	struct vmdk_use use;
	uint64_t end;

	/* What makes no sense keeps the file as it is. */
	if (vmdk_sparse_use(s, &use, NULL) != 0 || use.nr_bad > 0 || use.nr_outside > 0)
		return 0;
	end = content_end(s, use.end);
	if (end >= node_size(s->file))
		return 0;
	(void)node_resize(s->file, end, NULL);
	shape.end_off = node_size(s->file);
	return blockmap_reshape(s->bm, &shape, err);
}

/* Blocks that share their places are a bomb. Only where a file is small for its disk all entries have to be looked at. */
static int judge_expansion(struct vmdk_sparse *s, struct budget *budget, struct img_error *err)
{
	uint64_t file_bytes = node_size(s->file), nr = 0;
	struct blockmap_entry e;

	if (budget_expansion_fits(budget, s->h.capacity_bytes, file_bytes))
		return 0;
	for (uint64_t b = 0; b < s->h.nr_grains; b++) {
		struct img_error why = { .code = IMG_OK };
		int ret;

		if (s->t.place[b / s->h.nr_gtes] == 0) {
			b += s->h.nr_gtes - 1;
			continue;
		}
		b = blockmap_next_used(s->bm, b, min_u64((b / s->h.nr_gtes + 1) * s->h.nr_gtes, s->h.nr_grains) - 1);
		ret = blockmap_get(s->bm, b, &e, &why);
		/* What makes no sense leads to nothing. */
		if (ret != 0 && ret != IMG_E_CORRUPT) {
			if (err)
				*err = why;
			return ret;
		}
		if (ret != 0 && !range_inside((uint64_t)s->t.place[b / s->h.nr_gtes] * VMDK_SECTOR_BYTES,
					      s->t.table_bytes, file_bytes))
			b = (b / s->h.nr_gtes + 1) * s->h.nr_gtes - 1;
		nr += ret == 0 && e.state == BLOCKMAP_DATA;
	}
	return budget_expansion(budget, s->file->path, nr * s->h.grain_bytes, file_bytes, err);
}

/* What was cut off with the end of the file would come back as what is written there next. */
static int judge_inside(struct vmdk_sparse *s, uint64_t outside, struct img_error *err)
{
	struct vmdk_use use;
	int ret;

	if (outside > 0)
		return error_set(err, IMG_E_CORRUPT, 0, s->h.gd_off, LAYER,
				 "%s: %" PRIu64
				 " grain tables or their copies lie behind the end of the file, 0x%" PRIx64
				 ", so that it can only be read: run imgtool check --repair",
				 s->file->path, outside, node_size(s->file));
	ret = vmdk_sparse_use(s, &use, err);
	if (ret == 0 && use.nr_outside > 0)
		ret = error_set(err, IMG_E_CORRUPT, 0, use.outside_off, LAYER,
				"%s: %" PRIu64 " grains lie behind the end of the file, 0x%" PRIx64
				", so that it can only be read: run imgtool check --repair",
				s->file->path, use.nr_outside, node_size(s->file));
	/* The descriptor may reach over the end, and so may the last grain of the disk: new ones go behind them. */
	if (ret == 0)
		blockmap_set_end(s->bm, max_u64(content_end(s, use.end), node_size(s->file)));
	return ret;
}

static int judge_writable(struct vmdk_sparse *s, uint64_t *alone, struct img_error *err)
{
	uint64_t outside;
	int ret = 0;

	vmdk_tables_judge(&s->t, node_size(s->file), &outside, alone);
	if (s->t.overlap)
		ret = error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				"%s: header, directories and tables lie over each other, so that it can only be read",
				s->file->path);
	if (ret == 0)
		ret = judge_inside(s, outside, err);
	if (ret == 0 && *alone > 0 && !s->h.unclean)
		ret = error_set(err, IMG_E_CORRUPT, 0, s->h.rgd_off, LAYER,
				"%s: the two directories lead to different tables, so that it can only be read: run "
				"imgtool check --repair",
				s->file->path);
	return ret;
}

static int open_writer(struct vmdk_sparse *s, struct img_error *err)
{
	uint64_t differ = 0, alone = 0;
	int ret = judge_writable(s, &alone, err);

	/* The last writer was interrupted between the two directories. */
	if (ret == 0 && alone > 0)
		ret = vmdk_sparse_mend(s, err);
	if (ret == 0)
		ret = vmdk_tables_compare(s->file, &s->t, s->h.unclean, &differ, err);
	if (ret == 0 && differ > 0 && !s->h.unclean)
		ret = error_set(err, IMG_E_CORRUPT, 0, s->h.rgd_off, LAYER,
				"%s: %" PRIu64
				" grain tables differ from their copies, so that it can only be read: run "
				"imgtool check --repair if it reads right",
				s->file->path, differ);
	if (ret == 0 && s->h.unclean)
		ret = vmdk_sparse_trim(s, err);
	if (ret == 0)
		atomic_store(&s->marked, s->h.unclean);
	return ret;
}

static void free_sparse(struct vmdk_sparse *s)
{
	blockmap_free(s->bm);
	vmdk_tables_free(&s->t);
	pthread_mutex_destroy(&s->tables_lock);
	free(s);
}

int vmdk_sparse_open(struct node *node, struct node *file, const struct vmdk_header *h, uint64_t disk_off,
		     const struct driver_open *args, struct vmdk_sparse **out, struct img_error *err)
{
	struct vmdk_sparse *s = calloc(1, sizeof(*s));
	struct blockmap_shape shape;
	int ret;

	*out = NULL;
	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	pthread_mutex_init(&s->tables_lock, NULL);
	s->file = file;
	s->h = *h;
	s->writable = args->writable;
	s->bulk = args->bulk;
	ret = vmdk_header_judge(h, node_size(file), file->path, err);
	if (ret == 0)
		ret = vmdk_tables_load(file, h, args->writable, args->budget, &s->t, err);
	if (ret == 0) {
		shape = shape_of(s, disk_off, node_size(file));
		ret = blockmap_open(node, &shape, &ops, s, args, &s->bm, err);
	}
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(s, args->budget, err);
	if (ret == 0 && args->writable && !args->for_check)
		ret = open_writer(s, err);
	if (ret != 0) {
		free_sparse(s);
		return ret;
	}
	*out = s;
	return 0;
}

int vmdk_sparse_close(struct vmdk_sparse *s, bool check_only, struct img_error *err)
{
	int ret = 0;

	if (s->writable && !check_only)
		ret = blockmap_finish(s->bm, err);
	if (ret == 0 && s->writable && !check_only && blockmap_lost_places(s->bm) && blockmap_stop(s->bm, NULL) == 0) {
		(void)vmdk_sparse_trim(s, NULL);
		blockmap_start(s->bm);
	}
	if (ret == 0 && atomic_load(&s->marked)) {
		ret = write_mark(s, false, err);
		if (ret == 0)
			ret = node_flush(s->file, 0, err);
	}
	free_sparse(s);
	return ret;
}

/* ---- creating ---------------------------------------------------------------------------------------------------- */

/*
 * header, descriptor, second directory and its tables, directory and its tables, grains from a multiple of 64 KiB on:
 * the order in which VMware's tools write them.
 */
int vmdk_sparse_plan(struct vmdk_header *h, struct img_error *err)
{
	uint64_t directory, tables, at = VMDK_SECTOR_BYTES + h->descriptor_bytes;
	int ret = vmdk_header_count(h, "", err);

	if (ret != 0)
		return ret;
	directory = round_up(h->nr_tables * VMDK_GDE_BYTES, VMDK_SECTOR_BYTES);
	tables = h->nr_tables * h->nr_gtes * VMDK_GTE_BYTES;
	h->descriptor_off = h->descriptor_bytes ? VMDK_SECTOR_BYTES : 0;
	h->rgd_off = at;
	h->gd_off = at + directory + tables;
	h->overhead_bytes = round_up(h->gd_off + directory + tables, OVERHEAD_UNIT);
	if (h->overhead_bytes / VMDK_SECTOR_BYTES > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes needs larger grains", h->capacity_bytes);
	return 0;
}

static int write_directory(struct node *file, const struct vmdk_header *h, uint64_t off, struct img_error *err)
{
	uint64_t bytes = h->nr_tables * VMDK_GDE_BYTES, table = h->nr_gtes * VMDK_GTE_BYTES / VMDK_SECTOR_BYTES;
	uint64_t first = (off + round_up(bytes, VMDK_SECTOR_BYTES)) / VMDK_SECTOR_BYTES;
	struct le32 *d = vmdk_new_array(h->nr_tables, sizeof(*d));
	int ret;

	if (!d)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t i = 0; i < h->nr_tables; i++)
		d[i] = le32_of((uint32_t)(first + i * table));
	ret = node_pwrite(file, d, bytes, off, 0, err);
	free(d);
	return ret;
}

int vmdk_sparse_create(struct node *file, struct vmdk_header *h, struct img_error *err)
{
	struct disk_vmdk_header d;
	int ret = vmdk_sparse_plan(h, err);

	/* Tables are all zeros: holes. */
	if (ret == 0)
		ret = node_resize(file, h->overhead_bytes, err);
	if (ret == 0)
		ret = write_directory(file, h, h->rgd_off, err);
	if (ret == 0)
		ret = write_directory(file, h, h->gd_off, err);
	if (ret != 0)
		return ret;
	vmdk_header_encode(h, &d);
	return node_pwrite(file, &d, sizeof(d), 0, 0, err);
}
