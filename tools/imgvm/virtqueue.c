/* SPDX-License-Identifier: MIT */
/*
 * See virtqueue.h.
 *
 * All shared memory is read by relaxed atomic loads into private copies and never looked at twice: what a check saw is
 * what is used. Requests are published by an index, hence acquire and release. Where each side stores something and
 * then looks at what the other stored (an index and the wish to be told of it) the order is total: else both could miss
 * the other's. Section numbers below are those of virtio 1.2.
 */
#include "virtqueue.h"

#include <endian.h>
#include <string.h>

#include "fail.h"

/* 2.7.5 */
enum {
	DESC_BYTES = 16,
	DESC_F_NEXT = 1,
	DESC_F_WRITE = 2,
	DESC_F_INDIRECT = 4,
};

/* 2.7.6 and 2.7.8: both rings are flags, idx, elements, event. */
enum {
	RING_IDX = 2,
	RING_ELEMENTS = 4,
	AVAIL_ELEMENT_BYTES = 2,
	USED_ELEMENT_BYTES = 8,
	RING_EVENT_BYTES = 2,
	AVAIL_F_NO_INTERRUPT = 1,
	USED_F_NO_NOTIFY = 1,
};

/* 2.7: alignment of the areas. */
enum { DESC_ALIGN = 16, AVAIL_ALIGN = 2, USED_ALIGN = 4 };

enum { STATE_ENABLED = 1, STATE_BROKEN = 2 };

struct desc {
	uint64_t gpa;
	uint32_t bytes;
	uint16_t flags, next;
};

/* A chain that is being followed. */
struct walk {
	struct virtqueue *vq;
	struct virtqueue_chain *chain;
	bool in_seen; /* a writable piece was met */
	struct img_error *err;
};

static uint16_t load16(const uint8_t *p, int order)
{
	uint16_t v = __atomic_load_n((const uint16_t *)(const void *)p, order);

	return (uint16_t)le16toh(v);
}

static void store16(uint8_t *p, uint16_t v, int order)
{
	__atomic_store_n((uint16_t *)(void *)p, htole16(v), order);
}

static void store32(uint8_t *p, uint32_t v)
{
	__atomic_store_n((uint32_t *)(void *)p, htole32(v), __ATOMIC_RELAXED);
}

static uint64_t load64(const uint8_t *p)
{
	uint64_t v = 0;

	if ((uintptr_t)p % sizeof(v) == 0)
		return le64toh(__atomic_load_n((const uint64_t *)(const void *)p, __ATOMIC_RELAXED));
	/* an indirect table may lie anywhere */
	for (unsigned i = 0; i < sizeof(v); i++)
		v |= (uint64_t)__atomic_load_n(p + i, __ATOMIC_RELAXED) << (8 * i);
	return v;
}

static struct desc load_desc(const uint8_t *table, unsigned i)
{
	const uint8_t *p = table + (size_t)i * DESC_BYTES;
	uint64_t tail = load64(p + 8);

	return (struct desc){ .gpa = load64(p),
			      .bytes = (uint32_t)tail,
			      .flags = (uint16_t)(tail >> 32),
			      .next = (uint16_t)(tail >> 48) };
}

void virtqueue_init(struct virtqueue *vq, struct memory *mem, uint16_t max_size)
{
	*vq = (struct virtqueue){ .mem = mem, .size = max_size, .max_size = max_size };
}

void virtqueue_reset(struct virtqueue *vq)
{
	virtqueue_init(vq, vq->mem, vq->max_size);
}

