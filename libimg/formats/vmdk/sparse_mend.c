/* SPDX-License-Identifier: MIT */
/*
 * Grain tables, or copies of them, that have no place in the file: it was cut off, or a writer was interrupted after it
 * had told one directory of a new table, and before it told the other. Each table and its copy hold the same (VMDK-8),
 * so that one of them is enough to make the other anew.
 *
 * Order on disk: the new tables are durable before the directories lead to them. A crash in between leaves some entries
 * old, which the next look finds again.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

struct mend {
	struct vmdk_sparse *s;
	uint64_t file_bytes; /* as it was found */
	uint64_t end;	     /* behind everything, what is new included */
	uint32_t *place, *copy_place;
	uint8_t *buf; /* a table */
};

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

/* ---- directories, for resizing too ------------------------------------------------------------------------------- */

int vmdk_sparse_write_directory(struct vmdk_sparse *s, const uint32_t *place, uint64_t off, uint64_t nr,
				struct img_error *err)
{
	struct le32 *d = vmdk_new_array(nr, sizeof(*d));
	int ret;

	if (!d)
		return no_memory(err);
	for (uint64_t i = 0; i < nr && i < s->h.nr_tables; i++)
		d[i] = le32_of(place[i]);
	ret = node_pwrite(s->file, d, nr * sizeof(*d), off, 0, err);
	free(d);
	return ret;
}

int vmdk_sparse_follow(struct vmdk_sparse *s, const struct vmdk_header *h, uint64_t end, struct img_error *err)
{
	struct blockmap_shape shape = *blockmap_shape(s->bm);
	struct vmdk_tables t;
	int ret = vmdk_tables_load(s->file, h, true, NULL, &t, err);

	if (ret != 0)
		return ret;
	shape.disk_bytes = h->capacity_bytes;
	shape.nr_blocks = h->nr_grains;
	shape.nr_slots = h->nr_tables * h->nr_gtes;
	shape.end_off = end;
	ret = blockmap_reshape(s->bm, &shape, err);
	if (ret != 0) {
		vmdk_tables_free(&t);
		return ret;
	}
	vmdk_tables_free(&s->t);
	s->t = t;
	s->h = *h;
	return 0;
}

/* ---- mending ----------------------------------------------------------------------------------------------------- */

static bool inside(const struct mend *m, uint32_t place)
{
	return place != 0 && range_inside((uint64_t)place * VMDK_SECTOR_BYTES, m->s->t.table_bytes, m->file_bytes);
}

/* *to becomes the place of a new table that holds what the one at `from` does. */
static int make_anew(struct mend *m, uint32_t from, uint32_t *to, struct img_error *err)
{
	uint64_t bytes = m->s->t.table_bytes, off = m->end, end = off + round_up(bytes, VMDK_SECTOR_BYTES);
	int ret;

	if (end / VMDK_SECTOR_BYTES > UINT32_MAX)
		return error_set(err, IMG_E_NOSPC, 0, off, LAYER,
				 "%s: no room for a grain table below 2 TiB: convert the image into another format",
				 m->s->file->path);
	ret = node_pread(m->s->file, m->buf, bytes, (uint64_t)from * VMDK_SECTOR_BYTES, 0, err);
	if (ret == 0)
		ret = node_resize(m->s->file, end, err);
	if (ret == 0)
		ret = node_pwrite(m->s->file, m->buf, bytes, off, 0, err);
	m->end = end;
	*to = (uint32_t)(off / VMDK_SECTOR_BYTES);
	return ret;
}

static int mend_one(struct mend *m, uint64_t i, struct img_error *err)
{
	uint32_t *place = &m->place[i], *copy = m->copy_place ? &m->copy_place[i] : NULL;
	bool whole = inside(m, *place), copy_whole = copy && inside(m, *copy);

	if (whole && copy && !copy_whole)
		return make_anew(m, *place, copy, err);
	/* That the first directory has none counts. */
	if (!whole && *place != 0 && copy_whole)
		return make_anew(m, *copy, place, err);
	if (!whole) {
		*place = 0;
		if (copy)
			*copy = 0;
	}
	return 0;
}

static int prepare(struct mend *m, struct img_error *err)
{
	struct vmdk_sparse *s = m->s;
	struct vmdk_use use;
	int ret = vmdk_sparse_use(s, &use, err);

	if (ret != 0)
		return ret;
	m->file_bytes = node_size(s->file);
	m->end = max_u64(max_u64(m->file_bytes, use.end), s->h.descriptor_off + s->h.descriptor_bytes);
	m->end = round_up(m->end, VMDK_SECTOR_BYTES);
	m->buf = malloc((size_t)s->t.table_bytes);
	m->place = vmdk_new_array(s->t.nr, sizeof(*m->place));
	m->copy_place = s->t.copy_place ? vmdk_new_array(s->t.nr, sizeof(*m->place)) : NULL;
	if (!m->buf || !m->place || (s->t.copy_place && !m->copy_place))
		return no_memory(err);
	memcpy(m->place, s->t.place, (size_t)s->t.nr * sizeof(*m->place));
	if (m->copy_place)
		memcpy(m->copy_place, s->t.copy_place, (size_t)s->t.nr * sizeof(*m->place));
	return 0;
}

int vmdk_sparse_mend(struct vmdk_sparse *s, struct img_error *err)
{
	struct mend m = { .s = s };
	struct vmdk_header h = s->h;
	int ret = prepare(&m, err);

	for (uint64_t i = 0; i < s->t.nr && ret == 0; i++)
		ret = mend_one(&m, i, err);
	if (ret == 0)
		ret = node_flush(s->file, 0, err);
	if (ret == 0)
		ret = vmdk_sparse_write_directory(s, m.place, h.gd_off, s->t.nr, err);
	if (ret == 0 && m.copy_place)
		ret = vmdk_sparse_write_directory(s, m.copy_place, h.rgd_off, s->t.nr, err);
	if (ret == 0)
		ret = node_flush(s->file, 0, err);
	if (ret == 0)
		ret = vmdk_sparse_follow(s, &h, max_u64(m.end, node_size(s->file)), err);
	if (ret != 0)
		blockmap_break(s->bm); /* nobody knows which tables the directories lead to */
	free(m.buf);
	free(m.place);
	free(m.copy_place);
	return ret;
}
