/* SPDX-License-Identifier: MIT */
/*
 * Virtio over PCI (virtio 1.2, 4.1), modern interface: configuration space with a capability for each structure, and
 * the registers in BAR 0. What a register says follows from the state of struct virtio; nothing is cached.
 *
 * Status (2.1) only grows until the reset. FEATURES_OK is refused where the driver took what was not offered or left
 * VERSION_1; queues are enabled from there on, and from then, or from DRIVER_OK on, their registers are frozen.
 * A structure may be read and written by its natural width only (4.1.3.1): other widths read as ones and write nothing.
 */
#include "virtio_int.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

/* 4.1.2 */
enum { PCI_VENDOR = 0x1af4, PCI_DEVICE_BASE = 0x1040, PCI_REVISION = 1, PCI_SUBSYSTEM = 0x1040 };

/* Configuration space (PCI 3.0, 6.1), capabilities (6.7, 6.8.2; virtio 4.1.4). */
enum {
	CAP_VENDOR = 0x09,
	CAP_MSIX = 0x11,
	CAP_MSIX_BYTES = 12,
	CAP_VIRTIO_BYTES = 16,
	CAP_NOTIFY_BYTES = 20,
	CAP_COMMON_CFG = 1,
	CAP_NOTIFY_CFG = 2,
	CAP_ISR_CFG = 3,
	CAP_DEVICE_CFG = 4,
};

/* The structures in BAR 0 (virtio.h). */
enum {
	AT_COMMON = 0x0000,
	AT_ISR = 0x1000,
	AT_DEVICE = 0x2000,
	AT_NOTIFY = 0x3000,
	AT_TABLE = 0x3800,
	AT_PBA = 0x3c00,
	STRUCTURE_BYTES = 0x1000, /* the first three */
	NOTIFY_STEP = 4,	  /* queue_notify_off is the queue's number */
	NOTIFY_BYTES = 2,	  /* width of a kick */
};

/* 4.1.4.3: the common configuration. */
enum {
	C_DEVICE_FEATURE_SELECT = 0x00,
	C_DEVICE_FEATURE = 0x04,
	C_DRIVER_FEATURE_SELECT = 0x08,
	C_DRIVER_FEATURE = 0x0c,
	C_CONFIG_VECTOR = 0x10,
	C_NUM_QUEUES = 0x12,
	C_STATUS = 0x14,
	C_GENERATION = 0x15,
	C_QUEUE_SELECT = 0x16,
	C_QUEUE_SIZE = 0x18,
	C_QUEUE_VECTOR = 0x1a,
	C_QUEUE_ENABLE = 0x1c,
	C_QUEUE_NOTIFY_OFF = 0x1e,
	C_QUEUE_DESC = 0x20,
	C_QUEUE_DRIVER = 0x28,
	C_QUEUE_DEVICE = 0x30,
	COMMON_BYTES = 0x38,
};

static bool natural_width(unsigned off, unsigned bytes)
{
	if (off >= COMMON_BYTES || off % bytes)
		return false;
	if (off < C_CONFIG_VECTOR || off >= C_QUEUE_DESC)
		return bytes == 4;
	return bytes == (off == C_STATUS || off == C_GENERATION ? 1 : 2);
}

/* NULL: the driver selected one that does not exist. */
static struct virtqueue *selected(struct virtio *v)
{
	return v->queue_select < v->kind->nr_queues ? &v->queue[v->queue_select] : NULL;
}

static uint32_t half(uint64_t value, uint32_t select)
{
	return select < 2 ? (uint32_t)(value >> (32 * select)) : 0;
}

static void set_half(uint64_t *value, uint32_t select, uint32_t half_value)
{
	if (select < 2)
		*value = (*value & ~((uint64_t)UINT32_MAX << (32 * select))) | (uint64_t)half_value << (32 * select);
}

static uint64_t queue_read(struct virtio *v, unsigned off)
{
	const struct virtqueue *vq = selected(v);

	/* 4.1.4.3.1: a queue that does not exist has size 0 */
	if (!vq)
		return off == C_QUEUE_VECTOR ? NO_VECTOR : 0;
	switch (off) {
	case C_QUEUE_SIZE: return vq->size;
	case C_QUEUE_VECTOR: return virtio_irq_vector(v, v->queue_select);
	case C_QUEUE_ENABLE: return vq->enabled;
	case C_QUEUE_NOTIFY_OFF: return v->queue_select;
	case C_QUEUE_DESC: return half(vq->desc_gpa, 0);
	case C_QUEUE_DESC + 4: return half(vq->desc_gpa, 1);
	case C_QUEUE_DRIVER: return half(vq->avail_gpa, 0);
	case C_QUEUE_DRIVER + 4: return half(vq->avail_gpa, 1);
	case C_QUEUE_DEVICE: return half(vq->used_gpa, 0);
	default: return half(vq->used_gpa, 1);
	}
}

