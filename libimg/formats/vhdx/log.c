/* SPDX-License-Identifier: MIT */
/*
 * The log. It is a ring of entries, each of which says what some sectors of the file are to become. The entries that
 * count are the last unbroken sequence: numbers that go up by one, the same GUID as in the header, checksums that hold,
 * from the tail that its last entry names to that entry. [MS-VHDX] 2.3.
 *
 * An image is read without being changed: the sequence is laid over the file as a filter node, which gives every reader
 * above it the file as it will be when somebody replays the log. A writer looks at the image through it too, and if it
 * is one that can be opened, writes what lies over the file into it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "is_zero.h"
#include "vhdx.h"

#define HEAD_DESCRIPTORS   126u /* in the first sector of an entry */
#define SECTOR_DESCRIPTORS 128u
#define ENTRY_MAX	   (64 * VHDX_MIB) /* Windows' logs have 1 MiB altogether */
#define CHANGES_MAX	   (1u << 20)
#define ENTRY(field)	   offsetof(struct disk_vhdx_log_entry, field)
#define DESC(field)	   offsetof(struct disk_vhdx_descriptor, field)
#define DATA(field)	   offsetof(struct disk_vhdx_log_data, field)

/* What one descriptor changes. */
struct change {
	uint64_t off, bytes;
	uint8_t *data; /* bytes of it; NULL: zeros */
};

struct replayed {
	struct change *list; /* in the order of the log: later ones win */
	size_t nr, room;
	uint64_t file_bytes; /* as it will be */
};

struct log {
	struct node *file;
	const struct vhdx_header *h;
	struct budget *budget;
	uint8_t *entry; /* the one that was read last */
	uint64_t room;
};

/* An entry of the ring. */
struct place {
	uint64_t at, bytes; /* of the ring */
	uint64_t tail, sequence;
	uint64_t flushed_file_bytes, last_file_bytes;
};

/* A sequence. */
struct sequence {
	struct place first, last;
	uint64_t nr;
};

/* ---- entries ----------------------------------------------------------------------------------------------------- */

/* The ring goes on at its beginning. */
static int read_ring(const struct log *l, void *buf, uint64_t bytes, uint64_t at, struct img_error *err)
{
	uint64_t first = min_u64(bytes, l->h->log.bytes - at);
	int ret = node_pread(l->file, buf, first, l->h->log.off + at, 0, err);

	if (ret == 0 && first < bytes)
		ret = node_pread(l->file, (uint8_t *)buf + first, bytes - first, l->h->log.off, 0, err);
	return ret;
}

static uint64_t descriptor_sectors(uint64_t nr)
{
	return nr <= HEAD_DESCRIPTORS ? 1 : 1 + (nr - HEAD_DESCRIPTORS + SECTOR_DESCRIPTORS - 1) / SECTOR_DESCRIPTORS;
}

static const uint8_t *descriptor_at(const uint8_t *entry, uint64_t i)
{
	return entry + sizeof(struct disk_vhdx_log_entry) + i * sizeof(struct disk_vhdx_descriptor);
}

/* Do descriptors and data sectors hang together? entry: all of p->bytes. */
static bool body_holds(const uint8_t *entry, const struct place *p)
{
	uint64_t nr = le32_at(entry, ENTRY(nr_descriptors)), sectors = descriptor_sectors(nr), data = 0,
		 all = p->bytes / VHDX_SECTOR_BYTES;

	if (sectors > all)
		return false;
	for (uint64_t i = 0; i < nr; i++) {
		const uint8_t *d = descriptor_at(entry, i);

		if (le64_at(d, DESC(sequence)) != p->sequence || le64_at(d, DESC(off)) % VHDX_SECTOR_BYTES != 0 ||
		    le64_at(d, DESC(off)) > INT64_MAX)
			return false;
		if (memcmp(d, "desc", 4) == 0)
			data++;
		else if (memcmp(d, "zero", 4) != 0 || le64_at(d, DESC(leading)) % VHDX_SECTOR_BYTES != 0 ||
			 le64_at(d, DESC(leading)) > INT64_MAX - le64_at(d, DESC(off)))
			return false;
	}
	if (sectors + data != all)
		return false;
	for (uint64_t i = sectors; i < all; i++) {
		const uint8_t *s = entry + i * VHDX_SECTOR_BYTES;

		if (memcmp(s, "data", 4) != 0 ||
		    ((uint64_t)le32_at(s, DATA(sequence_high)) << 32 | le32_at(s, DATA(sequence_low))) != p->sequence)
			return false;
	}
	return true;
}

