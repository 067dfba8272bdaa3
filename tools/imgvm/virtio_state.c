/* SPDX-License-Identifier: MIT */
/*
 * A virtio device in saved state (format-spec/machine-state.md): configuration space, transport, queues, interrupts,
 * and what the kind adds. The machine is paused and the worker between two requests, so nothing is in flight: what the
 * guest has asked for lies in its rings, and is looked at when the device resumes.
 *
 * Loading reads everything into copies, judges them by the rules that the registers keep, and then swaps them in.
 */
#include "virtio_int.h"

#include <string.h>

#include "fail.h"

struct loaded {
	uint8_t config[PCI_STATE_BYTES];
	uint32_t device_feature_select, driver_feature_select;
	uint64_t driver_features;
	uint16_t queue_select;
	uint8_t status, generation;
	struct virtqueue queue[VIRTIO_MAX_QUEUES];
	struct virtio_irq irq;
};

void virtio_save(struct device *dev, struct state_writer *out)
{
	struct virtio *v = virtio_of(dev);

	state_begin(out, dev->tag, dev->instance, dev->version);
	pci_function_save(&v->fn, out);
	state_put32(out, v->device_feature_select);
	state_put32(out, v->driver_feature_select);
	state_put64(out, v->driver_features);
	state_put16(out, v->queue_select);
	state_put8(out, atomic_load(&v->status));
	state_put8(out, atomic_load(&v->generation));
	state_put32(out, v->kind->nr_queues);
	for (unsigned i = 0; i < v->kind->nr_queues; i++)
		virtqueue_save(&v->queue[i], out);
	virtio_irq_save(v, out);
	if (v->kind->save)
		v->kind->save(v, out);
	state_end(out);
}

static int check_status(const struct virtio *v, const struct loaded *l, struct img_error *err)
{
	uint64_t surplus = l->driver_features & ~v->offered;

	if (l->status & ~STATUS_ALL || ((l->status & STATUS_DRIVER_OK) && !(l->status & STATUS_FEATURES_OK)))
		return fail(err, IMG_E_CORRUPT, "saved %s: impossible status %#x", v->kind->name, l->status);
	if (!(l->status & STATUS_FEATURES_OK))
		return 0;
	if (!(l->driver_features & FEATURE_VERSION_1))
		return fail(err, IMG_E_CORRUPT, "saved %s: a driver of the legacy kind", v->kind->name);
	if (surplus)
		return fail(err, IMG_E_UNSUPPORTED,
			    "saved %s: the driver uses features %#llx, which are not offered here", v->kind->name,
			    (unsigned long long)surplus);
	return 0;
}

static int check_queues(const struct virtio *v, struct loaded *l, struct state_reader *in, struct img_error *err)
{
	if (state_get32(in) != v->kind->nr_queues)
		return fail(err, IMG_E_CORRUPT, "saved %s: another number of queues", v->kind->name);
	for (unsigned i = 0; i < v->kind->nr_queues; i++) {
		struct virtqueue *vq = &l->queue[i];
		int code;

		virtqueue_init(vq, v->mem, v->kind->queue_size);
		vq->event_idx = l->driver_features & FEATURE_EVENT_IDX;
		vq->indirect = l->driver_features & FEATURE_INDIRECT_DESC;
		code = virtqueue_load(vq, in, err);
		if (code)
			return code;
		if (vq->enabled && !(l->status & STATUS_FEATURES_OK))
			return fail(err, IMG_E_CORRUPT, "saved %s: a queue without features", v->kind->name);
		if (vq->broken && !(l->status & STATUS_NEEDS_RESET))
			return fail(err, IMG_E_CORRUPT, "saved %s: a broken queue in a sound device", v->kind->name);
	}
	return 0;
}

/* Everything but what the kind keeps. */
static int check(struct virtio *v, struct state_reader *in, struct loaded *l, struct img_error *err)
{
	int code;

	state_get(in, l->config, sizeof(l->config));
	l->device_feature_select = state_get32(in);
	l->driver_feature_select = state_get32(in);
	l->driver_features = state_get64(in);
	l->queue_select = state_get16(in);
	l->status = state_get8(in);
	l->generation = state_get8(in);
	if (in->bad)
		return fail(err, IMG_E_CORRUPT, "saved %s: too short", v->kind->name);
	code = pci_function_check(&v->fn, l->config, err);
	code = code ? code : check_status(v, l, err);
	code = code ? code : check_queues(v, l, in, err);
	return code ? code : virtio_irq_check(v, in, l->config, &l->irq, err);
}

static void apply(struct virtio *v, const struct loaded *l)
{
	virtio_lock(v);
	v->device_feature_select = l->device_feature_select;
	v->driver_feature_select = l->driver_feature_select;
	v->driver_features = l->driver_features;
	v->queue_select = l->queue_select;
	atomic_store(&v->status, l->status);
	atomic_store(&v->generation, l->generation);
	memcpy(v->queue, l->queue, sizeof(v->queue));
	v->why = (struct img_error){ 0 };
	virtio_unlock(v);
	virtio_irq_apply(v, &l->irq);
	pci_function_apply(&v->fn, l->config);
	virtio_pci_changed(&v->fn);
}

int virtio_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct virtio *v = virtio_of(dev);
	struct loaded l = { 0 };
	int code = check(v, in, &l, err);

	if (!code)
		code = v->kind->load ? v->kind->load(v, in, err) : state_done(in, v->kind->name, err);
	if (!code)
		apply(v, &l);
	return code;
}