static uint64_t common_read(struct virtio *v, unsigned off, unsigned bytes)
{
	if (!natural_width(off, bytes))
		return UINT64_MAX;
	switch (off) {
	case C_DEVICE_FEATURE_SELECT: return v->device_feature_select;
	case C_DEVICE_FEATURE: return half(v->offered, v->device_feature_select);
	case C_DRIVER_FEATURE_SELECT: return v->driver_feature_select;
	case C_DRIVER_FEATURE: return half(v->driver_features, v->driver_feature_select);
	case C_CONFIG_VECTOR: return virtio_irq_vector(v, -1);
	case C_NUM_QUEUES: return v->kind->nr_queues;
	case C_STATUS: return atomic_load(&v->status);
	case C_GENERATION: return atomic_load(&v->generation);
	case C_QUEUE_SELECT: return v->queue_select;
	default: return queue_read(v, off);
	}
}

/* 2.4: waits for the request in hand. */
static void reset(struct virtio *v)
{
	virtio_lock(v);
	atomic_store(&v->status, 0);
	v->driver_features = 0;
	v->device_feature_select = v->driver_feature_select = 0;
	v->queue_select = 0;
	virtio_queues_reset(v);
	virtio_irq_reset(v);
	virtio_unlock(v);
}

static bool features_are_ours(const struct virtio *v)
{
	return (v->driver_features & FEATURE_VERSION_1) && !(v->driver_features & ~v->offered);
}

static void status_write(struct virtio *v, uint8_t value)
{
	uint8_t old = atomic_load(&v->status);
	uint8_t added = (uint8_t)(value & STATUS_ALL & ~STATUS_NEEDS_RESET & ~old);

	if (!value) {
		reset(v);
		return;
	}
	if ((added & STATUS_FEATURES_OK) && !features_are_ours(v))
		added &= (uint8_t)~STATUS_FEATURES_OK;
	if ((added & STATUS_DRIVER_OK) && !((old | added) & STATUS_FEATURES_OK))
		added &= (uint8_t)~STATUS_DRIVER_OK;
	virtio_lock(v);
	atomic_fetch_or(&v->status, added);
	virtio_unlock(v);
	if (added & STATUS_DRIVER_OK)
		virtio_kick(v, 0);
}

static void queue_enable(struct virtio *v, struct virtqueue *vq)
{
	struct img_error why = { 0 };

	if (!(atomic_load(&v->status) & STATUS_FEATURES_OK))
		return;
	vq->event_idx = v->driver_features & FEATURE_EVENT_IDX;
	vq->indirect = v->driver_features & FEATURE_INDIRECT_DESC;
	if (virtqueue_enable(vq, &why))
		virtio_broken(v, &why);
}

static void queue_write(struct virtio *v, unsigned off, uint64_t value)
{
	struct virtqueue *vq = selected(v);
	uint32_t low = (uint32_t)value;

	if (!vq)
		return;
	if (off == C_QUEUE_VECTOR) {
		virtio_irq_set_vector(v, v->queue_select, (uint16_t)value);
		return;
	}
	if (vq->enabled || (atomic_load(&v->status) & STATUS_DRIVER_OK))
		return;
	virtio_lock(v);
	switch (off) {
	case C_QUEUE_SIZE: vq->size = (uint16_t)value; break;
	case C_QUEUE_DESC: set_half(&vq->desc_gpa, 0, low); break;
	case C_QUEUE_DESC + 4: set_half(&vq->desc_gpa, 1, low); break;
	case C_QUEUE_DRIVER: set_half(&vq->avail_gpa, 0, low); break;
	case C_QUEUE_DRIVER + 4: set_half(&vq->avail_gpa, 1, low); break;
	case C_QUEUE_DEVICE: set_half(&vq->used_gpa, 0, low); break;
	case C_QUEUE_DEVICE + 4: set_half(&vq->used_gpa, 1, low); break;
	case C_QUEUE_ENABLE:
		if (value == 1)
			queue_enable(v, vq);
		break;
	}
	virtio_unlock(v);
}