int virtqueue_enable(struct virtqueue *vq, struct img_error *err)
{
	const uint8_t *desc, *avail;
	uint8_t *used;

	if (vq->enabled)
		return 0;
	if (!vq->size || vq->size > vq->max_size || (vq->size & (vq->size - 1)))
		return fail(err, IMG_E_INVALID, "VQ-1: queue size %u", vq->size);
	if (vq->desc_gpa % DESC_ALIGN || vq->avail_gpa % AVAIL_ALIGN || vq->used_gpa % USED_ALIGN)
		return fail(err, IMG_E_INVALID, "VQ-2: queue area is not aligned");
	desc = memory_at(vq->mem, vq->desc_gpa, (uint64_t)vq->size * DESC_BYTES);
	avail = memory_at(vq->mem, vq->avail_gpa,
			  RING_ELEMENTS + (uint64_t)vq->size * AVAIL_ELEMENT_BYTES + RING_EVENT_BYTES);
	used = memory_at(vq->mem, vq->used_gpa,
			 RING_ELEMENTS + (uint64_t)vq->size * USED_ELEMENT_BYTES + RING_EVENT_BYTES);
	if (!desc || !avail || !used)
		return fail(err, IMG_E_INVALID, "VQ-2: queue area is outside RAM");
	vq->desc = desc;
	vq->avail = avail;
	vq->used = used;
	vq->enabled = true;
	return 0;
}

static int add_piece(struct walk *w, const struct desc *d)
{
	struct virtqueue_chain *chain = w->chain;
	bool in = d->flags & DESC_F_WRITE;
	void *at;

	if (!in && w->in_seen)
		return fail(w->err, IMG_E_INVALID, "VQ-7: a readable piece after a writable one");
	w->in_seen = in;
	if (!d->bytes)
		return 0;
	if (chain->nr_out + chain->nr_in == VIRTQUEUE_MAX_CHAIN)
		return fail(w->err, IMG_E_INVALID, "VQ-5: a request of more than %u pieces", VIRTQUEUE_MAX_CHAIN);
	at = memory_at(w->vq->mem, d->gpa, d->bytes);
	if (!at)
		return fail(w->err, IMG_E_INVALID, "VQ-8: a buffer outside RAM");
	if (chain->out_bytes + chain->in_bytes + d->bytes > UINT32_MAX)
		return fail(w->err, IMG_E_INVALID, "VQ-8: a request of 4 GiB or more");
	chain->iov[chain->nr_out + chain->nr_in] = (struct iovec){ .iov_base = at, .iov_len = d->bytes };
	if (in) {
		chain->nr_in++;
		chain->in_bytes += d->bytes;
	} else {
		chain->nr_out++;
		chain->out_bytes += d->bytes;
	}
	return 0;
}

/* 2.7.5.3: the table that one descriptor names. */
static int walk_indirect(struct walk *w, const struct desc *via)
{
	unsigned nr = via->bytes / DESC_BYTES, i = 0;
	const uint8_t *table;

	/* 2.7.5.3.2: its WRITE flag means nothing */
	if (!w->vq->indirect || (via->flags & DESC_F_NEXT))
		return fail(w->err, IMG_E_INVALID, "VQ-6: a descriptor of flags %#x", via->flags);
	if (!nr || nr > VIRTQUEUE_MAX_CHAIN || via->bytes % DESC_BYTES)
		return fail(w->err, IMG_E_INVALID, "VQ-6: an indirect table of %u bytes", via->bytes);
	table = memory_at(w->vq->mem, via->gpa, via->bytes);
	if (!table)
		return fail(w->err, IMG_E_INVALID, "VQ-6: an indirect table outside RAM");
	for (unsigned seen = 0; seen < nr; seen++) {
		struct desc d = load_desc(table, i);
		int code;

		if (d.flags & DESC_F_INDIRECT)
			return fail(w->err, IMG_E_INVALID, "VQ-6: an indirect table in an indirect table");
		code = add_piece(w, &d);
		if (code || !(d.flags & DESC_F_NEXT))
			return code;
		if (d.next >= nr)
			return fail(w->err, IMG_E_INVALID, "VQ-5: descriptor %u of %u", d.next, nr);
		i = d.next;
	}
	return fail(w->err, IMG_E_INVALID, "VQ-5: an endless chain");
}

static int walk_chain(struct walk *w, uint16_t head)
{
	unsigned i = head;

	for (unsigned seen = 0; seen < w->vq->size; seen++) {
		struct desc d;
		int code;

		if (i >= w->vq->size)
			return fail(w->err, IMG_E_INVALID, "VQ-5: descriptor %u of %u", i, w->vq->size);
		d = load_desc(w->vq->desc, i);
		/* a descriptor that names a table ends the chain; others may come before it (2.7.5.3.1) */
		if (d.flags & DESC_F_INDIRECT)
			return walk_indirect(w, &d);
		code = add_piece(w, &d);
		if (code || !(d.flags & DESC_F_NEXT))
			return code;
		i = d.next;
	}
	return fail(w->err, IMG_E_INVALID, "VQ-5: an endless chain");
}

int virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain, struct img_error *err)
{
	struct walk w = { .vq = vq, .chain = chain, .err = err };
	uint16_t ahead, slot;
	int code;

	if (!vq->enabled || vq->broken)
		return 0;
	ahead = (uint16_t)(load16(vq->avail + RING_IDX, __ATOMIC_ACQUIRE) - vq->taken);
	if (!ahead)
		return 0;
	if (ahead > vq->size) {
		vq->broken = true;
		return fail(err, IMG_E_INVALID, "VQ-4: %u requests in a queue of %u", ahead, vq->size);
	}
	slot = vq->taken & (uint16_t)(vq->size - 1);
	chain->mem = vq->mem;
	chain->head = load16(vq->avail + RING_ELEMENTS + (size_t)slot * AVAIL_ELEMENT_BYTES, __ATOMIC_RELAXED);
	chain->nr_out = chain->nr_in = 0;
	chain->out_bytes = chain->in_bytes = 0;
	code = walk_chain(&w, chain->head);
	if (code) {
		vq->broken = true;
		return code;
	}
	vq->taken++;
	return 1;
}

void virtqueue_unpop(struct virtqueue *vq)
{
	vq->taken--;
}

void virtqueue_push(struct virtqueue *vq, const struct virtqueue_chain *chain, uint32_t written_bytes)
{
	uint8_t *element =
		vq->used + RING_ELEMENTS + (size_t)(vq->used_idx & (uint16_t)(vq->size - 1)) * USED_ELEMENT_BYTES;
	uint64_t left = written_bytes;

	for (unsigned i = 0; i < chain->nr_in && left; i++) {
		const struct iovec *iov = &chain->iov[chain->nr_out + i];
		uint64_t bytes = left < iov->iov_len ? left : iov->iov_len;

		memory_wrote(vq->mem, iov->iov_base, bytes);
		left -= bytes;
	}
	store32(element, chain->head);
	store32(element + 4, written_bytes);
	vq->used_idx++;
	store16(vq->used + RING_IDX, vq->used_idx, __ATOMIC_SEQ_CST);
	memory_wrote(vq->mem, element, USED_ELEMENT_BYTES);
	memory_wrote(vq->mem, vq->used, RING_ELEMENTS);
}

bool virtqueue_wants_irq(struct virtqueue *vq)
{
	uint16_t since = (uint16_t)(vq->used_idx - vq->signalled);
	uint16_t event;

	if (!vq->enabled || !since)
		return false;
	vq->signalled = vq->used_idx;
	if (!vq->event_idx)
		return !(load16(vq->avail, __ATOMIC_SEQ_CST) & AVAIL_F_NO_INTERRUPT);
	/* 2.7.7.1: when the element that the guest names was passed */
	event = load16(vq->avail + RING_ELEMENTS + (size_t)vq->size * AVAIL_ELEMENT_BYTES, __ATOMIC_SEQ_CST);
	return (uint16_t)(vq->used_idx - event - 1) < since;
}

bool virtqueue_enable_kick(struct virtqueue *vq, bool on)
{
	if (!vq->enabled || vq->broken)
		return false;
	if (vq->event_idx && on) {
		uint8_t *event = vq->used + RING_ELEMENTS + (size_t)vq->size * USED_ELEMENT_BYTES;

		store16(event, vq->taken, __ATOMIC_SEQ_CST);
		memory_wrote(vq->mem, event, RING_EVENT_BYTES);
	} else if (!vq->event_idx && vq->no_kick == on) {
		store16(vq->used, on ? 0 : USED_F_NO_NOTIFY, __ATOMIC_SEQ_CST);
		memory_wrote(vq->mem, vq->used, RING_IDX);
	}
	vq->no_kick = !on;
	return load16(vq->avail + RING_IDX, __ATOMIC_SEQ_CST) != vq->taken;
}