static bool entry_sum_holds(uint8_t *entry, uint64_t bytes)
{
	uint32_t want = le32_at(entry, ENTRY(checksum));

	memset(entry + ENTRY(checksum), 0, 4); /* nobody asks for it again */
	return crc32c(0, entry, (size_t)bytes) == want;
}

static int make_room(struct log *l, uint64_t bytes, struct img_error *err)
{
	uint8_t *entry;
	int ret;

	if (bytes <= l->room)
		return 0;
	ret = budget_metadata(l->budget, l->file->path, bytes - l->room, err);
	if (ret != 0)
		return ret;
	entry = realloc(l->entry, (size_t)bytes);
	if (!entry)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	l->entry = entry;
	l->room = bytes;
	return 0;
}

/* Reads the entry at p->at into l->entry. *holds: there is one. */
static int load_entry(struct log *l, struct place *p, bool *holds, struct img_error *err)
{
	int ret = make_room(l, VHDX_SECTOR_BYTES, err);

	*holds = false;
	if (ret == 0)
		ret = read_ring(l, l->entry, VHDX_SECTOR_BYTES, p->at, err);
	if (ret != 0 || memcmp(l->entry, "loge", 4) != 0 || memcmp(l->entry + ENTRY(log), l->h->log_guid, 16) != 0)
		return ret;
	p->bytes = le32_at(l->entry, ENTRY(bytes));
	p->tail = le32_at(l->entry, ENTRY(tail));
	p->sequence = le64_at(l->entry, ENTRY(sequence));
	p->flushed_file_bytes = le64_at(l->entry, ENTRY(flushed_file_bytes));
	p->last_file_bytes = le64_at(l->entry, ENTRY(last_file_bytes));
	if (p->bytes == 0 || p->bytes % VHDX_SECTOR_BYTES != 0 || p->bytes > min_u64(l->h->log.bytes, ENTRY_MAX) ||
	    p->tail % VHDX_SECTOR_BYTES != 0 || p->tail >= l->h->log.bytes || p->sequence == 0)
		return 0;
	ret = make_room(l, p->bytes, err);
	if (ret == 0)
		ret = read_ring(l, l->entry, p->bytes, p->at, err);
	*holds = ret == 0 && entry_sum_holds(l->entry, p->bytes) && body_holds(l->entry, p);
	return ret;
}

/* ---- the sequence that counts ------------------------------------------------------------------------------------ */

static uint64_t ring_next(const struct log *l, uint64_t at, uint64_t bytes)
{
	return (at + bytes) % l->h->log.bytes;
}

/* From at on, as long as numbers go up. nr 0: none begins there. */
static int follow(struct log *l, uint64_t at, struct sequence *out, struct img_error *err)
{
	uint64_t taken = 0;
	struct place p = { .at = at };
	bool holds = true;
	int ret = 0;

	*out = (struct sequence){ 0 };
	/* None goes on over the first one: a sector begins an entry, or it is of one. */
	while (taken < l->h->log.bytes) {
		ret = load_entry(l, &p, &holds, err);
		holds = holds && (out->nr == 0 || p.sequence == out->last.sequence + 1);
		if (ret != 0 || !holds)
			break;
		if (out->nr++ == 0)
			out->first = p;
		out->last = p;
		taken += p.bytes;
		p.at = ring_next(l, p.at, p.bytes);
	}
	return ret;
}

/* Does one of its entries begin at `tail`? They were read before; if they change since then, take_sequence() says so. */
static int has_tail(struct log *l, const struct sequence *s, uint64_t tail, bool *has, struct img_error *err)
{
	struct place p = s->first;
	bool holds = true;
	int ret = 0;

	*has = false;
	for (uint64_t i = 0; i < s->nr && ret == 0 && !*has; i++) {
		*has = p.at == tail;
		p.at = ring_next(l, p.at, p.bytes);
		if (!*has && i + 1 < s->nr)
			ret = load_entry(l, &p, &holds, err);
	}
	return ret;
}

static int find_sequence(struct log *l, struct sequence *out, struct img_error *err)
{
	int ret = 0;

	*out = (struct sequence){ 0 };
	for (uint64_t at = 0; at < l->h->log.bytes && ret == 0;) {
		struct sequence s;
		bool has = false;

		ret = follow(l, at, &s, err);
		if (ret == 0 && s.nr > 0 && (out->nr == 0 || s.last.sequence > out->last.sequence)) {
			ret = has_tail(l, &s, s.last.tail, &has, err);
			if (has)
				*out = s;
		}
		/* What began here and went over the ring's end was all that there is. */
		if (s.nr > 0 && s.last.at < at)
			break;
		at = s.nr > 0 ? s.last.at + s.last.bytes : at + VHDX_SECTOR_BYTES;
	}
	return ret;
}

