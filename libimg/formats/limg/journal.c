/* SPDX-License-Identifier: MIT */
/*
 * The journal: a ring of records that name mappings newer than the trees. One record, one sync, for a guest's flush.
 * Recovery follows the chain of checksums, then asks of every record found how far durability had been confirmed
 * (`stable`): a break before that is damage, after it a torn tail. format-spec/limg.md sections 9 and 10.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"

uint64_t journal_ring_aus(const struct engine *e)
{
	uint64_t bytes = min_u64(max_u64(atomic_load(&e->disk_bytes) / 256, UINT64_C(1) << 20), UINT64_C(64) << 20);

	return bytes >> AU_SHIFT;
}

/* ---- building ---- */

void record_begin(struct record_buf *r)
{
	memset(r, 0, sizeof *r);
	r->bytes = sizeof(struct disk_record);
}

static uint8_t *record_more(struct record_buf *r, size_t more)
{
	if (r->failed)
		return NULL;
	if (r->bytes + more > r->cap) {
		size_t cap = r->cap ? r->cap : 4096;
		uint8_t *d;

		while (cap < r->bytes + more)
			cap *= 2;
		d = realloc(r->data, cap);
		if (!d) {
			r->failed = true;
			return NULL;
		}
		r->data = d;
		r->cap = cap;
	}
	r->bytes += more;
	return r->data + r->bytes - more;
}

void record_delta(struct record_buf *r, unsigned vol, uint64_t block, uint64_t word, unsigned nr, const uint64_t *csum)
{
	struct disk_delta d = { .block = le64_of(block), .word = le64_of(word), .nr = le32_of(nr), .vol = (uint8_t)vol };
	size_t csums = word_state(word) >= ST_RAW ? nr * sizeof(struct le64) : 0;
	uint8_t *at = record_more(r, sizeof d + csums);

	if (!at)
		return;
	memcpy(at, &d, sizeof d);
	for (unsigned i = 0; i < csums / sizeof(struct le64); i++) {
		struct le64 c = le64_of(csum[i]);

		memcpy(at + sizeof d + i * sizeof c, &c, sizeof c);
	}
	r->nr_deltas++;
}

uint64_t record_bytes(const struct record_buf *r)
{
	return round_up(r->bytes + 16, AU_BYTES);
}

void record_free(struct record_buf *r)
{
	free(r->data);
	memset(r, 0, sizeof *r);
}

/* Where a record of this size would go, and what it takes of the ring with the rest that is skipped before it. */
static bool fits_here(const struct journal *j, uint64_t bytes)
{
	return j->head + bytes <= au_off(j->aus);
}

bool journal_has_room(const struct journal *j, uint64_t bytes)
{
	uint64_t need = fits_here(j, bytes) ? bytes : bytes + au_off(j->aus) - j->head;

	return j->aus && bytes <= au_off(j->aus) && j->used + need <= au_off(j->aus);
}

static int record_write(struct engine *e, unsigned kind, uint8_t *page, uint64_t bytes, size_t used, uint32_t nr_deltas,
			struct img_error *err)
{
	struct journal *j = &e->journal;
	struct disk_record *d = (struct disk_record *)page;
	uint8_t csum[16];
	int rc;

	memset(d, 0, sizeof *d);
	d->magic = le32_of(RECORD_MAGIC);
	d->bytes = le32_of((uint32_t)bytes);
	memcpy(d->uuid, e->uuid, 16);
	d->salt = le64_of(j->salt);
	d->seq = le64_of(j->seq);
	memcpy(d->prev, j->prev, 16);
	d->stable = le64_of(j->stable);
	d->kind = le32_of(kind);
	d->nr_deltas = le32_of(nr_deltas);
	d->delta_bytes = le32_of((uint32_t)(used - sizeof *d));
	d->disk_size = le64_of(atomic_load(&e->disk_bytes));
	memset(page + used, 0, (size_t)bytes - used);
	xxh128_store(page, (size_t)bytes - 16, csum);
	memcpy(page + bytes - 16, csum, 16);
	rc = node_pwrite(e->file, page, bytes, au_off(j->addr) + j->head, 0, err);
	if (rc)
		return rc;
	memcpy(j->prev, csum, 16);
	j->seq++;
	j->used += bytes;
	j->head += bytes;
	if (j->head == au_off(j->aus))
		j->head = 0;
	return 0;
}

