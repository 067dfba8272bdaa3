/* SPDX-License-Identifier: MIT */
/*
 * The data path. Reading: map a piece (blocks of one leaf) from overlay and tree, read its data, verify every block.
 * Nobody waits for readers before space is reused: a reader whose data fails verification maps the piece again, and
 * only a mapping that has not changed meanwhile makes it damage. Writing: data goes to free space, then the overlay
 * takes the mapping. A partial block is read, changed, and recorded only if the mapping that was read still holds; else
 * it starts over.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"

#define RANGE_LEAVES 64u    /* zero and discard: from here on a tree operation, below it overlay entries */
#define RANGE_STEP   16384u /* leaves in one step of it */

static uint64_t vol_bytes(const struct view *v, unsigned vol)
{
	if (v->snap)
		return vol == VOL_DISK ? v->disk.size_bytes : v->vm.size_bytes;
	return vol == VOL_DISK ? atomic_load(&v->e->disk_bytes) : atomic_load(&v->e->vm_bytes);
}

/* ---- mapping ---- */

static int map_tree(struct engine *e, unsigned vol, const struct ptr *root, unsigned levels, uint64_t block,
		    unsigned nr, struct entry *en, const bool *have, struct img_error *err)
{
	unsigned slot = (unsigned)(block & (LEAF_ENTRIES - 1));
	struct leaf_ref ref;
	int rc = tree_leaf(e, vol, root, levels, block >> LEAF_SHIFT, &ref, err);

	if (rc)
		return rc;
	for (unsigned i = 0; i < nr; i++) {
		if (have && have[i])
			continue;
		if (ref.page)
			leaf_entry(ref.page, slot + i, &en[i]);
		else
			en[i] = (struct entry){ ref.hole == ST_ZERO ? word_make(0, word_birth(ref.ptr.word), ST_ZERO) :
								      0,
						0 };
	}
	leaf_put(&ref);
	return 0;
}

/* nr blocks of one leaf. have (may be NULL) and *gen as overlay_get() gives them. */
static int map_blocks(struct view *v, unsigned vol, uint64_t block, unsigned nr, struct entry *en, bool *have,
		      uint64_t *gen, struct img_error *err)
{
	struct engine *e = v->e;
	struct img_error first;
	bool mine[LEAF_ENTRIES];
	uint64_t failed_gen = UINT64_MAX;

	if (v->snap) {
		const struct volume *vv = vol == VOL_DISK ? &v->disk : &v->vm;

		return map_tree(e, vol, &vv->root, vv->levels, block, nr, en, NULL, err);
	}
	if (!have)
		have = mine;
	for (;;) {
		struct ptr root;
		unsigned levels, missing = 0;
		uint64_t g = overlay_get(e, vol, block >> LEAF_SHIFT, (unsigned)(block & (LEAF_ENTRIES - 1)), nr, en,
					 have, &root, &levels);
		int rc;

		*gen = g;
		for (unsigned i = 0; i < nr; i++)
			missing += !have[i];
		if (!missing)
			return 0;
		error_clear(&first);
		rc = map_tree(e, vol, &root, levels, block, nr, en, have, &first);
		if (!rc)
			return 0;
		/* A node of the tree we started from may have been freed and reused since: ask again, unless nothing
		 * moved. */
		if (g == failed_gen) {
			if (err)
				*err = first;
			return rc;
		}
		failed_gen = g;
	}
}

/* ---- reading ---- */

static int raw_read(struct engine *e, const struct entry *en, unsigned nr, uint8_t *dst, struct img_error *err)
{
	uint64_t at = au_off(word_addr(en->word));
	int rc;

	if (at + (uint64_t)nr * e->block_bytes > node_size(e->file))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "data lies beyond the end of the file (LIMG-3)");
	rc = node_pread(e->file, dst, (uint64_t)nr * e->block_bytes, at, 0, err);
	for (unsigned i = 0; !rc && i < nr; i++)
		if (block_csum(dst + (size_t)i * e->block_bytes, e->block_bytes) != en[i].csum)
			rc = error_set(
				err, IMG_E_CORRUPT, 0, at + (uint64_t)i * e->block_bytes, LAYER,
				"the checksum of a data block does not hold: restore it from a backup (LIMG-11)");
	return rc;
}

