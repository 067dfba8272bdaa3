/* SPDX-License-Identifier: MIT */
/*
 * Reading trees: a node is loaded by its pointer, verified (checksum seeded with its place, every field), and kept in
 * the node cache. Nothing here changes a tree; merge.c builds new ones. format-spec/limg.md sections 3 and 5.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "engine.h"

uint64_t page_identity(const struct engine *e, unsigned kind, unsigned level, uint64_t index)
{
	struct {
		uint8_t uuid[16];
		struct le32 kind, level;
		struct le64 index;
	} id;

	memcpy(id.uuid, e->uuid, 16);
	id.kind = le32_of(kind);
	id.level = le32_of(level);
	id.index = le64_of(index);
	return XXH3_64bits(&id, sizeof id);
}

uint64_t block_csum(const void *data, size_t bytes)
{
	return XXH3_64bits(data, bytes);
}

void xxh128_store(const void *data, size_t bytes, uint8_t out[16])
{
	XXH128_hash_t h = XXH3_128bits(data, bytes);
	struct le64 lo = le64_of(h.low64), hi = le64_of(h.high64);

	memcpy(out, &lo, 8);
	memcpy(out + 8, &hi, 8);
}

bool entry_sound(const struct engine *e, unsigned vol, const struct entry *en)
{
	unsigned st = word_state(en->word);

	switch (st) {
	case ST_NONE: return en->word == 0 && en->csum == 0;
	case ST_ZERO: return word_addr(en->word) == 0 && en->csum == 0 && word_birth(en->word) != 0;
	case ST_RAW: return word_addr(en->word) != 0 && word_birth(en->word) != 0;
	case ST_ZSTD:
	case ST_DEFLATE:
		return vol != VOL_CATALOG && word_addr(en->word) != 0 && word_birth(en->word) != 0 &&
		       entry_unit_aus(en) != 0 && entry_unit_aus(en) < e->unit_bytes / AU_BYTES;
	default: return false;
	}
}

static int leaf_check(const struct engine *e, unsigned vol, const uint8_t *data, const struct ptr *p, uint64_t index,
		      struct img_error *err)
{
	const struct disk_leaf *l = (const struct disk_leaf *)data;

	for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
		struct entry en = { le64_get(l->e[i].word), le64_get(l->e[i].csum) };

		if (!entry_sound(e, vol, &en) || word_birth(en.word) > word_birth(p->word))
			return error_set(err, IMG_E_CORRUPT, 0, au_off(word_addr(p->word)) + 16 * i, LAYER,
					 "entry %u of leaf %llu of volume %u is not sound: 0x%llx (LIMG-5)", i,
					 (unsigned long long)index, vol, (unsigned long long)en.word);
	}
	return 0;
}

static int interior_check(unsigned vol, unsigned level, uint64_t index, const uint8_t *data, const struct ptr *p,
			  struct img_error *err)
{
	const struct disk_node *n = (const struct disk_node *)data;
	uint64_t at = au_off(word_addr(p->word));

	if (le32_get(n->magic) != NODE_MAGIC || n->level != level || n->kind != vol || le64_get(n->index) != index)
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "node of volume %u level %u index %llu names another place (LIMG-4)", vol, level,
				 (unsigned long long)index);
	if (!is_zero(n->zero, sizeof n->zero) || !is_zero(n->zero2, sizeof n->zero2) ||
	    !is_zero(n->zero3, sizeof n->zero3))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "reserved bytes of a node are not zero (LIMG-2)");
	for (unsigned i = 0; i < FANOUT; i++) {
		struct ptr c;
		int rc = ptr_load(&n->child[i], &c, err);

		if (rc)
			return rc;
		if (word_birth(c.word) > word_birth(p->word))
			return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
					 "a node is younger than the node above it (LIMG-7)");
	}
	return 0;
}

int tree_read(struct engine *e, unsigned vol, unsigned level, uint64_t index, const struct ptr *p, uint8_t *data,
	      struct img_error *err)
{
	uint64_t addr = word_addr(p->word);
	int rc;

	if (au_off(addr + 1) > node_size(e->file))
		return error_set(err, IMG_E_CORRUPT, 0, au_off(addr), LAYER,
				 "a node of volume %u lies beyond the end of the file (LIMG-3)", vol);
	rc = node_pread(e->file, data, AU_BYTES, au_off(addr), 0, err);
	if (rc)
		return rc;
	if (XXH3_64bits_withSeed(data, AU_BYTES, page_identity(e, vol, level, index)) != p->csum)
		return error_set(err, IMG_E_CORRUPT, 0, au_off(addr), LAYER,
				 "the checksum of a tree node (volume %u, level %u, index %llu) does not hold (LIMG-4)",
				 vol, level, (unsigned long long)index);
	return level ? interior_check(vol, level, index, data, p, err) : leaf_check(e, vol, data, p, index, err);
}

int tree_page(struct engine *e, unsigned vol, unsigned level, uint64_t index, const struct ptr *p, struct page **out,
	      struct img_error *err)
{
	uint64_t addr = word_addr(p->word);
	uint8_t data[AU_BYTES];
	int rc;

	*out = cache_get(&e->cache, addr, p->csum);
	if (*out)
		return 0;
	rc = tree_read(e, vol, level, index, p, data, err);
	if (rc)
		return rc;
	*out = cache_insert(&e->cache, addr, p->csum, data);
	return *out ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

void node_child(const struct page *pg, unsigned i, struct ptr *out)
{
	const struct disk_node *n = (const struct disk_node *)pg->data;

	out->word = le64_get(n->child[i].word);
	out->csum = le64_get(n->child[i].csum);
	memcpy(out->logical, n->child[i].logical, 16);
	out->count = le64_get(n->child[i].count);
}

int tree_leaf(struct engine *e, unsigned vol, const struct ptr *root, unsigned levels, uint64_t index,
	      struct leaf_ref *out, struct img_error *err)
{
	struct ptr p = *root;
	unsigned level = levels;

	memset(out, 0, sizeof *out);
	if (index >= level_leaves(levels)) {
		out->hole_leaves = UINT64_MAX - index;
		return 0;
	}
	for (;;) {
		struct page *pg;
		int rc;

		if (word_state(p.word) != ST_NODE) {
			uint64_t span = level_leaves(level);

			out->hole = word_state(p.word) == ST_ZERO ? ST_ZERO : ST_NONE;
			out->hole_leaves = span - (index & (span - 1));
			out->ptr = p;
			return 0;
		}
		rc = tree_page(e, vol, level, index >> (FANOUT_SHIFT * level), &p, &pg, err);
		if (rc)
			return rc;
		if (level == 0) {
			out->page = pg;
			out->ptr = p;
			return 0;
		}
		level--;
		node_child(pg, (unsigned)(index >> (FANOUT_SHIFT * level)) & (FANOUT - 1), &p);
		cache_put(pg);
	}
}