void journal_cut(struct engine *e)
{
	struct journal *j = &e->journal;
	struct {
		uint8_t prev[16];
		struct le64 generation;
	} in;

	memcpy(in.prev, j->prev, sizeof(in.prev));
	in.generation = le64_of(e->sb.generation);
	xxh128_store(&in, sizeof(in), j->prev);
}

int journal_append(struct engine *e, struct record_buf *r, struct img_error *err)
{
	struct journal *j = &e->journal;
	uint64_t bytes = record_bytes(r);
	uint8_t *end;

	if (!fits_here(j, bytes)) {
		uint8_t page[AU_BYTES];
		uint64_t skipped = au_off(j->aus) - j->head - AU_BYTES;
		int rc = record_write(e, RECORD_WRAP, page, AU_BYTES, sizeof(struct disk_record), 0, err);

		if (rc)
			return rc;
		j->used += skipped;
		j->head = 0;
	}
	end = record_more(r, (size_t)bytes - r->bytes);
	if (!end)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	return record_write(e, RECORD_DELTAS, r->data, bytes, (size_t)(end - r->data), r->nr_deltas, err);
}

/* ---- recovery ---- */

struct scan {
	struct engine *e;
	uint64_t ring_off, ring_bytes;
	uint8_t *buf; /* the record at hand */
	size_t cap;
	uint64_t bytes;
};

/* Reads the record at an offset of the ring, that of an AU in it, into s->buf. 1: sound, of this session; 0: not; negative: error. */
static int scan_read(struct scan *s, uint64_t at, struct img_error *err)
{
	const struct disk_record *d;
	uint8_t csum[16];
	int rc;

	rc = node_pread(s->e->file, s->buf, AU_BYTES, s->ring_off + at, 0, err);
	if (rc)
		return rc;
	d = (const struct disk_record *)s->buf;
	s->bytes = le32_get(d->bytes);
	if (le32_get(d->magic) != RECORD_MAGIC || memcmp(d->uuid, s->e->uuid, 16) ||
	    le64_get(d->salt) != s->e->sb.salt || s->bytes < AU_BYTES || s->bytes % AU_BYTES ||
	    s->bytes > s->ring_bytes - at)
		return 0;
	if (s->bytes > s->cap) {
		uint8_t *bigger = realloc(s->buf, (size_t)s->bytes);

		if (!bigger)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		s->buf = bigger;
		s->cap = (size_t)s->bytes;
	}
	if (s->bytes > AU_BYTES) {
		rc = node_pread(s->e->file, s->buf + AU_BYTES, s->bytes - AU_BYTES, s->ring_off + at + AU_BYTES, 0,
				err);
		if (rc)
			return rc;
	}
	xxh128_store(s->buf, (size_t)s->bytes - 16, csum);
	return memcmp(csum, s->buf + s->bytes - 16, 16) == 0;
}

/* The highest stable number that any record of this session states. */
static int scan_stable(struct scan *s, uint64_t *stable, struct img_error *err)
{
	*stable = 0;
	for (uint64_t at = 0; at < s->ring_bytes; at += AU_BYTES) {
		int rc = scan_read(s, at, err);
		const struct disk_record *d = (const struct disk_record *)s->buf;

		if (rc < 0)
			return rc;
		if (rc && le64_get(d->seq) >= s->e->sb.ring_seq && le64_get(d->stable) < le64_get(d->seq))
			*stable = max_u64(*stable, le64_get(d->stable));
	}
	return 0;
}

/* One delta in host order, checked against the volume. */
struct delta {
	uint64_t block, word;
	unsigned nr, vol;
	uint64_t csum[LEAF_ENTRIES];
};

