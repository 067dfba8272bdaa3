/* SPDX-License-Identifier: MIT */
/*
 * A split virtqueue (virtio 1.2, 2.7), device side, over guest memory that a hostile guest changes at any moment.
 *
 * Rules; tests/imgvm/test_virtqueue.c breaks each of them:
 *
 *  VQ-1   the size is a power of two, at most what the device offers
 *  VQ-2   the three areas are aligned (16, 2, 4), and each lies wholly in one slot of RAM
 *  VQ-3   addresses and size are frozen while the queue is enabled; pointers are made once, on enabling
 *  VQ-4   avail.idx runs at most `size` ahead of what was taken
 *  VQ-5   a head or a next index is below the size; a chain has at most `size` descriptors and VIRTQUEUE_MAX_CHAIN
 * pieces VQ-6   an indirect table has a length that is a multiple of 16, at most 16 * VIRTQUEUE_MAX_CHAIN, lies in one
 * slot and holds no indirect descriptor; a descriptor that names one has no NEXT, and that there are such was
 * negotiated VQ-7   what the device reads comes before what it writes VQ-8   every buffer lies wholly in one slot; the
 * sum of lengths fits 32 bits VQ-9   each descriptor is copied once, before it is looked at VQ-10  used.len is what was
 * written
 *
 * A queue that breaks a rule is broken: nothing more is taken from it until the device is reset (the transport sets
 * DEVICE_NEEDS_RESET).
 *
 * Threads: one at a time (the device's lock).
 */
#ifndef IMGVM_VIRTQUEUE_H
#define IMGVM_VIRTQUEUE_H

#include <sys/uio.h>

#include "memory.h"
#include "state.h"

#define VIRTQUEUE_MAX 256u
/* Pieces of one request, indirect or not; devices tell guests a lower number where they can. */
#define VIRTQUEUE_MAX_CHAIN 128u

struct virtqueue {
	struct memory *mem;
	uint16_t size; /* as the guest set it; reset: max_size */
	uint16_t max_size;
	bool enabled, broken;
	uint64_t desc_gpa, avail_gpa, used_gpa;
	/* valid while enabled */
	const uint8_t *desc, *avail;
	uint8_t *used;
	uint16_t taken;	    /* next index of avail to take */
	uint16_t used_idx;  /* ours, never read back from the guest */
	uint16_t signalled; /* used_idx when the guest was last interrupted */
	bool event_idx;	    /* VIRTIO_F_EVENT_IDX was negotiated */
	bool indirect;	    /* VIRTIO_F_INDIRECT_DESC was negotiated */
	bool no_kick;	    /* the guest was told not to kick */
};

/* One request: readable pieces, then writable ones; pointers into guest memory. Pieces without a byte are left out. */
struct virtqueue_chain {
	struct memory *mem;
	uint16_t head;
	unsigned nr_out, nr_in; /* out: the device reads, in: the device writes */
	uint64_t out_bytes, in_bytes;
	struct iovec iov[VIRTQUEUE_MAX_CHAIN]; /* out first */
};

void virtqueue_init(struct virtqueue *vq, struct memory *mem, uint16_t max_size);
void virtqueue_reset(struct virtqueue *vq);
/* Checks rules 1 and 2 and makes the pointers. INVALID: the queue stays disabled. */
int virtqueue_enable(struct virtqueue *vq, struct img_error *err);

/* Takes the next request. 1: *chain is filled; 0: none there (or the queue is not enabled, or broken); INVALID: the
 * rule that was broken. */
int virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain, struct img_error *err);
/* The last request that was taken, and was not given back, is to be taken again later. */
void virtqueue_unpop(struct virtqueue *vq);
/* Gives it back with the number of bytes written to its writable pieces, and marks those as written (memory_wrote). */
void virtqueue_push(struct virtqueue *vq, const struct virtqueue_chain *chain, uint32_t written_bytes);
/* After pushes: does the guest want an interrupt? Notes that it was asked. */
bool virtqueue_wants_irq(struct virtqueue *vq);
/* Asks the guest to kick for new requests (or not to), and returns whether some are there already. */
bool virtqueue_enable_kick(struct virtqueue *vq, bool on);

/* Fixed size; nothing may be taken and not given back. Load checks what a guest could break before it changes anything;
 * event_idx and indirect are not in it. */
#define VIRTQUEUE_STATE_BYTES 40u
void virtqueue_save(const struct virtqueue *vq, struct state_writer *out);
int virtqueue_load(struct virtqueue *vq, struct state_reader *in, struct img_error *err);

/* Copies between a chain's pieces and a buffer, from byte `off` of them; as many as there are. Returns how many. Into
 * the guest: marked as written. */
size_t virtqueue_copy_out(const struct virtqueue_chain *chain, uint64_t off, void *buf, size_t bytes);
size_t virtqueue_copy_in(const struct virtqueue_chain *chain, uint64_t off, const void *buf, size_t bytes);

#endif