/* Whole blocks of one kind: nr raw blocks in a row, or nr blocks of one compressed unit. */
static int data_read(struct engine *e, uint64_t block, const struct entry *en, unsigned nr, uint8_t *dst,
		     struct img_error *err)
{
	if (word_state(en->word) == ST_RAW)
		return raw_read(e, en, nr, dst, err);
	return unit_read(e, en, (unsigned)(block % e->unit_blocks), nr, dst, err);
}

/* How many entries from en on can be read in one go. */
static unsigned run_length(const struct engine *e, uint64_t block, const struct entry *en, unsigned nr)
{
	unsigned st = word_state(en->word), n = 1;

	while (n < nr && word_state(en[n].word) == st) {
		if (st == ST_RAW && word_addr(en[n].word) != word_addr(en[n - 1].word) + e->block_aus)
			break;
		if (state_compressed(st) && (en[n].word != en->word || (block + n) % e->unit_blocks == 0))
			break;
		n++;
	}
	return n;
}

/* [from, to) in bytes, inside the run of n blocks that starts at `block`. */
static int run_read(struct view *v, uint64_t block, const struct entry *en, unsigned n, uint8_t *dst, uint64_t from,
		    uint64_t to, struct img_error *err)
{
	struct engine *e = v->e;
	uint64_t start = block << e->block_shift;
	uint8_t *bounce;
	int rc = 0;

	if (word_state(en->word) == ST_NONE)
		return node_read_backing(e->node, dst, to - from, from, err);
	if (word_state(en->word) == ST_ZERO) {
		memset(dst, 0, (size_t)(to - from));
		return 0;
	}
	if (from == start && to == start + (uint64_t)n * e->block_bytes)
		return data_read(e, block, en, n, dst, err);
	bounce = malloc(e->block_bytes);
	if (!bounce)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (!rc && from < to) {
		unsigned k = (unsigned)((from - start) >> e->block_shift), full;
		uint64_t in = from & (e->block_bytes - 1), part = min_u64(e->block_bytes - in, to - from);

		full = in ? 0 : (unsigned)((to - from) >> e->block_shift);
		if (full) {
			part = (uint64_t)full << e->block_shift;
			rc = data_read(e, block + k, en + k, full, dst, err);
		} else {
			rc = data_read(e, block + k, en + k, 1, bounce, err);
			if (!rc)
				memcpy(dst, bounce + in, (size_t)part);
		}
		dst += part;
		from += part;
	}
	free(bounce);
	return rc;
}

static int mapped_read(struct view *v, unsigned vol, uint64_t block, const struct entry *en, unsigned nr, uint8_t *dst,
		       uint64_t off, uint64_t end, struct img_error *err)
{
	struct engine *e = v->e;

	for (unsigned i = 0; i < nr;) {
		unsigned n = run_length(e, block + i, en + i, nr - i);
		uint64_t from = max_u64(off, (block + i) << e->block_shift);
		uint64_t to = min_u64(end, (block + i + n) << e->block_shift);
		int rc;

		if (vol != VOL_DISK && word_state(en[i].word) == ST_NONE) {
			memset(dst + (from - off), 0, (size_t)(to - from)); /* machine state has no backing */
			rc = 0;
		} else {
			rc = run_read(v, block + i, en + i, n, dst + (from - off), from, to, err);
		}
		if (rc)
			return rc;
		i += n;
	}
	return 0;
}

/* A range inside one leaf. */
static int piece_read(struct view *v, unsigned vol, uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct engine *e = v->e;
	uint64_t block = off >> e->block_shift, gen;
	unsigned nr = (unsigned)(((off + bytes - 1) >> e->block_shift) - block + 1);
	struct entry en[LEAF_ENTRIES], again[LEAF_ENTRIES];
	struct img_error first;
	int rc = map_blocks(v, vol, block, nr, en, NULL, &gen, err);

	while (!rc) {
		error_clear(&first);
		rc = mapped_read(v, vol, block, en, nr, buf, off, off + bytes, &first);
		if (!rc)
			return 0;
		if (rc == IMG_E_CORRUPT && !v->snap) {
			int again_rc = map_blocks(v, vol, block, nr, again, NULL, &gen, err);

			if (again_rc)
				return again_rc;
			if (memcmp(en, again, nr * sizeof(*en))) {
				memcpy(en, again, nr * sizeof(*en));
				rc = 0;
				continue;
			}
		}
		if (err)
			*err = first;
	}
	return rc;
}

