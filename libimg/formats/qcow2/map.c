/* SPDX-License-Identifier: MIT */
/*
 * From guest offset to where the bytes are. Lookups run under map for reading as long as the slices of L2 tables that
 * they need are in the cache; a miss is taken under map for writing, and the lookup begins again. A mapping that was
 * handed out stays true as long as its user holds gate: freed clusters are not reused before, and only writers of the
 * same guest range change it.
 *
 * Nothing in an entry is believed: see qcow2_entry_check(). Entries of snapshots are read like those of the head.
 */
#include <inttypes.h>

#include "qcow2_io.h"

static uint64_t l2_mask(const struct qcow2_engine *e)
{
	return (UINT64_C(1) << e->l2_shift) - 1;
}

struct qcow2_entry qcow2_entry_load(const struct qcow2_engine *e, const uint8_t *p)
{
	struct qcow2_entry en = { 0 };
	struct be64 raw;

	memcpy(&raw, p, sizeof(raw));
	en.desc = be64_get(raw);
	if (e->entry_bytes == 16) {
		memcpy(&raw, p + sizeof(raw), sizeof(raw));
		en.bitmap = be64_get(raw);
	}
	return en;
}

void qcow2_compressed_range(const struct qcow2_engine *e, uint64_t desc, uint64_t *off, uint64_t *bytes)
{
	unsigned shift = 62 - (e->h.cluster_bits - 8);
	uint64_t more = desc >> shift & ((UINT64_C(1) << (e->h.cluster_bits - 8)) - 1);

	*off = desc & ((UINT64_C(1) << shift) - 1);
	*bytes = (more + 1) * 512 - *off % 512;
}

/* ---- checks ---- */

static int bad_entry(const struct qcow2_entry *en, uint64_t guest_off, struct img_error *err, const char *what)
{
	return error_set(err, IMG_E_CORRUPT, 0, guest_off, LAYER,
			 "the L2 entry 0x%" PRIx64 " of guest offset 0x%" PRIx64 " %s: run imgtool check", en->desc,
			 guest_off, what);
}

static int check_subclusters(const struct qcow2_engine *e, const struct qcow2_entry *en, uint64_t guest_off,
			     struct img_error *err)
{
	if (en->desc & QCOW2_ZERO)
		return bad_entry(en, guest_off, err, "has bit 0 set, which is reserved with subclusters");
	if (qcow2_sub_allocated(en) & qcow2_sub_zero(en))
		return bad_entry(en, guest_off, err, "has subclusters that are both allocated and zero");
	if (qcow2_sub_allocated(en) && !qcow2_entry_has_host(e, en->desc))
		return bad_entry(en, guest_off, err, "has allocated subclusters but no cluster");
	return 0;
}

int qcow2_entry_check(const struct qcow2_engine *e, const struct qcow2_entry *en, uint64_t guest_off,
		      struct img_error *err)
{
	uint64_t host = en->desc & QCOW2_OFFSET_MASK;

	if (en->desc & QCOW2_COMPRESSED) {
		if (e->external)
			return bad_entry(en, guest_off, err, "is compressed, in an image with an external data file");
		return 0;
	}
	if (en->desc & QCOW2_L2_RESERVED)
		return bad_entry(en, guest_off, err, "has reserved bits set");
	if (host % e->cluster_bytes)
		return bad_entry(en, guest_off, err, "is not aligned to a cluster");
	if (e->external && qcow2_entry_has_host(e, en->desc) && host != round_down(guest_off, e->cluster_bytes))
		return bad_entry(en, guest_off, err, "has another offset than the guest's, in an external data file");
	if (e->subclusters > 1)
		return check_subclusters(e, en, guest_off, err);
	if ((en->desc & QCOW2_ZERO) && e->h.version < 3)
		return bad_entry(en, guest_off, err, "has the zero flag, which version 2 does not know");
	return 0;
}

int qcow2_table_off(const struct qcow2_engine *e, uint64_t l1_entry, uint64_t index, uint64_t *off,
		    struct img_error *err)
{
	*off = l1_entry & QCOW2_OFFSET_MASK;
	if ((l1_entry & QCOW2_L1_RESERVED) || *off % e->cluster_bytes)
		return error_set(err, IMG_E_CORRUPT, 0, *off, LAYER,
				 "L1 entry %" PRIu64 " is 0x%" PRIx64 ", not a cluster: run imgtool check", index,
				 l1_entry);
	return 0;
}

/* ---- one entry ---- */

static enum qcow2_map_kind sub_kind(const struct qcow2_entry *en, unsigned s)
{
	if (qcow2_sub_allocated(en) >> s & 1)
		return MAP_DATA;
	return qcow2_sub_zero(en) >> s & 1 ? MAP_ZERO : MAP_UNALLOCATED;
}

/* What holds from byte in of the cluster on, at most to its end; the entry was checked. */
static void describe(const struct qcow2_engine *e, const struct qcow2_entry *en, bool own_table, uint64_t in,
		     struct qcow2_mapping *out)
{
	bool host = qcow2_entry_has_host(e, en->desc);

