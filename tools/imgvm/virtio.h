/* SPDX-License-Identifier: MIT */
/*
 * Virtio devices over PCI (virtio 1.2, 4.1; modern interface only). virtio_pci.c is the transport: configuration space,
 * the registers, MSI-X, feature negotiation, the worker thread; a device kind (virtio_blk.c, virtio_rng.c,
 * virtio_console.c) says which features and queues it has and handles requests.
 *
 * BAR 0, 16 KiB: 0x0000 common configuration, 0x1000 ISR, 0x2000 device configuration, 0x3000 notification (a queue
 * every 4 bytes), 0x3800 MSI-X table, 0x3c00 pending bits.
 *
 * Threads: registers under the bus lock. `lock` covers the queues and what the kind keeps: the worker holds it while it
 * handles one request; a register write that changes queues takes it after the bus lock. irq_lock covers ISR and MSI-X.
 */
#ifndef IMGVM_VIRTIO_H
#define IMGVM_VIRTIO_H

#include "pci.h"
#include "virtqueue.h"

#define VIRTIO_MAX_QUEUES  4
#define VIRTIO_BAR_BYTES   0x4000u
#define VIRTIO_CONFIG_MAX  64u
#define VIRTIO_MAX_VECTORS (VIRTIO_MAX_QUEUES + 1)

struct virtio;

struct virtio_kind {
	const char *name;
	uint16_t virtio_id; /* PCI device id is 0x1040 + this */
	uint32_t class_rev; /* PCI class << 8 */
	uint32_t tag;	    /* of the saved section */
	unsigned nr_queues;
	uint16_t queue_size;
	uint64_t features; /* offered beside VERSION_1, INDIRECT_DESC, EVENT_IDX */
	/* Handles what is in a queue: called by the worker with `lock` held, once per request at most; true: more may
	 * be there. */
	bool (*handle)(struct virtio *v, unsigned queue);
	/* Fills the device configuration (VIRTIO_CONFIG_MAX bytes of zeros). */
	void (*config)(struct virtio *v, uint8_t *config);
	/* May be NULL: the guest wrote a field of the device configuration. */
	void (*config_write)(struct virtio *v, unsigned off, unsigned bytes, uint64_t value);
	void (*reset)(struct virtio *v); /* what the kind keeps; may be NULL */
	/* What the kind keeps, after the transport's part in the same section; both or neither. load ends with
	 * state_done(), and changes nothing before. */
	void (*save)(struct virtio *v, struct state_writer *out);
	int (*load)(struct virtio *v, struct state_reader *in, struct img_error *err);
	void (*destroy)(struct virtio *v); /* frees what priv is; may be NULL */
};

/* Creates the device, attaches it to PCI, adds it to the bus and starts its worker, paused. kind and priv are owned by
 * it from here on (kind->destroy), but not after a failure: NULL. */
struct virtio *virtio_create(const struct virtio_kind *kind, struct bus *bus, struct device *pcidev,
			     const struct machine_host *host, struct memory *mem, void *priv, struct img_error *err);
void *virtio_priv(struct virtio *v);
struct device *virtio_device(struct virtio *v);
struct virtqueue *virtio_queue(struct virtio *v, unsigned queue);
uint64_t virtio_features(const struct virtio *v); /* negotiated; 0 before FEATURES_OK */
/* Under lock, by handle(): interrupts for a queue if the guest wants it. */
void virtio_notify_guest(struct virtio *v, unsigned queue);
/* Under lock: the guest broke a rule. DEVICE_NEEDS_RESET; the queues rest until the reset. */
void virtio_broken(struct virtio *v, const struct img_error *why);
/* Any thread: it broke a rule since the last reset, and which. */
bool virtio_is_broken(struct virtio *v, struct img_error *why);
/* The device configuration changed (a resize): interrupts. */
void virtio_config_changed(struct virtio *v);
/* Any thread: look at the queue as if the guest had kicked it (input has arrived, a throttle has opened). */
void virtio_kick(struct virtio *v, unsigned queue);
/* Under lock, by handle() before it returns false: look again when ns have passed, or after a resume. The worker waits
 * without the lock. */
void virtio_look_later(struct virtio *v, unsigned queue, uint64_t ns);
/* `lock`, for whoever is not the worker; waits for the request in hand only. Not nested. */
void virtio_lock(struct virtio *v);
void virtio_unlock(struct virtio *v);

/* ---- kinds ---- */

struct throttle; /* throttle.h */

struct virtio_blk_options {
	struct img *img; /* borrowed */
	bool read_only;
	const char *serial;	   /* up to 20 bytes, for the guest; may be NULL */
	struct throttle *throttle; /* borrowed, or NULL */
};
struct virtio *virtio_blk_create(const struct virtio_blk_options *opts, struct bus *bus, struct device *pcidev,
				 const struct machine_host *host, struct memory *mem, struct img_error *err);
/* The disk has another size or content (revert). Machine paused. */
void virtio_blk_changed(struct virtio *v);
struct virtio_blk_stats {
	uint64_t reads, writes, flushes, read_bytes, write_bytes, errors;
};
void virtio_blk_stats(struct virtio *v, struct virtio_blk_stats *out);

struct virtio *virtio_rng_create(struct bus *bus, struct device *pcidev, const struct machine_host *host,
				 struct memory *mem, struct img_error *err);

/* Output goes to out(), from the worker; input by virtio_console_input(), which takes as much as there is room for and
 * returns how much. */
struct virtio_console_options {
	void (*out)(void *ctx, const void *data, size_t bytes);
	void *ctx;
};
struct virtio *virtio_console_create(const struct virtio_console_options *opts, struct bus *bus, struct device *pcidev,
				     const struct machine_host *host, struct memory *mem, struct img_error *err);
size_t virtio_console_input(struct virtio *v, const void *data, size_t bytes);

#endif