int view_read(struct view *v, unsigned vol, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t span = (uint64_t)LEAF_ENTRIES << v->e->block_shift;
	uint8_t *dst = buf;

	while (bytes) {
		uint64_t n = min_u64(bytes, span - (off & (span - 1)));
		int rc = piece_read(v, vol, dst, n, off, err);

		if (rc)
			return rc;
		dst += n;
		off += n;
		bytes -= n;
	}
	return 0;
}

/* ---- writing ---- */

static int zero_put(struct engine *e, unsigned vol, uint64_t block, unsigned nr, enum entry_state st,
		    struct img_error *err)
{
	bool stale = false;

	return overlay_put(e, vol, block, nr, word_make(0, 0, st), NULL, NULL, &stale, err);
}

/* nr whole blocks inside one leaf, as raw data. */
static int raw_write(struct engine *e, unsigned vol, const uint8_t *src, uint64_t block, unsigned nr,
		     struct img_error *err)
{
	uint64_t csum[LEAF_ENTRIES];

	while (nr) {
		uint64_t addr, got;
		unsigned n;
		bool stale = false;
		int rc = space_alloc_data(e, (uint64_t)nr * e->block_aus, false, &addr, &got, err);

		if (rc)
			return rc;
		n = (unsigned)(got / e->block_aus);
		rc = space_write_data(e, src, (uint64_t)n << e->block_shift, addr, err);
		for (unsigned i = 0; !rc && i < n; i++)
			csum[i] = block_csum(src + ((size_t)i << e->block_shift), e->block_bytes);
		if (!rc)
			rc = overlay_put(e, vol, block, n, word_make(addr, 0, ST_RAW), csum, NULL, &stale, err);
		if (rc) {
			space_free(e, addr, got);
			return rc;
		}
		src += (size_t)n << e->block_shift;
		block += n;
		nr -= n;
	}
	return 0;
}

/* As raw_write, with blocks of zeros stored as such. */
static int detect_write(struct engine *e, unsigned vol, const uint8_t *src, uint64_t block, unsigned nr,
			struct img_error *err)
{
	unsigned i = 0;

	while (i < nr) {
		bool zero = is_zero(src + ((size_t)i << e->block_shift), e->block_bytes);
		unsigned n = 1;
		int rc;

		while (i + n < nr && is_zero(src + ((size_t)(i + n) << e->block_shift), e->block_bytes) == zero)
			n++;
		rc = zero ? zero_put(e, vol, block + i, n, ST_ZERO, err) :
			    raw_write(e, vol, src + ((size_t)i << e->block_shift), block + i, n, err);
		if (rc)
			return rc;
		i += n;
	}
	return 0;
}

/* One unit, perhaps padded; nr blocks of it are inside the volume. */
static int unit_write(struct engine *e, unsigned vol, const uint8_t *plain, uint64_t block, unsigned nr, unsigned flags,
		      struct img_error *err)
{
	struct entry en[LEAF_ENTRIES];
	uint64_t csum[LEAF_ENTRIES];
	bool stored, stale = false;
	int rc;

	if (flags & IMG_IO_DETECT_ZEROES && is_zero(plain, e->unit_bytes))
		return zero_put(e, vol, block, nr, ST_ZERO, err);
	rc = unit_store(e, vol, block, plain, en, &stored, err);
	if (rc)
		return rc;
	if (!stored)
		return flags & IMG_IO_DETECT_ZEROES ? detect_write(e, vol, plain, block, nr, err) :
						      raw_write(e, vol, plain, block, nr, err);
	for (unsigned i = 0; i < nr; i++)
		csum[i] = en[i].csum;
	rc = overlay_put(e, vol, block, nr, en[0].word, csum, NULL, &stale, err);
	if (rc)
		space_free(e, word_addr(en[0].word), entry_unit_aus(&en[0]));
	return rc;
}