	*out = (struct qcow2_mapping){ .bytes = e->cluster_bytes - in };
	if (en->desc & QCOW2_COMPRESSED) {
		out->kind = MAP_COMPRESSED;
		qcow2_compressed_range(e, en->desc, &out->host_off, &out->host_bytes);
		return;
	}
	if (e->subclusters > 1) {
		unsigned s = (unsigned)(in / e->sub_bytes), n = s + 1;

		out->kind = sub_kind(en, s);
		while (n < e->subclusters && sub_kind(en, n) == out->kind)
			n++;
		out->bytes = n * e->sub_bytes - in;
	} else if (en->desc & QCOW2_ZERO) {
		out->kind = MAP_ZERO;
	} else {
		out->kind = host ? MAP_DATA : MAP_UNALLOCATED;
	}
	if (out->kind == MAP_DATA) {
		out->host_off = (en->desc & QCOW2_OFFSET_MASK) + in;
		out->in_place = e->external || (own_table && (en->desc & QCOW2_COPIED));
	} else if (out->kind == MAP_ZERO) {
		out->has_host = host;
	}
}

/* Adds next, which begins where m ends, or says that it is something else. */
static bool merge(struct qcow2_mapping *m, const struct qcow2_mapping *next)
{
	if (m->bytes == 0) {
		*m = *next;
		return true;
	}
	if (m->kind != next->kind || m->kind == MAP_COMPRESSED || m->in_place != next->in_place ||
	    m->has_host != next->has_host)
		return false;
	if (m->kind == MAP_DATA && m->host_off + m->bytes != next->host_off)
		return false;
	m->bytes += next->bytes;
	return true;
}

/* ---- walking ---- */

/* Adds what one slice says about [off, end); false in *more where the run ends. */
static int walk_slice(const struct qcow2_engine *e, const struct qcow2_slice *s, uint64_t slot, bool own_table,
		      uint64_t off, uint64_t end, struct qcow2_mapping *out, bool *more, struct img_error *err)
{
	uint64_t at = slot * e->entry_bytes % e->slice_bytes;

	for (; off < end && at < e->slice_bytes; at += e->entry_bytes) {
		struct qcow2_entry en = qcow2_entry_load(e, s->data + at);
		uint64_t in = off % e->cluster_bytes;
		int rc = qcow2_entry_check(e, &en, off, err);

		if (rc)
			return rc;
		while (in < e->cluster_bytes) {
			struct qcow2_mapping next;

			describe(e, &en, own_table, in, &next);
			if (!merge(out, &next)) {
				*more = false;
				return 0;
			}
			in += next.bytes;
			off += next.bytes;
		}
	}
	return 0;
}

/* *past: there is none, nor any behind it. A snapshot may claim to be larger than its table by any measure. */
static uint64_t l1_entry(const struct qcow2_view *v, uint64_t i, bool *past)
{
	*past = i >= (v->is_snapshot ? v->l1_entries : v->e->h.l1_entries);
	if (*past)
		return 0;
	return v->is_snapshot ? v->l1[i] : v->e->l1[i];
}

/*
 * Describes from off on what the cached slices tell. Where the first one needed is missing, *miss is its offset and out
 * is empty; where a later one is, the run just ends. map held.
 */
static int walk(struct qcow2_view *v, uint64_t off, uint64_t end, struct qcow2_mapping *out, uint64_t *miss,
		struct img_error *err)
{
	struct qcow2_engine *e = v->e;
	uint64_t start = off;
	bool more = true;

	*out = (struct qcow2_mapping){ 0 };
	*miss = 0;
	while (more && off < end) {
		bool past;
		uint64_t g = off >> e->h.cluster_bits, l1 = l1_entry(v, g >> e->l2_shift, &past), table;
		uint64_t stop = past ? end : ((g | l2_mask(e)) + 1) << e->h.cluster_bits;
		const struct qcow2_slice *s;
		int rc = qcow2_table_off(e, l1, g >> e->l2_shift, &table, err);

		if (rc)
			return rc;
		if (!table) {
			struct qcow2_mapping hole = { .kind = MAP_UNALLOCATED, .bytes = stop - off };

			more = merge(out, &hole);
			off = stop;
			continue;
		}
		table += (g & l2_mask(e)) * e->entry_bytes;
		s = qcow2_cache_peek(e, table);
		if (!s) {
			*miss = out->bytes ? 0 : table;
			return 0;
		}
		rc = walk_slice(e, s, g & l2_mask(e), (l1 & QCOW2_COPIED) != 0, off, end, out, &more, err);
		/* A bad entry behind a good run is met when it is asked for. */
		if (rc && out->bytes) {
			error_clear(err);
			return 0;
		}
		if (rc)
			return rc;
		off = start + out->bytes;
	}
	return 0;
}

int qcow2_map(struct qcow2_view *v, uint64_t off, uint64_t bytes, struct qcow2_mapping *out, struct img_error *err)
{
	struct qcow2_engine *e = v->e;
	uint64_t miss;
	int rc;

	for (;;) {
		struct qcow2_slice *s;

		pthread_rwlock_rdlock(&e->map);
		rc = walk(v, off, off + bytes, out, &miss, err);
		pthread_rwlock_unlock(&e->map);
		if (rc || !miss)
			break;
		pthread_rwlock_wrlock(&e->map);
		rc = qcow2_cache_get(e, miss, SLICE_L2, &s, err);
		if (!rc)
			rc = walk(v, off, off + bytes, out, &miss, err);
		pthread_rwlock_unlock(&e->map);
		if (rc || !miss)
			break;
	}
	out->bytes = min_u64(out->bytes, bytes);
	return rc;
}
