/* SPDX-License-Identifier: MIT */
/* What the files of the data path share: map.c, l1.c, io.c, expand.c, write.c, zero.c, compress.c. */
#ifndef QCOW2_IO_H
#define QCOW2_IO_H

#include "qcow2_engine.h"

/* ---- entries ---- */

#define QCOW2_ALL_SUBCLUSTERS UINT32_MAX

static inline uint32_t qcow2_sub_allocated(const struct qcow2_entry *en)
{
	return (uint32_t)en->bitmap;
}

static inline uint32_t qcow2_sub_zero(const struct qcow2_entry *en)
{
	return (uint32_t)(en->bitmap >> 32);
}

static inline uint64_t qcow2_bitmap_of(uint32_t allocated, uint32_t zero)
{
	return (uint64_t)zero << 32 | allocated;
}

/* Subclusters [first, last]. */
static inline uint32_t qcow2_sub_mask(unsigned first, unsigned last)
{
	return UINT32_MAX >> (31 - (last - first)) << first;
}

/* Has the entry a host cluster of its own, plain? Offset 0 is one in an external data file. */
static inline bool qcow2_entry_has_host(const struct qcow2_engine *e, uint64_t desc)
{
	if (desc & QCOW2_COMPRESSED)
		return false;
	return (desc & QCOW2_OFFSET_MASK) || (e->external && (desc & QCOW2_COPIED) && !(desc & QCOW2_ZERO));
}

/* map: may the host cluster of this entry of the active tree be written in place? */
static inline bool qcow2_entry_owned(const struct qcow2_engine *e, uint64_t g, uint64_t desc)
{
	if (!qcow2_entry_has_host(e, desc))
		return false;
	return e->external || ((desc & QCOW2_COPIED) && (e->l1[g >> e->l2_shift] & QCOW2_COPIED));
}

/* Bytes of the disk that the entry has data for, here or in the external data file. */
static inline uint64_t qcow2_entry_mapped(const struct qcow2_engine *e, const struct qcow2_entry *en)
{
	if (en->desc & QCOW2_COMPRESSED)
		return e->cluster_bytes;
	if ((en->desc & QCOW2_OFFSET_MASK) == 0)
		return 0;
	if (e->subclusters > 1)
		return (uint64_t)__builtin_popcount(qcow2_sub_allocated(en)) * e->sub_bytes;
	return en->desc & QCOW2_ZERO ? 0 : e->cluster_bytes;
}

/* ---- map.c ---- */

/* What slice bytes at p hold. */
struct qcow2_entry qcow2_entry_load(const struct qcow2_engine *e, const uint8_t *p);
/* Offset of the L2 table of an L1 entry, 0: none. */
int qcow2_table_off(const struct qcow2_engine *e, uint64_t l1_entry, uint64_t index, uint64_t *off,
		    struct img_error *err);

/* ---- io.c ---- */

/* The node's layer below may say something about what is unallocated at off. */
bool qcow2_backed(const struct qcow2_engine *e);
/* Nothing but zeros in [off, off + bytes), as far as this layer's metadata shows. gate held. */
bool qcow2_reads_zero(struct qcow2_view *v, uint64_t off, uint64_t bytes);

/* ---- expand.c ---- */

struct codec_ctx *qcow2_codec_get(struct qcow2_engine *e, struct img_error *err);
void qcow2_codec_put(struct qcow2_engine *e, struct codec_ctx *ctx);
/* A part of one compressed cluster. gate held. */
int qcow2_expand_part(struct qcow2_engine *e, const struct qcow2_mapping *m, void *buf, uint64_t in, uint64_t bytes,
		      struct img_error *err);
/* New stored bytes are about to be written there: what was expanded from them is forgotten. */
void qcow2_expanded_drop(struct qcow2_engine *e, uint64_t host_off, uint64_t bytes);

/* ---- write.c ---- */

/* A guest range whose mapping its owner changes; those that overlap wait. gate held. */
struct qcow2_inflight {
	uint64_t first, last; /* clusters */
	struct qcow2_inflight *next;
};
void qcow2_range_begin(struct qcow2_engine *e, struct qcow2_inflight *r, uint64_t first, uint64_t last);
void qcow2_range_end(struct qcow2_engine *e, struct qcow2_inflight *r);
/* gate held, no range. */
int qcow2_write_held(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* Refuses a host range in the image file that holds metadata. map held for writing. */
int qcow2_guard(struct qcow2_engine *e, uint64_t host_off, uint64_t bytes, struct img_error *err);

/* ---- zero.c ---- */

struct qcow2_zeroing {
	bool unmap, discard;
};
/* nr whole clusters become zeros without data; false in *done: only by writing. gate held, no range. */
int qcow2_zero_clusters(struct qcow2_engine *e, uint64_t g, uint64_t nr, struct qcow2_zeroing how, bool *done,
			struct img_error *err);

/* ---- compress.c ---- */

/* Whole clusters from g on; the last has only tail bytes where the disk ends inside it (0: whole). No locks held. */
int qcow2_write_packed(struct qcow2_engine *e, const uint8_t *buf, uint64_t g, uint64_t nr, uint64_t tail,
		       struct img_error *err);

#endif