/* Less than a block. src NULL: zeros. */
static int partial_write(struct engine *e, unsigned vol, const uint8_t *src, uint64_t bytes, uint64_t off,
			 struct img_error *err)
{
	struct view head = { .e = e };
	uint64_t block = off >> e->block_shift, in = off & (e->block_bytes - 1), size = vol_bytes(&head, vol);
	uint64_t start = block << e->block_shift, addr, got;
	/* The disk's last block may reach beyond its end, where a backing has other content; machine state has none. */
	uint64_t end = vol == VOL_DISK ? min_u64(start + e->block_bytes, size) : start + e->block_bytes;
	uint8_t *buf = malloc(e->block_bytes);
	bool stale = true;
	int rc = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	while (!rc && stale) {
		struct mapping m = { 0 };
		struct img_error first = { 0 };
		uint64_t csum;
		bool have;

		stale = false;
		rc = map_blocks(&head, vol, block, 1, &m.e, &have, &m.root_gen, err);
		if (rc)
			break;
		m.pending = have;
		memset(buf, 0, e->block_bytes);
		rc = mapped_read(&head, vol, block, &m.e, 1, buf, start, end, &first);
		if (rc == IMG_E_CORRUPT) { /* moved meanwhile, or damaged? */
			struct entry now;
			uint64_t gen;

			rc = map_blocks(&head, vol, block, 1, &now, NULL, &gen, err);
			if (!rc && (now.word != m.e.word || now.csum != m.e.csum)) {
				stale = true;
				continue;
			}
			rc = rc ? rc : IMG_E_CORRUPT;
		}
		if (rc) {
			if (err && first.code)
				*err = first;
			break;
		}
		if (!src && word_state(m.e.word) != ST_NONE && is_zero(buf + in, (size_t)bytes))
			break; /* nothing to change; what is unallocated must become zeros of its own */
		if (src)
			memcpy(buf + in, src, (size_t)bytes);
		else
			memset(buf + in, 0, (size_t)bytes);
		if (!src && is_zero(buf, e->block_bytes)) {
			rc = overlay_put(e, vol, block, 1, word_make(0, 0, ST_ZERO), NULL, &m, &stale, err);
			continue;
		}
		rc = space_alloc_data(e, e->block_aus, true, &addr, &got, err);
		if (rc)
			break;
		rc = space_write_data(e, buf, e->block_bytes, addr, err);
		csum = block_csum(buf, e->block_bytes);
		if (!rc)
			rc = overlay_put(e, vol, block, 1, word_make(addr, 0, ST_RAW), &csum, &m, &stale, err);
		if (rc || stale)
			space_free_data(e, addr, got);
	}
	free(buf);
	return rc;
}

/* Whole blocks inside one leaf, compressed where a whole unit is there. tail: the piece ends at the end of the volume. */
static int blocks_write(struct engine *e, unsigned vol, const uint8_t *src, uint64_t block, unsigned nr, unsigned flags,
			struct img_error *err)
{
	bool compress = vol == VOL_DISK && (flags & IMG_IO_COMPRESS || e->codec != CODEC_NONE);

	while (nr) {
		unsigned n = nr;
		int rc;

		if (compress && block % e->unit_blocks == 0 && nr >= e->unit_blocks) {
			n = e->unit_blocks;
			rc = unit_write(e, vol, src, block, n, flags, err);
		} else {
			if (compress)
				n = (unsigned)min_u64(nr, e->unit_blocks - block % e->unit_blocks);
			rc = flags & IMG_IO_DETECT_ZEROES ? detect_write(e, vol, src, block, n, err) :
							    raw_write(e, vol, src, block, n, err);
		}
		if (rc)
			return rc;
		src += (size_t)n << e->block_shift;
		block += n;
		nr -= n;
	}
	return 0;
}

/* The last, short unit of a volume: padded, so that it compresses like the others. */
static int tail_write(struct engine *e, unsigned vol, const uint8_t *src, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err)
{
	uint8_t *plain = calloc(1, e->unit_bytes);
	int rc;

	if (!plain)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(plain, src, (size_t)bytes);
	rc = unit_write(e, vol, plain, off >> e->block_shift,
			(unsigned)((bytes + e->block_bytes - 1) >> e->block_shift), flags, err);
	free(plain);
	return rc;
}

int head_write(struct engine *e, unsigned vol, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
	       struct img_error *err)
{
	uint64_t span = (uint64_t)LEAF_ENTRIES << e->block_shift;
	const uint8_t *src = buf;
	int rc = engine_writable(e, err);

