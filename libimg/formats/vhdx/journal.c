/* SPDX-License-Identifier: MIT */
/*
 * Writing the log. Every change of the table of blocks, of bitmaps and of metadata is an entry first, durably, and is
 * then made in its place (VHDX-10, [MS-VHDX] 2.3). How it is kept simple:
 *
 *   - An entry is never longer than 64 sectors, stands by itself (its tail is itself), and is replayed as a whole or
 *     not at all. When it is written, all that entries before it say stands in its place, durably.
 *   - It lies in one piece, and never over the entry before it: where it does not fit before the ring's end, it goes
 *     to the beginning. The log has at least 256 sectors, so that there is room. A torn entry leaves the one before as
 *     the last that counts, which says what stands in the file already.
 *   - Numbers go up with each attempt, so that no two entries can have the same one.
 *   - What is in its place need not be durable there as long as the entry is the last one: the flush of data, with
 *     which the next change begins, makes it so.
 *
 * The log counts from the first entry on (a log GUID in the header, 2.2.2) until the image is closed, or the file is
 * cut: then it is empty, and the header says so.
 */
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "vhdx.h"

/* What a descriptor takes out of a sector, at its head and its end. */
#define LEADING_BYTES  8u
#define TRAILING_BYTES 4u

/* ---- the log begins and ends ------------------------------------------------------------------------------------- */

static int set_log_guid(struct vhdx_state *s, const uint8_t guid[16], struct img_error *err)
{
	struct vhdx_header h;
	int ret;

	pthread_mutex_lock(&s->header_lock);
	h = s->h;
	memcpy(h.log_guid, guid, sizeof(h.log_guid));
	ret = vhdx_header_store(s->node->file, &h, true, err);
	if (ret == 0)
		s->h = h;
	pthread_mutex_unlock(&s->header_lock);
	return ret;
}

static int sync_file(struct vhdx_state *s, struct img_error *err)
{
	uint64_t bytes = node_size(s->node->file);
	int ret = node_flush(s->node->file, 0, err);

	if (ret != 0)
		return ret;
	s->log.durable_bytes = bytes;
	s->log.applied = false;
	return 0;
}

static int begin_log(struct vhdx_state *s, struct img_error *err)
{
	int ret = vhdx_touch(s, false, err);

	if (ret == 0)
		ret = vhdx_guid_new(s->log.guid, err);
	/* How long the file is must be known to be so. */
	if (ret == 0)
		ret = sync_file(s, err);
	if (ret == 0)
		ret = set_log_guid(s, s->log.guid, err);
	if (ret != 0)
		return ret;
	s->log.active = true;
	s->log.at = 0;
	s->log.sequence = 1;
	return 0;
}