/* ---- what it changes --------------------------------------------------------------------------------------------- */

static int add_change(struct log *l, struct replayed *r, const struct change *c, struct img_error *err)
{
	size_t room = r->room ? 2 * r->room : 64;
	struct change *list;
	int ret;

	if (r->nr == CHANGES_MAX)
		return error_set(err, IMG_E_LIMIT, 0, l->h->log.off, LAYER, "the log has more than %u changes",
				 CHANGES_MAX);
	if (r->nr == r->room) {
		ret = budget_metadata(l->budget, l->file->path, (room - r->room) * sizeof(*list), err);
		if (ret != 0)
			return ret;
		list = reallocarray(r->list, room, sizeof(*list));
		if (!list)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		r->list = list;
		r->room = room;
	}
	r->list[r->nr++] = *c;
	return 0;
}

/* VHDX-6: neither headers nor the log itself may change, and nothing lies behind the end that the log names. */
static int judge_change(const struct log *l, const struct replayed *r, const struct change *c, struct img_error *err)
{
	const struct vhdx_range *log = &l->h->log;

	if (c->bytes == 0 || (c->off >= VHDX_MIB && range_inside(c->off, c->bytes, r->file_bytes) &&
			      (c->off >= log->off + log->bytes || c->off + c->bytes <= log->off)))
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, log->off, LAYER,
			 "the log would change 0x%" PRIx64 " bytes at 0x%" PRIx64 ", where it must not", c->bytes,
			 c->off);
}

/* A sector of data: its first 8 and last 4 bytes stand in the descriptor. */
static int take_data(struct log *l, struct replayed *r, const uint8_t *d, const uint8_t *sector, struct img_error *err)
{
	struct change c = { .off = le64_at(d, DESC(off)), .bytes = VHDX_SECTOR_BYTES };
	int ret = judge_change(l, r, &c, err);

	if (ret == 0)
		ret = budget_metadata(l->budget, l->file->path, VHDX_SECTOR_BYTES, err);
	if (ret != 0)
		return ret;
	c.data = malloc(VHDX_SECTOR_BYTES);
	if (!c.data)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(c.data, d + DESC(leading), 8);
	memcpy(c.data + 8, sector + DATA(data), VHDX_SECTOR_BYTES - 12);
	memcpy(c.data + VHDX_SECTOR_BYTES - 4, d + DESC(trailing), 4);
	ret = add_change(l, r, &c, err);
	if (ret != 0)
		free(c.data);
	return ret;
}

/* l->entry holds it. */
static int take_entry(struct log *l, struct replayed *r, struct img_error *err)
{
	uint64_t nr = le32_at(l->entry, ENTRY(nr_descriptors));
	const uint8_t *sector = l->entry + descriptor_sectors(nr) * VHDX_SECTOR_BYTES;
	int ret = 0;

	for (uint64_t i = 0; i < nr && ret == 0; i++) {
		const uint8_t *d = descriptor_at(l->entry, i);
		struct change zeros = { .off = le64_at(d, DESC(off)), .bytes = le64_at(d, DESC(leading)) };

		if (memcmp(d, "zero", 4) == 0) {
			ret = judge_change(l, r, &zeros, err);
			if (ret == 0)
				ret = add_change(l, r, &zeros, err);
			continue;
		}
		ret = take_data(l, r, d, sector, err);
		sector += VHDX_SECTOR_BYTES;
	}
	return ret;
}

static int take_sequence(struct log *l, const struct sequence *s, struct replayed *r, struct img_error *err)
{
	struct place p = { .at = s->last.tail };
	bool holds = true;
	int ret = 0;

	/* VHDX-6: what the file had when the entry was written must still be there. */
	if (node_size(l->file) < s->last.flushed_file_bytes)
		return error_set(err, IMG_E_CORRUPT, 0, node_size(l->file), LAYER,
				 "the file is cut off: its log says that it had 0x%" PRIx64 " bytes",
				 s->last.flushed_file_bytes);
	r->file_bytes = max_u64(node_size(l->file), s->last.last_file_bytes);
	if (r->file_bytes > INT64_MAX)
		return error_set(err, IMG_E_CORRUPT, 0, l->h->log.off, LAYER,
				 "the log makes the file 0x%" PRIx64 " bytes long", r->file_bytes);
	/* Ends with the last entry; the bound is for a file that changes meanwhile. */
	for (uint64_t i = 0; i < s->nr; i++) { /* GCOV_EXCL_BR_LINE: see above */
		ret = load_entry(l, &p, &holds, err);
		/* It did a moment ago; nothing of it is used otherwise. */
		if (ret == 0 && !holds)
			ret = error_set(err, IMG_E_CORRUPT, 0, l->h->log.off + p.at, LAYER,
					"the log changes while it is read");
		if (ret == 0)
			ret = take_entry(l, r, err);
		if (ret != 0 || p.at == s->last.at)
			break;
		p.at = ring_next(l, p.at, p.bytes);
	}
	return ret;
}

