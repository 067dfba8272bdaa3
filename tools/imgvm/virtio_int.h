/* SPDX-License-Identifier: MIT */
/*
 * The inside of a virtio device's transport, shared by virtio_pci.c (registers), virtio_irq.c (interrupts),
 * virtio_worker.c (thread and locks) and virtio_state.c (saved state).
 */
#ifndef IMGVM_VIRTIO_INT_H
#define IMGVM_VIRTIO_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "virtio.h"

/* 2.1: device status */
enum {
	STATUS_ACKNOWLEDGE = 1,
	STATUS_DRIVER = 2,
	STATUS_DRIVER_OK = 4,
	STATUS_FEATURES_OK = 8,
	STATUS_NEEDS_RESET = 64,
	STATUS_FAILED = 128,
	STATUS_ALL = 0xcf,
};

/* 6: features of the transport */
#define FEATURE_INDIRECT_DESC (UINT64_C(1) << 28)
#define FEATURE_EVENT_IDX     (UINT64_C(1) << 29)
#define FEATURE_VERSION_1     (UINT64_C(1) << 32)

#define NO_VECTOR 0xffffu /* 4.1.4.3 */

struct virtio_vector {
	uint64_t addr;
	uint32_t data;
	bool masked;
};

/* Interrupts of one device; everything under `lock`, the last in the order of locks. */
struct virtio_irq {
	pthread_mutex_t lock;
	/* copies of what the configuration space says: that one belongs to the bus lock */
	bool msix_on, all_masked;
	uint8_t isr;	  /* 4.1.4.5 */
	uint32_t pending; /* a bit a vector */
	uint16_t config_vector, queue_vector[VIRTIO_MAX_QUEUES];
	struct virtio_vector vector[VIRTIO_MAX_VECTORS];
};

struct virtio {
	struct device dev; /* first */
	struct pci_function fn;
	const struct virtio_kind *kind;
	struct bus *bus;
	struct memory *mem;
	void *priv;
	unsigned msix_cap; /* its offset in configuration space */
	uint64_t offered;  /* features */

	/* bus lock */
	uint32_t device_feature_select, driver_feature_select;
	uint16_t queue_select;
	bool fds_on; /* the queues' ioeventfds are registered for the BAR at fds_gpa */
	uint64_t fds_gpa;

	/* changed under the bus lock and `lock`, by the worker under `lock` */
	_Atomic uint8_t status;
	_Atomic uint8_t generation;
	uint64_t driver_features; /* does not change while the worker handles queues */

	/*
	 * Held by the worker while it handles one request. Who else wants it says so in `wanted` first, and the worker
	 * leaves it alone until they are through: it would take it again before they wake up otherwise.
	 */
	pthread_mutex_t lock;
	atomic_uint wanted;
	pthread_cond_t go;
	bool paused, stop;		      /* lock */
	uint32_t look;			      /* lock: a bit a queue that may hold requests */
	uint64_t later_ns[VIRTIO_MAX_QUEUES]; /* lock: monotonic time before which a queue rests; 0: none */
	struct virtqueue queue[VIRTIO_MAX_QUEUES];
	struct img_error why; /* lock: the rule that was broken since the last reset */
	int kick_fd;	      /* eventfd of all queues, and of who wants the worker to look up */
	pthread_t worker;
	bool has_worker;

	struct virtio_irq irq;
};

static inline struct virtio *virtio_of(struct device *dev)
{
	return (struct virtio *)(void *)dev;
}

/* ---- virtio_irq.c ---- */

void virtio_irq_init(struct virtio *v);
void virtio_irq_power_on(struct virtio *v);    /* vectors masked, and as virtio_irq_reset() */
void virtio_irq_reset(struct virtio *v);       /* of the virtio device: no vectors, nothing pending */
void virtio_irq_pci_changed(struct virtio *v); /* under the bus lock */
void virtio_irq_queue(struct virtio *v, unsigned queue);
void virtio_irq_config(struct virtio *v);
uint8_t virtio_irq_read_isr(struct virtio *v);
/* Which vector the configuration (queue < 0) or a queue uses; one that does not exist becomes NO_VECTOR. */
uint16_t virtio_irq_vector(struct virtio *v, int queue);
void virtio_irq_set_vector(struct virtio *v, int queue, uint16_t vector);
uint64_t virtio_irq_table_read(struct virtio *v, unsigned off, unsigned bytes);
void virtio_irq_table_write(struct virtio *v, unsigned off, unsigned bytes, uint64_t value);
uint64_t virtio_irq_pba_read(struct virtio *v, unsigned off, unsigned bytes);
unsigned virtio_irq_nr_vectors(const struct virtio *v);
void virtio_irq_save(struct virtio *v, struct state_writer *out);
/* Into *next; nothing changes. config: the configuration space that goes with it. */
int virtio_irq_check(struct virtio *v, struct state_reader *in, const uint8_t *config, struct virtio_irq *next,
		     struct img_error *err);
void virtio_irq_apply(struct virtio *v, const struct virtio_irq *next);

/* ---- virtio_worker.c ---- */

int virtio_worker_start(struct virtio *v, struct img_error *err); /* paused */
void virtio_worker_stop(struct virtio *v);
void virtio_worker_pause(struct device *dev);
void virtio_worker_resume(struct device *dev);
/* What the worker would do now, on the caller's thread, at most nr requests: for fuzzers, which want the same every time.
 * The device is paused. */
void virtio_worker_step(struct virtio *v, unsigned nr);
/* Under lock: everything that the queues and the kind know is forgotten. */
void virtio_queues_reset(struct virtio *v);

/* ---- virtio_state.c ---- */

#define VIRTIO_STATE_VERSION 1u
void virtio_save(struct device *dev, struct state_writer *out);
int virtio_load(struct device *dev, struct state_reader *in, struct img_error *err);
/* virtio_pci.c: after the BAR or the configuration space changed. */
void virtio_pci_changed(struct pci_function *fn);

#endif
