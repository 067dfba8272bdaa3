/* SPDX-License-Identifier: MIT */
/*
 * The Format Extension: one cluster of sections, guarded by a checksum. The only section that is known holds a dirty
 * bitmap, for backup programs. Nothing of it is shown or kept up: who changes the disk takes the extension off
 * (PRL-10), as a bitmap that misses changes is worse than none. Here it is read to say what would be lost, what of the
 * file is its, and whether something in it forbids that.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "prl.h"

#define CHUNK_BYTES 65536u

struct reader {
	struct node *file;
	const struct prl_header *h;
	const char *path;
	struct budget *budget;
	struct prl_ext *out;
	size_t cap_taken;
};

static void damaged(struct prl_ext *x, uint64_t off, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void damaged(struct prl_ext *x, uint64_t off, const char *fmt, ...)
{
	va_list ap;

	if (x->damage[0])
		return;
	x->damage_off = off;
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	(void)vsnprintf(x->damage, sizeof(x->damage), fmt, ap);
	va_end(ap);
}

/* A cluster of the extension's. at: where that is said. */
static int take(struct reader *r, uint64_t off, uint64_t at, struct img_error *err)
{
	struct prl_ext *x = r->out;

	if (off < r->h->data_off || !range_inside(off, r->h->cluster_bytes, node_size(r->file))) {
		damaged(x, at, "leads to 0x%" PRIx64 ", out of the file's data area", off);
		return 0;
	}
	if (x->nr_taken == r->cap_taken) {
		size_t cap = r->cap_taken ? 2 * r->cap_taken : 16;
		struct img_range *more;
		int ret = budget_metadata(r->budget, r->path, (cap - r->cap_taken) * sizeof(*more), err);

		if (ret != 0)
			return ret;
		more = realloc(x->taken, cap * sizeof(*more));
		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		x->taken = more;
		r->cap_taken = cap;
	}
	x->taken[x->nr_taken++] = (struct img_range){ .off = off, .bytes = r->h->cluster_bytes };
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct img_range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static void sort_taken(struct prl_ext *x)
{
	size_t n = 0;

	if (x->nr_taken == 0)
		return;
	qsort(x->taken, x->nr_taken, sizeof(*x->taken), by_offset);
	for (size_t i = 1; i < x->nr_taken; i++) {
		if (x->taken[i].off < x->taken[n].off + x->taken[n].bytes)
			damaged(x, x->taken[i].off, "two of its clusters lie at 0x%" PRIx64, x->taken[i].off);
		else
			x->taken[++n] = x->taken[i];
	}
	x->nr_taken = n + 1;
}

/* The checksum of the cluster behind the two first fields. */
static int judge_sum(struct reader *r, const uint8_t *want, struct img_error *err)
{
	uint64_t at = sizeof(struct disk_prl_ext), end = r->h->cluster_bytes;
	uint8_t *buf = malloc(CHUNK_BYTES), sum[16];
	struct prl_md5 m;
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	prl_md5_start(&m);
	while (at < end && ret == 0) {
		uint64_t n = min_u64(end - at, CHUNK_BYTES);

		ret = node_pread(r->file, buf, n, r->h->ext_off + at, 0, err);
		if (ret == 0)
			prl_md5_add(&m, buf, (size_t)n);
		at += n;
	}
	free(buf);
	prl_md5_end(&m, sum);
	r->out->whole = ret == 0 && memcmp(sum, want, sizeof(sum)) == 0;
	if (ret == 0 && !r->out->whole)
		damaged(r->out, r->h->ext_off, "its checksum is wrong");
	return ret;
}

/* The clusters that a bitmap's table at off names. */
static int read_l1(struct reader *r, uint64_t off, uint32_t nr, struct img_error *err)
{
	struct le64 entry[512];
	int ret = 0;

	for (uint32_t i = 0; i < nr && ret == 0; i += ARRAY_LEN(entry)) {
		size_t n = (size_t)min_u64(nr - i, ARRAY_LEN(entry));

		ret = node_pread(r->file, entry, n * sizeof(*entry), off + i * sizeof(*entry), 0, err);
		for (size_t k = 0; k < n && ret == 0; k++) {
			uint64_t sector = le64_get(entry[k]);

			if (sector > 1 && sector <= INT64_MAX / PRL_SECTOR_BYTES)
				ret = take(r, sector * PRL_SECTOR_BYTES, off + (i + k) * sizeof(*entry), err);
			else if (sector > 1)
				damaged(r->out, off + (i + k) * sizeof(*entry), "a bitmap leads to sector 0x%" PRIx64,
					sector);
		}
	}
	return ret;
}

static int read_bitmap(struct reader *r, uint64_t off, uint32_t bytes, struct img_error *err)
{
	struct disk_prl_bitmap d;
	uint64_t bits, per_cluster = (uint64_t)r->h->cluster_bytes * 8;
	uint32_t granularity, nr_l1;
	int ret;

	if (bytes < sizeof(d)) {
		damaged(r->out, off, "a bitmap of %" PRIu32 " bytes", bytes);
		return 0;
	}
	ret = node_pread(r->file, &d, sizeof(d), off, 0, err);
	if (ret != 0)
		return ret;
	granularity = le32_get(d.granularity);
	nr_l1 = le32_get(d.nr_l1);
	r->out->nr_bitmaps++;
	if (granularity == 0 || (granularity & (granularity - 1)) != 0) {
		damaged(r->out, off, "a bitmap with a granularity of %" PRIu32 " sectors", granularity);
		return 0;
	}
	if (le64_get(d.nr_sectors) != r->h->nr_sectors)
		damaged(r->out, off, "a bitmap of a disk with 0x%" PRIx64 " sectors", le64_get(d.nr_sectors));
	bits = (r->h->nr_sectors - 1) / granularity + 1;
	if (nr_l1 > (bytes - sizeof(d)) / sizeof(struct le64) || nr_l1 < (bits - 1) / per_cluster + 1) {
		damaged(r->out, off, "a bitmap with a table of %" PRIu32 " entries", nr_l1);
		return 0;
	}
	return read_l1(r, off + sizeof(d), nr_l1, err);
}

/* One section after the other. Nothing is believed that the checksum does not cover. */
static int read_sections(struct reader *r, struct img_error *err)
{
	uint64_t at = sizeof(struct disk_prl_ext), end = r->h->cluster_bytes;

	for (unsigned i = 0; i < PRL_SECTIONS_MAX; i++) {
		struct disk_prl_section d;
		uint32_t bytes;
		int ret = 0;

		if (end - at < sizeof(d))
			break;
		ret = node_pread(r->file, &d, sizeof(d), r->h->ext_off + at, 0, err);
		if (ret != 0)
			return ret;
		bytes = le32_get(d.data_bytes);
		if (le64_get(d.magic) == PRL_EXT_END)
			return 0;
		at += sizeof(d);
		if (bytes > end - at) {
			damaged(r->out, r->h->ext_off + at, "a section of 0x%" PRIx32 " bytes", bytes);
			return 0;
		}
		if (le64_get(d.magic) == PRL_EXT_BITMAP) {
			ret = read_bitmap(r, r->h->ext_off + at, bytes, err);
		} else {
			r->out->nr_other++;
			r->out->must_stay |= (le64_get(d.flags) & (PRL_EXT_NEEDED | PRL_EXT_TRANSIT)) != 0;
		}
		if (ret != 0)
			return ret;
		at = min_u64(round_up(at + bytes, 8), end);
	}
	damaged(r->out, r->h->ext_off, "its sections have no end");
	return 0;
}

int prl_ext_load(struct node *file, const struct prl_header *h, const char *path, struct budget *budget,
		 struct prl_ext *out, struct img_error *err)
{
	struct reader r = { .file = file, .h = h, .path = path, .budget = budget, .out = out };
	struct disk_prl_ext d;
	int ret;

	*out = (struct prl_ext){ .whole = false };
	ret = take(&r, h->ext_off, PRL_AT(ext_off), err);
	if (ret != 0 || out->nr_taken == 0 || h->cluster_bytes < sizeof(d))
		return ret;
	ret = node_pread(file, &d, sizeof(d), h->ext_off, 0, err);
	if (ret == 0 && le64_get(d.magic) != PRL_EXT_MAGIC)
		damaged(out, h->ext_off, "it does not begin as one");
	else if (ret == 0)
		ret = judge_sum(&r, d.md5, err);
	if (ret == 0 && out->whole)
		ret = read_sections(&r, err);
	sort_taken(out);
	if (ret != 0) {
		free(out->taken);
		out->taken = NULL;
	}
	return ret;
}