/*
 * While a snapshot is being made, what is flushed beside it already belongs to the next epoch. Where that snapshot did
 * not come about there is no such epoch, and nothing in a tree is younger than its superblock (LIMG-7).
 */
static uint64_t born_by_now(const struct engine *e, uint64_t word)
{
	return word_birth(word) > e->sb.epoch ? word_make(word_addr(word), e->sb.epoch, word_state(word)) : word;
}

static bool delta_load(struct engine *e, const uint8_t *p, size_t left, struct delta *out, size_t *taken)
{
	struct disk_delta d;
	uint64_t blocks = (atomic_load(&e->disk_bytes) + e->block_bytes - 1) >> e->block_shift;
	struct entry en;
	unsigned st;

	if (left < sizeof d)
		return false;
	memcpy(&d, p, sizeof d);
	out->block = le64_get(d.block);
	out->word = born_by_now(e, le64_get(d.word));
	out->nr = le32_get(d.nr);
	out->vol = d.vol;
	st = word_state(out->word);
	*taken = sizeof d + (st >= ST_RAW ? out->nr * sizeof(struct le64) : 0);
	if (out->vol != VOL_DISK || d.zero[0] || d.zero[1] || d.zero[2] || out->nr == 0 ||
	    out->nr > LEAF_ENTRIES - (out->block & (LEAF_ENTRIES - 1)) || !range_inside(out->block, out->nr, blocks) ||
	    left < *taken)
		return false;
	for (unsigned i = 0; i < out->nr; i++) {
		struct le64 c = { { 0 } };

		if (st >= ST_RAW)
			memcpy(&c, p + sizeof d + i * sizeof c, sizeof c);
		out->csum[i] = le64_get(c);
		en = (struct entry){ out->word, out->csum[i] };
		if (st == ST_RAW)
			en.word += (uint64_t)i * e->block_aus;
		if (!entry_sound(e, VOL_DISK, &en))
			return false;
	}
	return true;
}

/* Does what it names lie in the file? A file that was to grow with the record may not have. */
static bool delta_inside(struct engine *e, const struct delta *d)
{
	uint64_t size = node_size(e->file);
	unsigned st = word_state(d->word);
	bool inside = true;

	for (unsigned i = 0; st >= ST_RAW && inside && i < d->nr; i++) {
		struct entry en = { d->word, d->csum[i] };
		uint64_t aus = state_compressed(st) ? entry_unit_aus(&en) : (i + 1u) * (uint64_t)e->block_aus;

		inside = au_off(word_addr(en.word) + aus) <= size;
	}
	return inside;
}

/* Is the data that a delta names all there? */
static int delta_verify(struct engine *e, const struct delta *d, uint8_t *buf, bool *holds, struct img_error *err)
{
	unsigned st = word_state(d->word);

	*holds = true;
	for (unsigned i = 0; st >= ST_RAW && *holds && i < d->nr; i++) {
		struct entry en = { d->word, d->csum[i] };
		int rc;

		if (st == ST_RAW) {
			en.word += (uint64_t)i * e->block_aus;
			rc = node_pread(e->file, buf, e->block_bytes, au_off(word_addr(en.word)), 0, err);
			if (rc)
				return rc;
			*holds = csum_matches(&en, block_csum(buf, e->block_bytes));
			continue;
		}
		rc = unit_read(e, &en, (unsigned)((d->block + i) % e->unit_blocks), 1, buf, NULL);
		if (rc && rc != IMG_E_CORRUPT)
			return error_set(err, rc, 0, au_off(word_addr(en.word)), LAYER,
					 "cannot read a compressed unit");
		*holds = rc == 0;
	}
	return 0;
}