static void common_write(struct virtio *v, unsigned off, unsigned bytes, uint64_t value)
{
	if (!natural_width(off, bytes))
		return;
	switch (off) {
	case C_DEVICE_FEATURE_SELECT: v->device_feature_select = (uint32_t)value; break;
	case C_DRIVER_FEATURE_SELECT: v->driver_feature_select = (uint32_t)value; break;
	case C_DRIVER_FEATURE:
		if (!(atomic_load(&v->status) & STATUS_FEATURES_OK))
			set_half(&v->driver_features, v->driver_feature_select, (uint32_t)value);
		break;
	case C_CONFIG_VECTOR: virtio_irq_set_vector(v, -1, (uint16_t)value); break;
	case C_STATUS: status_write(v, (uint8_t)value); break;
	case C_QUEUE_SELECT: v->queue_select = (uint16_t)value; break;
	default: queue_write(v, off, value); break;
	}
}

static uint64_t device_read(struct virtio *v, unsigned off, unsigned bytes)
{
	uint8_t config[VIRTIO_CONFIG_MAX] = { 0 };
	uint64_t value = 0;

	if (bytes > 4 || off % bytes || off + bytes > sizeof(config))
		return UINT64_MAX;
	if (v->kind->config)
		v->kind->config(v, config);
	for (unsigned i = 0; i < bytes; i++)
		value |= (uint64_t)config[off + i] << (8 * i);
	return value;
}

static uint64_t bar_read(struct device *dev, unsigned region, uint64_t at, unsigned bytes)
{
	struct virtio *v = virtio_of(dev);
	unsigned off = (unsigned)at;

	(void)region;
	if (off >= AT_PBA)
		return virtio_irq_pba_read(v, off - AT_PBA, bytes);
	if (off >= AT_TABLE)
		return virtio_irq_table_read(v, off - AT_TABLE, bytes);
	if (off >= AT_NOTIFY)
		return UINT64_MAX;
	if (off >= AT_DEVICE)
		return device_read(v, off - AT_DEVICE, bytes);
	if (off >= AT_ISR)
		return off == AT_ISR && bytes == 1 ? virtio_irq_read_isr(v) : UINT64_MAX;
	return common_read(v, off - AT_COMMON, bytes);
}

static void bar_write(struct device *dev, unsigned region, uint64_t at, unsigned bytes, uint64_t value)
{
	struct virtio *v = virtio_of(dev);
	unsigned off = (unsigned)at;

	(void)region;
	if (off >= AT_PBA)
		return;
	if (off >= AT_TABLE) {
		virtio_irq_table_write(v, off - AT_TABLE, bytes, value);
	} else if (off >= AT_NOTIFY) {
		unsigned queue = (off - AT_NOTIFY) / NOTIFY_STEP;

		/* comes here where KVM does not signal kick_fd by itself */
		if (bytes == NOTIFY_BYTES && off % NOTIFY_STEP == 0 && queue < v->kind->nr_queues)
			virtio_kick(v, queue);
	} else if (off >= AT_DEVICE) {
		if (v->kind->config_write && bytes <= 4 && off % bytes == 0 && off - AT_DEVICE < VIRTIO_CONFIG_MAX)
			v->kind->config_write(v, off - AT_DEVICE, bytes, value);
	} else if (off < AT_ISR) {
		common_write(v, off - AT_COMMON, bytes, value);
	}
}

static void set_ioeventfds(struct virtio *v, bool on)
{
	const struct machine_host *host = v->dev.host;

	if (!host->ioeventfd)
		return;
	/* where it fails the write arrives at bar_write() */
	for (unsigned i = 0; i < v->kind->nr_queues; i++)
		host->ioeventfd(host->machine, v->fds_gpa + AT_NOTIFY + i * NOTIFY_STEP, NOTIFY_BYTES, v->kick_fd, on);
}

void virtio_pci_changed(struct pci_function *fn)
{
	struct virtio *v = virtio_of(fn->dev);

	if (v->fds_on && (!fn->mapped || fn->bar_gpa != v->fds_gpa)) {
		set_ioeventfds(v, false);
		v->fds_on = false;
	}
	if (fn->mapped && !v->fds_on) {
		v->fds_gpa = fn->bar_gpa;
		v->fds_on = true;
		set_ioeventfds(v, true);
	}
	virtio_irq_pci_changed(v);
}

/* ---- creation ---- */

static void put32(uint8_t *p, uint32_t value)
{
	value = htole32(value);
	memcpy(p, &value, sizeof(value));
}

/* 4.1.4: struct virtio_pci_cap */
static void add_structure(struct virtio *v, uint8_t type, uint32_t off, uint32_t bytes)
{
	uint8_t cap_bytes = type == CAP_NOTIFY_CFG ? CAP_NOTIFY_BYTES : CAP_VIRTIO_BYTES;
	uint8_t *cap = v->fn.config + pci_add_cap(&v->fn, CAP_VENDOR, cap_bytes);

	cap[2] = cap_bytes;
	cap[3] = type;
	put32(cap + 8, off);
	put32(cap + 12, bytes);
	if (type == CAP_NOTIFY_CFG)
		put32(cap + 16, NOTIFY_STEP);
}

