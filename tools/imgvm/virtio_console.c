/* SPDX-License-Identifier: MIT */
/*
 * virtio-console (virtio 1.2, 5.3) with one port. What the guest sends goes out as it comes; input waits in a ring
 * until the guest gives buffers for it. The ring is not saved: it holds what a person has just typed at this terminal.
 */
#include "virtio.h"

#include <stdlib.h>
#include <string.h>

#include "fail.h"

enum { VIRTIO_ID_CONSOLE = 3, QUEUE_SIZE = 64, INPUT_BYTES = 4096, PIECE_BYTES = 1024 };
enum { RECEIVE, TRANSMIT, NR_QUEUES }; /* 5.3.2 */
#define CLASS_REV 0x07800000u	       /* communication, other */
/* Longest request: no driver sends that much at once, and the machine can be paused between two. */
#define SEND_MAX_BYTES (1u << 20)

struct console {
	struct virtio_console_options opts;
	uint8_t input[INPUT_BYTES];
	size_t first, nr; /* what waits in it */
	struct virtqueue_chain chain;
};

static int send(struct virtio *v, struct console *c, struct img_error *why)
{
	uint8_t piece[PIECE_BYTES];
	uint64_t off = 0;
	size_t n;

	if (c->chain.out_bytes > SEND_MAX_BYTES) {
		virtqueue_unpop(virtio_queue(v, TRANSMIT));
		return fail(why, IMG_E_LIMIT, "virtio-console: a request of more than 1 MiB");
	}
	while ((n = virtqueue_copy_out(&c->chain, off, piece, sizeof(piece))) > 0) {
		c->opts.out(c->opts.ctx, piece, n);
		off += n;
	}
	virtqueue_push(virtio_queue(v, TRANSMIT), &c->chain, 0);
	return 0;
}

static void receive(struct virtio *v, struct console *c)
{
	uint64_t off = 0;

	while (c->nr) {
		size_t whole = INPUT_BYTES - c->first < c->nr ? INPUT_BYTES - c->first : c->nr;
		size_t n = virtqueue_copy_in(&c->chain, off, c->input + c->first, whole);

		if (!n)
			break;
		off += n;
		c->first = (c->first + n) % INPUT_BYTES;
		c->nr -= n;
	}
	virtqueue_push(virtio_queue(v, RECEIVE), &c->chain, (uint32_t)off);
}

static bool handle(struct virtio *v, unsigned queue)
{
	struct console *c = virtio_priv(v);
	struct virtqueue *vq = virtio_queue(v, queue);
	struct img_error why = { 0 };
	int got;

	/* buffers for input wait in their ring; a kick matters while there is input without one */
	if (queue == RECEIVE && !c->nr)
		return false;
	got = virtqueue_pop(vq, &c->chain, &why);
	if (got == 0)
		return virtqueue_enable_kick(vq, true);
	if (got > 0 && queue == RECEIVE)
		receive(v, c);
	else if (got > 0)
		got = send(v, c, &why) ? -1 : 1;
	if (got < 0) {
		virtio_broken(v, &why);
		return false;
	}
	virtio_notify_guest(v, queue);
	return true;
}

static void reset(struct virtio *v)
{
	struct console *c = virtio_priv(v);

	c->first = c->nr = 0;
}

static void destroy(struct virtio *v)
{
	free(virtio_priv(v));
}

static const struct virtio_kind kind = {
	.name = "virtio-console",
	.virtio_id = VIRTIO_ID_CONSOLE,
	.class_rev = CLASS_REV,
	.tag = STATE_TAG('V', 'C', 'O', 'N'),
	.nr_queues = NR_QUEUES,
	.queue_size = QUEUE_SIZE,
	.handle = handle,
	.reset = reset,
	.destroy = destroy,
};

struct virtio *virtio_console_create(const struct virtio_console_options *opts, struct bus *bus, struct device *pcidev,
				     const struct machine_host *host, struct memory *mem, struct img_error *err)
{
	struct console *c = calloc(1, sizeof(*c));
	struct virtio *v;

	if (!c) {
		fail(err, IMG_E_NOMEM, "out of memory");
		return NULL;
	}
	c->opts = *opts;
	v = virtio_create(&kind, bus, pcidev, host, mem, c, err);
	if (!v)
		free(c);
	return v;
}

size_t virtio_console_input(struct virtio *v, const void *data, size_t bytes)
{
	struct console *c = virtio_priv(v);
	const uint8_t *from = data;
	size_t n = 0;

	virtio_lock(v);
	/* without a driver nobody will ever ask for it */
	if (!virtio_features(v))
		n = bytes;
	while (n < bytes && c->nr < INPUT_BYTES) {
		c->input[(c->first + c->nr++) % INPUT_BYTES] = from[n++];
	}
	virtio_unlock(v);
	virtio_kick(v, RECEIVE);
	return n;
}
