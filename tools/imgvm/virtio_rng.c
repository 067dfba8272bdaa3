/* SPDX-License-Identifier: MIT */
/* virtio-rng (virtio 1.2, 5.4): the host's random numbers, so many of them in one request. */
#include "virtio.h"

#include <sys/random.h>

enum { VIRTIO_ID_ENTROPY = 4, QUEUE_SIZE = 8, REQUEST_BYTES = 256 };
#define CLASS_REV 0x00ff0000u /* no class */

static bool handle(struct virtio *v, unsigned queue)
{
	struct virtqueue *vq = virtio_queue(v, queue);
	struct virtqueue_chain chain;
	uint8_t random[REQUEST_BYTES];
	struct img_error why = { 0 };
	ssize_t got;
	int popped = virtqueue_pop(vq, &chain, &why);

	if (popped == 0)
		return virtqueue_enable_kick(vq, true);
	if (popped < 0) {
		virtio_broken(v, &why);
		return false;
	}
	/* 256 bytes are never interrupted; a driver that wants more asks again (5.4.6.1: at least one byte) */
	got = getrandom(random, sizeof(random), 0);
	got = got < 0 ? 0 : got;
	virtqueue_push(vq, &chain, (uint32_t)virtqueue_copy_in(&chain, 0, random, (size_t)got));
	virtio_notify_guest(v, queue);
	return true;
}

static const struct virtio_kind kind = {
	.name = "virtio-rng",
	.virtio_id = VIRTIO_ID_ENTROPY,
	.class_rev = CLASS_REV,
	.tag = STATE_TAG('V', 'R', 'N', 'G'),
	.nr_queues = 1,
	.queue_size = QUEUE_SIZE,
	.handle = handle,
};

struct virtio *virtio_rng_create(struct bus *bus, struct device *pcidev, const struct machine_host *host,
				 struct memory *mem, struct img_error *err)
{
	return virtio_create(&kind, bus, pcidev, host, mem, NULL, err);
}