/* ---- the layer over the file ------------------------------------------------------------------------------------- */

static uint64_t over_size(const struct node *node)
{
	return ((const struct replayed *)node->state)->file_bytes;
}

/* What the file does not have yet is zeros. */
static int read_below(struct node *node, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size = node_size(node->file), there = off < size ? min_u64(bytes, size - off) : 0;

	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there > 0 ? node_pread(node->file, buf, there, off, 0, err) : 0;
}

static int over_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	const struct replayed *r = node->state;
	int ret = read_below(node, buf, bytes, off, err);

	(void)flags;
	for (size_t i = 0; i < r->nr && ret == 0; i++) {
		const struct change *c = &r->list[i];
		uint64_t from = max_u64(c->off, off), to = min_u64(c->off + c->bytes, off + bytes);

		if (from >= to)
			continue;
		if (c->data)
			memcpy((uint8_t *)buf + (from - off), c->data + (from - c->off), (size_t)(to - from));
		else
			memset((uint8_t *)buf + (from - off), 0, (size_t)(to - from));
	}
	return ret;
}

static void drop_changes(struct replayed *r)
{
	for (size_t i = 0; i < r->nr; i++)
		free(r->list[i].data);
	free(r->list);
}

static int over_close(struct node *node, struct img_error *err)
{
	(void)err;
	drop_changes(node->state);
	return 0;
}

static const struct img_driver over_driver = {
	.name = "vhdx-log",
	.kind = DRIVER_FILTER,
	.state_bytes = sizeof(struct replayed),
	.close = over_close,
	.size = over_size,
	.pread = over_pread,
};

int vhdx_log_open(struct node *file, const struct vhdx_header *h, struct budget *budget, struct node **out,
		  struct img_error *err)
{
	struct log l = { .file = file, .h = h, .budget = budget };
	struct sequence s;
	struct replayed r = { 0 };
	struct node *over = NULL;
	int ret;

	*out = file;
	if (!h->needs_replay)
		return 0;
	ret = find_sequence(&l, &s, err);
	if (ret == 0 && s.nr > 0)
		ret = take_sequence(&l, &s, &r, err);
	if (ret == 0 && s.nr > 0) {
		over = node_new(&over_driver, file->path, err);
		ret = over ? 0 : IMG_E_NOMEM;
	}
	free(l.entry);
	if (!over) {
		drop_changes(&r);
		return ret;
	}
	*(struct replayed *)over->state = r;
	over->file = file;
	over->opened = true;
	*out = over;
	return 0;
}

/* ---- for a writer ------------------------------------------------------------------------------------------------ */

static int make_so(struct node *file, const struct replayed *r, struct img_error *err)
{
	int ret = node_size(file) < r->file_bytes ? node_resize(file, r->file_bytes, err) : 0;

	for (size_t i = 0; i < r->nr && ret == 0; i++) {
		const struct change *c = &r->list[i];

		if (c->data)
			ret = node_pwrite(file, c->data, c->bytes, c->off, 0, err);
		else if (c->bytes > 0)
			ret = node_zero(file, c->bytes, c->off, 0, err);
	}
	return ret == 0 ? node_flush(file, 0, err) : ret;
}

int vhdx_log_replay(struct node **over, struct vhdx_header *h, struct img_error *err)
{
	bool is_over = (*over)->drv == &over_driver;
	struct node *file = is_over ? (*over)->file : *over;
	struct vhdx_header after = *h;
	int ret = is_over ? make_so(file, (*over)->state, err) : 0;

	if (ret != 0)
		return ret;
	memset(after.log_guid, 0, sizeof(after.log_guid));
	after.needs_replay = false;
	ret = vhdx_guid_new(after.file_write, err);
	if (ret == 0)
		ret = vhdx_header_store(file, &after, true, err);
	if (ret != 0)
		return ret;
	*h = after;
	if (is_over) {
		(*over)->file = NULL;
		(void)node_close(*over, NULL);
	}
	*over = file;
	return 0;
}