	while (!rc && bytes) {
		uint64_t in = off & (e->block_bytes - 1), n = min_u64(bytes, span - (off & (span - 1)));
		bool compress = vol == VOL_DISK && (flags & IMG_IO_COMPRESS || e->codec != CODEC_NONE);

		rc = space_reserve(e, 1, err);
		if (rc)
			break;
		if (compress && off % e->unit_bytes == 0 && bytes < e->unit_bytes &&
		    off + bytes == atomic_load(&e->disk_bytes)) {
			rc = tail_write(e, vol, src, bytes, off, flags, err);
			n = bytes;
		} else if (in || n < e->block_bytes) {
			n = min_u64(n, e->block_bytes - in);
			rc = partial_write(e, vol, src, n, off, err);
		} else {
			n = round_down(n, e->block_bytes);
			/* Leave a short last unit of the volume to tail_write. */
			if (compress && off + n > round_down(off + bytes, e->unit_bytes) && n > e->unit_bytes &&
			    off + bytes == atomic_load(&e->disk_bytes) && (off + bytes) % e->unit_bytes)
				n = round_down(off + bytes, e->unit_bytes) - off;
			rc = blocks_write(e, vol, src, off >> e->block_shift, (unsigned)(n >> e->block_shift), flags,
					  err);
		}
		src += n;
		off += n;
		bytes -= n;
		if (!rc)
			rc = engine_throttle(e, err);
	}
	return rc;
}

/* ---- zero and discard ---- */

/* Whole blocks inside one leaf. */
static int leaf_zero(struct engine *e, unsigned vol, uint64_t block, unsigned nr, enum entry_state st,
		     struct img_error *err)
{
	struct view head = { .e = e };
	struct entry en[LEAF_ENTRIES];
	uint64_t gen;
	bool change = false;
	int rc = map_blocks(&head, vol, block, nr, en, NULL, &gen, err);

	for (unsigned i = 0; !rc && i < nr; i++)
		change |= word_state(en[i].word) != (unsigned)st;
	if (rc || !change)
		return rc;
	rc = space_reserve(e, 1, err);
	if (!rc)
		rc = zero_put(e, vol, block, nr, st, err);
	return rc ? rc : engine_throttle(e, err);
}

/* Whole leaves, by the tree. Skips holes that already read as they should. */
static int leaves_zero(struct engine *e, unsigned vol, uint64_t first, uint64_t nr, enum entry_state st,
		       struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_RANGE, .vol = vol, .state = st };
	int rc = 0;

	while (!rc && nr) {
		struct leaf_ref ref = { 0 };
		struct ptr root;
		unsigned levels;
		bool have;
		struct entry en;
		uint64_t n = min_u64(nr, RANGE_STEP);

		if (overlay_empty(e)) {
			overlay_get(e, vol, first, 0, 1, &en, &have, &root, &levels);
			rc = tree_leaf(e, vol, &root, levels, first, &ref, err);
			if (rc)
				return rc;
			if (!ref.page && ref.hole == st) {
				n = min_u64(nr, ref.hole_leaves);
				first += n;
				nr -= n;
				continue;
			}
			/* A hole of the wrong kind costs nothing to change, however large. */
			if (!ref.page)
				n = min_u64(nr, max_u64(n, ref.hole_leaves));
			leaf_put(&ref);
		}
		req.first = first;
		req.nr = n;
		rc = engine_checkpoint(e, &req, err);
		first += n;
		nr -= n;
	}
	return rc;
}

int head_zero(struct engine *e, unsigned vol, uint64_t bytes, uint64_t off, bool discard, struct img_error *err)
{
	uint64_t span = (uint64_t)LEAF_ENTRIES << e->block_shift,
		 size = vol == VOL_DISK ? atomic_load(&e->disk_bytes) : atomic_load(&e->vm_bytes);
	enum entry_state st = discard && (vol != VOL_DISK || !atomic_load(&e->has_backing)) ? ST_NONE : ST_ZERO;
	int rc = engine_writable(e, err);

	while (!rc && bytes) {
		uint64_t in = off & (e->block_bytes - 1), n;
		bool to_end = off + bytes == size;

		if (in || (bytes < e->block_bytes && !to_end)) {
			n = min_u64(bytes, e->block_bytes - in);
			rc = space_reserve(e, 1, err);
			if (!rc)
				rc = partial_write(e, vol, NULL, n, off, err);
		} else if ((off & (span - 1)) == 0 && bytes / span >= RANGE_LEAVES && !e->bulk) {
			n = round_down(bytes, span);
			rc = leaves_zero(e, vol, off / span, n / span, st, err);
		} else {
			n = min_u64(bytes, span - (off & (span - 1)));
			if (!(to_end && n == bytes))
				n = round_down(n, e->block_bytes);
			rc = leaf_zero(e, vol, off >> e->block_shift,
				       (unsigned)((n + e->block_bytes - 1) >> e->block_shift), st, err);
		}
		off += n;
		bytes -= n;
	}
	return rc;
}