/* Applies (or only verifies) the deltas of the record in s->buf. *holds: the data that they name is there. */
static int record_deltas(struct scan *s, bool apply, bool *holds, struct img_error *err)
{
	struct engine *e = s->e;
	const struct disk_record *r = (const struct disk_record *)s->buf;
	const uint8_t *p = s->buf + sizeof *r;
	size_t left = le32_get(r->delta_bytes);
	struct delta *d = malloc(sizeof *d);
	uint8_t *buf = malloc(e->block_bytes);
	int rc = d && buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	*holds = true;
	if (!rc && left > s->bytes - sizeof *r - 16)
		rc = error_set(err, IMG_E_CORRUPT, 0, s->ring_off, LAYER,
			       "the length of journal record %llu is not sound (LIMG-15)",
			       (unsigned long long)le64_get(r->seq));
	for (uint32_t i = 0; !rc && *holds && i < le32_get(r->nr_deltas); i++) {
		size_t taken;

		if (!delta_load(e, p, left, d, &taken)) {
			rc = error_set(err, IMG_E_CORRUPT, 0, s->ring_off, LAYER,
				       "delta %u of journal record %llu is not sound (LIMG-15)", i,
				       (unsigned long long)le64_get(r->seq));
			break;
		}
		*holds = delta_inside(e, d);
		if (!*holds && apply)
			rc = error_set(err, IMG_E_CORRUPT, 0, s->ring_off, LAYER,
				       "delta %u of journal record %llu lies beyond the end of the file (LIMG-15)", i,
				       (unsigned long long)le64_get(r->seq));
		if (!*holds)
			break;
		rc = apply ? overlay_replay(e, d->vol, d->block, d->nr, d->word, d->csum, err) :
			     delta_verify(e, d, buf, holds, err);
		p += taken;
		left -= taken;
	}
	free(d);
	free(buf);
	return rc;
}

/* Follows the chain; stops at its end, at a torn record, or with an error. *seq: the first that was not applied. */
static int scan_chain(struct scan *s, uint64_t stable, uint64_t *seq, bool *torn, struct img_error *err)
{
	struct engine *e = s->e;
	uint64_t at = e->sb.ring_tail, total = 0;
	uint8_t prev[16];

	*seq = e->sb.ring_seq;
	*torn = false;
	memcpy(prev, e->sb.ring_prev, 16);
	while (total < s->ring_bytes) {
		const struct disk_record *d;
		bool holds = true;
		int rc = scan_read(s, at, err);

		if (rc < 0)
			return rc;
		d = (const struct disk_record *)s->buf;
		if (!rc || le64_get(d->seq) != *seq || memcmp(d->prev, prev, 16))
			return 0;
		if (le32_get(d->kind) == RECORD_DELTAS) {
			if (*seq > stable)
				rc = record_deltas(s, false, &holds, err);
			if (rc < 0)
				return rc;
			if (!holds) {
				*torn = true;
				return 0;
			}
			rc = record_deltas(s, true, &holds, err);
			if (rc < 0)
				return rc;
		} else if (le32_get(d->kind) != RECORD_WRAP) {
			return error_set(err, IMG_E_CORRUPT, 0, s->ring_off + at, LAYER,
					 "journal record of unknown kind %u (LIMG-15)", le32_get(d->kind));
		}
		memcpy(prev, s->buf + s->bytes - 16, 16);
		total += s->bytes;
		at += s->bytes;
		if (le32_get(d->kind) == RECORD_WRAP || at == s->ring_bytes)
			at = 0;
		++*seq;
	}
	return 0;
}

int journal_recover(struct engine *e, struct img_error *err)
{
	struct scan s = {
		.e = e, .ring_off = au_off(e->sb.ring_addr), .ring_bytes = au_off(e->sb.ring_aus), .cap = 65536
	};
	uint64_t stable, seq;
	bool torn;
	int rc;

	if (!e->sb.ring_aus)
		return 0;
	s.buf = malloc(s.cap);
	if (!s.buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = scan_stable(&s, &stable, err);
	if (!rc)
		rc = scan_chain(&s, stable, &seq, &torn, err);
	free(s.buf);
	if (rc)
		return rc;
	if (seq <= stable)
		e->journal_damaged = true;
	e->replayed = !overlay_empty(e);
	return 0;
}