int vhdx_journal_end(struct vhdx_state *s, struct img_error *err)
{
	static const uint8_t none[16];
	int ret;

	if (!s->log.active)
		return 0;
	ret = sync_file(s, err);
	if (ret == 0)
		ret = set_log_guid(s, none, err);
	if (ret == 0)
		s->log.active = false;
	return ret;
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static void put_descriptor(uint8_t *at, uint64_t off, uint64_t sequence, const uint8_t *sector, uint64_t zero_bytes)
{
	struct disk_vhdx_descriptor d = { .off = le64_of(off), .sequence = le64_of(sequence) };

	if (sector) {
		memcpy(d.signature, "desc", 4);
		memcpy(&d.leading, sector, LEADING_BYTES);
		memcpy(&d.trailing, sector + VHDX_SECTOR_BYTES - TRAILING_BYTES, TRAILING_BYTES);
	} else {
		memcpy(d.signature, "zero", 4);
		d.leading = le64_of(zero_bytes);
	}
	memcpy(at, &d, sizeof(d));
}

static void put_data(uint8_t *at, uint64_t sequence, const uint8_t *sector)
{
	struct disk_vhdx_log_data d = { .sequence_high = le32_of((uint32_t)(sequence >> 32)),
					.sequence_low = le32_of((uint32_t)sequence) };

	memcpy(d.signature, "data", 4);
	memcpy(d.data, sector + LEADING_BYTES, sizeof(d.data));
	memcpy(at, &d, sizeof(d));
}

/* entry: zeros. Returns its bytes. */
static uint64_t build(const struct vhdx_state *s, uint8_t *entry, const struct vhdx_change *list, size_t nr,
		      uint64_t at)
{
	struct disk_vhdx_log_entry e = { .tail = le32_of((uint32_t)at),
					 .sequence = le64_of(s->log.sequence),
					 .flushed_file_bytes = le64_of(round_down(s->log.durable_bytes, VHDX_MIB)),
					 .last_file_bytes = le64_of(round_up(s->log.end, VHDX_MIB)) };
	uint8_t *descriptor = entry + sizeof(e), *data = entry + VHDX_SECTOR_BYTES;
	uint32_t nr_descriptors = 0;

	for (size_t i = 0; i < nr; i++) {
		const struct vhdx_change *c = &list[i];

		for (uint64_t in = 0; in < (c->data ? c->bytes : 1); in += VHDX_SECTOR_BYTES) {
			const uint8_t *sector = c->data ? c->data + in : NULL;

			put_descriptor(descriptor, c->off + in, s->log.sequence, sector, c->bytes);
			descriptor += sizeof(struct disk_vhdx_descriptor);
			nr_descriptors++;
			if (!sector)
				continue;
			put_data(data, s->log.sequence, sector);
			data += VHDX_SECTOR_BYTES;
		}
	}
	memcpy(e.signature, "loge", 4);
	e.bytes = le32_of((uint32_t)(data - entry));
	e.nr_descriptors = le32_of(nr_descriptors);
	memcpy(e.log, s->log.guid, sizeof(e.log));
	memcpy(entry, &e, sizeof(e));
	e.checksum = le32_of(crc32c(0, entry, (size_t)(data - entry)));
	memcpy(entry, &e, sizeof(e));
	return (uint64_t)(data - entry);
}

static int apply(struct vhdx_state *s, const struct vhdx_change *list, size_t nr, struct img_error *err)
{
	int ret = 0;

	s->log.applied = true;
	for (size_t i = 0; i < nr && ret == 0; i++) {
		if (list[i].data)
			ret = node_pwrite(s->node->file, list[i].data, list[i].bytes, list[i].off, 0, err);
		else
			ret = node_zero(s->node->file, list[i].bytes, list[i].off, 0, err);
	}
	return ret;
}

/* entry: VHDX_ENTRY_SECTORS of zeros. */
static int write_entry(struct vhdx_state *s, uint8_t *entry, const struct vhdx_change *list, size_t nr,
		       struct img_error *err)
{
	uint64_t room = (uint64_t)VHDX_ENTRY_SECTORS * VHDX_SECTOR_BYTES, bytes, size;
	int ret = 0;

	/* VHDX-10: what the entry before says must not be needed any more. */
	if (s->log.applied)
		ret = sync_file(s, err);
	if (ret != 0)
		return ret;
	if (s->log.at + room > s->log.ring.bytes)
		s->log.at = 0;
	bytes = build(s, entry, list, nr, s->log.at);
	s->log.sequence++;
	size = node_size(s->node->file);
	ret = node_pwrite(s->node->file, entry, bytes, s->log.ring.off + s->log.at, 0, err);
	if (ret == 0)
		ret = node_flush(s->node->file, 0, err);
	if (ret != 0)
		return ret;
	s->log.at += bytes;
	s->log.durable_bytes = size;
	return apply(s, list, nr, err);
}

int vhdx_journal_write(struct vhdx_state *s, const struct vhdx_change *list, size_t nr, struct img_error *err)
{
	uint8_t *entry;
	int ret = s->log.active ? 0 : begin_log(s, err);

	if (ret != 0)
		return ret;
	entry = calloc(VHDX_ENTRY_SECTORS, VHDX_SECTOR_BYTES);
	if (!entry)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = write_entry(s, entry, list, nr, err);
	free(entry);
	return ret;
}

/* ---- what the engine writes -------------------------------------------------------------------------------------- */

int vhdx_journal_sync(struct blockmap *bm, struct img_error *err)
{
	return sync_file(blockmap_format(bm), err);
}

/* Sectors on their way into an entry. */
struct batch {
	struct vhdx_state *s;
	struct vhdx_change list[VHDX_ENTRY_DATA];
	size_t nr;
	uint8_t *buf; /* VHDX_ENTRY_DATA sectors */
};

static int send(struct batch *b, struct img_error *err)
{
	int ret = vhdx_journal_write(b->s, b->list, b->nr, err);

	b->nr = 0;
	return ret;
}

/* A part of the sector at sector_off becomes data; the rest is as it is. */
static int add_part(struct batch *b, uint64_t sector_off, const uint8_t *data, uint64_t bytes, uint64_t off,
		    struct img_error *err)
{
	struct vhdx_change *last = b->nr > 0 ? &b->list[b->nr - 1] : NULL;
	uint8_t *to;
	int ret = 0;

	if (!last || last->off != sector_off) {
		if (b->nr == VHDX_ENTRY_DATA)
			ret = send(b, err);
		to = b->buf + b->nr * VHDX_SECTOR_BYTES;
		if (ret == 0 && bytes < VHDX_SECTOR_BYTES)
			ret = node_pread(b->s->node->file, to, VHDX_SECTOR_BYTES, sector_off, 0, err);
		if (ret != 0)
			return ret;
		b->list[b->nr++] = (struct vhdx_change){ sector_off, VHDX_SECTOR_BYTES, to };
	}
	memcpy(b->buf + (b->nr - 1) * VHDX_SECTOR_BYTES + (off - sector_off), data, (size_t)bytes);
	return 0;
}

static int add_write(struct batch *b, const struct blockmap_write *w, bool down, struct img_error *err)
{
	uint64_t first = round_down(w->off, VHDX_SECTOR_BYTES), end = w->off + w->bytes;
	uint64_t nr = (end - first - 1) / VHDX_SECTOR_BYTES + 1;
	int ret = 0;

	for (uint64_t i = 0; i < nr && ret == 0; i++) {
		uint64_t sector = first + (down ? nr - 1 - i : i) * VHDX_SECTOR_BYTES;
		uint64_t from = max_u64(sector, w->off), to = min_u64(sector + VHDX_SECTOR_BYTES, end);

		ret = add_part(b, sector, (const uint8_t *)w->buf + (from - w->off), to - from, from, err);
	}
	return ret;
}

/* Without a log, which a bulk writer does not need: nothing has to survive before its end. */
static int store_plain(struct vhdx_state *s, const struct blockmap_write *writes, size_t nr, struct img_error *err)
{
	int ret = 0;

	for (size_t i = 0; i < nr && ret == 0; i++)
		ret = node_pwrite(s->node->file, writes[i].buf, writes[i].bytes, writes[i].off, 0, err);
	return ret;
}

static bool is_table(const struct vhdx_state *s, const struct blockmap_write *w)
{
	return w->off >= s->m.bat.off && w->off < s->m.bat.off + s->m.bat.bytes;
}

/*
 * Where one entry does not hold all of it, bits go before the table, and the table goes from its end on (VHDX-11): a
 * block that becomes partial finds its bits as they should be, and the entry of its bitmap, which stands behind its
 * own, already there.
 */
int vhdx_journal_store(struct blockmap *bm, const struct blockmap_write *writes, size_t nr, struct img_error *err)
{
	struct vhdx_state *s = blockmap_format(bm);
	struct batch *b;
	int ret = 0;

	if (s->bulk && !s->log.active)
		return store_plain(s, writes, nr, err);
	b = calloc(1, sizeof(*b));
	if (!b)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	b->s = s;
	b->buf = malloc(VHDX_ENTRY_DATA * VHDX_SECTOR_BYTES);
	if (!b->buf)
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < nr && ret == 0; i++)
		if (!is_table(s, &writes[i]))
			ret = add_write(b, &writes[i], false, err);
	for (size_t i = nr; i-- > 0 && ret == 0;)
		if (is_table(s, &writes[i]))
			ret = add_write(b, &writes[i], true, err);
	if (ret == 0)
		ret = send(b, err);
	free(b->buf);
	free(b);
	return ret;
}