void virtqueue_save(const struct virtqueue *vq, struct state_writer *out)
{
	static const uint8_t reserved[6];

	state_put16(out, vq->size);
	state_put8(out, (uint8_t)((vq->enabled ? STATE_ENABLED : 0) | (vq->broken ? STATE_BROKEN : 0)));
	state_put8(out, vq->no_kick);
	state_put64(out, vq->desc_gpa);
	state_put64(out, vq->avail_gpa);
	state_put64(out, vq->used_gpa);
	state_put16(out, vq->taken);
	state_put16(out, vq->used_idx);
	state_put16(out, vq->signalled);
	state_put(out, reserved, sizeof(reserved));
}

int virtqueue_load(struct virtqueue *vq, struct state_reader *in, struct img_error *err)
{
	struct virtqueue next;
	uint8_t flags, no_kick, reserved[6];
	unsigned any = 0;

	virtqueue_init(&next, vq->mem, vq->max_size);
	next.size = state_get16(in);
	flags = state_get8(in);
	no_kick = state_get8(in);
	next.desc_gpa = state_get64(in);
	next.avail_gpa = state_get64(in);
	next.used_gpa = state_get64(in);
	next.taken = state_get16(in);
	next.used_idx = state_get16(in);
	next.signalled = state_get16(in);
	state_get(in, reserved, sizeof(reserved));
	for (unsigned i = 0; i < sizeof(reserved); i++)
		any |= reserved[i];
	if (in->bad || any || flags & ~(STATE_ENABLED | STATE_BROKEN) || no_kick > 1)
		return fail(err, IMG_E_CORRUPT, "saved queue: unknown flags");
	if (next.taken != next.used_idx)
		return fail(err, IMG_E_CORRUPT, "saved queue: requests in flight");
	next.no_kick = no_kick;
	next.broken = flags & STATE_BROKEN;
	next.event_idx = vq->event_idx;
	next.indirect = vq->indirect;
	if (flags & STATE_ENABLED) {
		struct img_error why = { 0 };

		if (virtqueue_enable(&next, &why))
			return fail(err, IMG_E_CORRUPT, "saved queue: %s", why.msg);
	}
	*vq = next;
	return 0;
}

/*
 * To or from a guest that may write the same bytes at the same time: any mixture of old and new is fine, for the copy
 * is looked at and not the original. The thread sanitizer cannot know that.
 */
static void guest_copy(void *to, const void *from, size_t bytes)
{
#ifdef __SANITIZE_THREAD__
	for (size_t i = 0; i < bytes; i++) {
		uint8_t v = __atomic_load_n((const uint8_t *)from + i, __ATOMIC_RELAXED);

		__atomic_store_n((uint8_t *)to + i, v, __ATOMIC_RELAXED);
	}
#else
	memcpy(to, from, bytes);
#endif
}

/* How much of iov, *off bytes into it and at most left, comes next, and where; *off is for the piece after it. */
static size_t next_part(const struct iovec *iov, uint64_t *off, size_t left, uint8_t **at)
{
	size_t n;

	if (*off >= iov->iov_len) {
		*off -= iov->iov_len;
		return 0;
	}
	n = iov->iov_len - (size_t)*off;
	*at = (uint8_t *)iov->iov_base + *off;
	*off = 0;
	return n < left ? n : left;
}

size_t virtqueue_copy_out(const struct virtqueue_chain *chain, uint64_t off, void *buf, size_t bytes)
{
	size_t done = 0;

	for (unsigned i = 0; i < chain->nr_out && done < bytes; i++) {
		uint8_t *at = NULL;
		size_t n = next_part(&chain->iov[i], &off, bytes - done, &at);

		if (n > 0)
			guest_copy((uint8_t *)buf + done, at, n);
		done += n;
	}
	return done;
}

size_t virtqueue_copy_in(const struct virtqueue_chain *chain, uint64_t off, const void *buf, size_t bytes)
{
	size_t done = 0;

	for (unsigned i = 0; i < chain->nr_in && done < bytes; i++) {
		uint8_t *at = NULL;
		size_t n = next_part(&chain->iov[chain->nr_out + i], &off, bytes - done, &at);

		if (n > 0) {
			guest_copy(at, (const uint8_t *)buf + done, n);
			memory_wrote(chain->mem, at, n);
		}
		done += n;
	}
	return done;
}