/* ---- status ---- */

static enum status_kind kind_of(const struct entry *en)
{
	switch (word_state(en->word)) {
	case ST_NONE: return STATUS_UNALLOCATED;
	case ST_ZERO: return STATUS_ZERO;
	case ST_RAW: return STATUS_DATA;
	default: return STATUS_COMPRESSED;
	}
}

/* Appends, or lengthens the last one. False: no room. */
static bool status_add(struct status_extent *out, size_t cap, size_t *nr, const struct status_extent *x)
{
	struct status_extent *last = *nr ? &out[*nr - 1] : NULL;

	if (last && last->kind == x->kind && (x->kind != STATUS_DATA || last->host_off + last->bytes == x->host_off)) {
		last->bytes += x->bytes;
		return true;
	}
	if (*nr == cap)
		return false;
	out[(*nr)++] = *x;
	return true;
}

/* Has the overlay entries for this leaf? And the root to go on with where it has not. */
static bool leaf_pending(struct engine *e, unsigned vol, uint64_t leaf, struct ptr *root, unsigned *levels)
{
	struct entry en[LEAF_ENTRIES];
	bool have[LEAF_ENTRIES];

	overlay_get(e, vol, leaf, 0, LEAF_ENTRIES, en, have, root, levels);
	for (unsigned i = 0; i < LEAF_ENTRIES; i++)
		if (have[i])
			return true;
	return false;
}

/* A hole of the tree that no overlay entry interrupts, in leaves from `leaf` on; 0 if the leaf has entries. */
static int hole_at(struct view *v, unsigned vol, uint64_t leaf, enum entry_state *st, uint64_t *leaves,
		   struct img_error *err)
{
	struct engine *e = v->e;
	const struct volume *vv = vol == VOL_DISK ? &v->disk : &v->vm;
	struct leaf_ref ref;
	struct ptr root = vv->root;
	unsigned levels = vv->levels;
	bool one = !v->snap && !overlay_empty(e); /* what is pending for the next leaf is not known */
	int rc;

	*leaves = 0;
	if (!v->snap && leaf_pending(e, vol, leaf, &root, &levels))
		return 0;
	rc = tree_leaf(e, vol, &root, levels, leaf, &ref, err);
	if (rc)
		return v->snap ? rc : 0; /* the head may have moved: let the mapping decide */
	if (!ref.page) {
		*st = ref.hole;
		*leaves = one ? 1 : ref.hole_leaves;
	}
	leaf_put(&ref);
	return 0;
}

int view_status(struct view *v, unsigned vol, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		size_t *nr, struct img_error *err)
{
	struct engine *e = v->e;
	uint64_t span = (uint64_t)LEAF_ENTRIES << e->block_shift, end = off + bytes;

	*nr = 0;
	while (off < end) {
		struct entry en[LEAF_ENTRIES];
		uint64_t block = off >> e->block_shift, n = min_u64(end - off, span - (off & (span - 1))), leaves, gen;
		unsigned blocks = (unsigned)(((off + n - 1) >> e->block_shift) - block + 1);
		enum entry_state st;
		int rc = hole_at(v, vol, off / span, &st, &leaves, err);

		if (rc)
			return rc;
		if (leaves) {
			struct status_extent x = { off, n, st == ST_ZERO ? STATUS_ZERO : STATUS_UNALLOCATED,
						   STATUS_NO_HOST };

			if (leaves > (end - off) / span + 1)
				x.bytes = end - off;
			else
				x.bytes = min_u64(end, (off / span + leaves) * span) - off;
			if (!status_add(out, cap, nr, &x))
				return 0;
			off += x.bytes;
			continue;
		}
		rc = map_blocks(v, vol, block, blocks, en, NULL, &gen, err);
		if (rc)
			return rc;
		for (unsigned i = 0; i < blocks; i++) {
			uint64_t to = min_u64(end, (block + i + 1) << e->block_shift);
			struct status_extent x = { off, to - off, kind_of(&en[i]), STATUS_NO_HOST };

			if (x.kind == STATUS_DATA)
				x.host_off = au_off(word_addr(en[i].word)) + (off & (e->block_bytes - 1));
			if (!status_add(out, cap, nr, &x))
				return 0;
			off = to;
		}
	}
	return 0;
}