static void add_msix(struct virtio *v)
{
	uint8_t *cap;

	v->msix_cap = pci_add_cap(&v->fn, CAP_MSIX, CAP_MSIX_BYTES);
	cap = v->fn.config + v->msix_cap;
	cap[2] = (uint8_t)(virtio_irq_nr_vectors(v) - 1);
	/* "function mask" and "enable" */
	v->fn.writable[v->msix_cap + 3] = 0xc0;
	put32(cap + 4, AT_TABLE);
	put32(cap + 8, AT_PBA);
}

static void init_function(struct virtio *v)
{
	uint16_t id = (uint16_t)(PCI_DEVICE_BASE + v->kind->virtio_id);

	pci_function_init(&v->fn, &v->dev, PCI_VENDOR, id, v->kind->class_rev | PCI_REVISION, PCI_VENDOR,
			  PCI_SUBSYSTEM);
	v->fn.bar_bytes = VIRTIO_BAR_BYTES;
	v->fn.changed = virtio_pci_changed;
	add_structure(v, CAP_COMMON_CFG, AT_COMMON, COMMON_BYTES);
	add_structure(v, CAP_NOTIFY_CFG, AT_NOTIFY, v->kind->nr_queues * NOTIFY_STEP);
	add_structure(v, CAP_ISR_CFG, AT_ISR, 1);
	add_structure(v, CAP_DEVICE_CFG, AT_DEVICE, VIRTIO_CONFIG_MAX);
	add_msix(v);
}

static void power_on(struct device *dev)
{
	struct virtio *v = virtio_of(dev);

	reset(v);
	atomic_store(&v->generation, 0);
	virtio_irq_power_on(v);
	pci_function_reset(&v->fn);
	virtio_pci_changed(&v->fn);
}

static void destroy_transport(struct virtio *v)
{
	if (v->fds_on)
		set_ioeventfds(v, false);
	virtio_worker_stop(v);
	pthread_mutex_destroy(&v->irq.lock);
}

static void destroy(struct device *dev)
{
	struct virtio *v = virtio_of(dev);

	destroy_transport(v);
	if (v->kind->destroy)
		v->kind->destroy(v);
	free(v);
}

static const struct device_ops ops = {
	.name = "virtio",
	.read = bar_read,
	.write = bar_write,
	.reset = power_on,
	.save = virtio_save,
	.load = virtio_load,
	.pause = virtio_worker_pause,
	.resume = virtio_worker_resume,
	.destroy = destroy,
};

static uint32_t next_instance(const struct bus *bus, uint32_t tag)
{
	uint32_t nr = 0;

	for (unsigned i = 0; i < bus->nr_devices; i++)
		nr += bus->device[i]->tag == tag;
	return nr;
}

struct virtio *virtio_create(const struct virtio_kind *kind, struct bus *bus, struct device *pcidev,
			     const struct machine_host *host, struct memory *mem, void *priv, struct img_error *err)
{
	struct virtio *v = calloc(1, sizeof(*v));

	if (!v) {
		fail(err, IMG_E_NOMEM, "out of memory");
		return NULL;
	}
	v->dev = (struct device){ .ops = &ops, .host = host, .tag = kind->tag, .version = VIRTIO_STATE_VERSION };
	v->dev.instance = next_instance(bus, kind->tag);
	v->kind = kind;
	v->bus = bus;
	v->mem = mem;
	v->priv = priv;
	v->offered = kind->features | FEATURE_VERSION_1 | FEATURE_INDIRECT_DESC | FEATURE_EVENT_IDX;
	for (unsigned i = 0; i < kind->nr_queues; i++)
		virtqueue_init(&v->queue[i], mem, kind->queue_size);
	virtio_irq_init(v);
	if (virtio_worker_start(v, err)) {
		destroy_transport(v);
		free(v);
		return NULL;
	}
	init_function(v);
	pci_attach(pcidev, &v->fn);
	bus_add_device(bus, &v->dev);
	power_on(&v->dev);
	return v;
}

struct device *virtio_device(struct virtio *v)
{
	return &v->dev;
}

void *virtio_priv(struct virtio *v)
{
	return v->priv;
}

struct virtqueue *virtio_queue(struct virtio *v, unsigned queue)
{
	return &v->queue[queue];
}

uint64_t virtio_features(const struct virtio *v)
{
	return atomic_load(&v->status) & STATUS_FEATURES_OK ? v->driver_features : 0;
}
