/* SPDX-License-Identifier: MIT */
/*
 * Interrupts of a virtio device: MSI-X (PCI 3.0, 6.8.2; a table of vectors and a bit for each that waits behind a
 * mask), or the INTx pin with the ISR register where the driver did not turn MSI-X on (virtio 1.2, 4.1.4.5 and 4.1.5).
 *
 * The pin follows from the rest: high while ISR holds a bit and MSI-X is off (pci.c knows whether it is disabled).
 * Vectors are raised by the worker and by vCPUs; the lock here is the last in the order.
 */
#include "virtio_int.h"

#include <string.h>

#include "fail.h"

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

/* PCI 3.0, 6.8.2: an entry of the table */
enum { ENTRY_ADDR = 0, ENTRY_ADDR_HIGH = 4, ENTRY_DATA = 8, ENTRY_CONTROL = 12, ENTRY_BYTES = 16, ENTRY_MASKED = 1 };

enum { MSIX_CONTROL = 2, MSIX_CONTROL_MASK = 0x4000, MSIX_CONTROL_ON = 0x8000 };

unsigned virtio_irq_nr_vectors(const struct virtio *v)
{
	return v->kind->nr_queues + 1;
}

void virtio_irq_init(struct virtio *v)
{
	pthread_mutex_init(&v->irq.lock, NULL);
}

static void update_pin(struct virtio *v)
{
	struct virtio_irq *irq = &v->irq;

	pci_set_intx(&v->fn, irq->isr && !irq->msix_on);
}

static void send(struct virtio *v, unsigned vector)
{
	struct virtio_irq *irq = &v->irq;
	const struct virtio_vector *to = &irq->vector[vector];

	if (irq->all_masked || to->masked) {
		irq->pending |= 1u << vector;
		return;
	}
	irq->pending &= ~(1u << vector);
	v->dev.host->msi(v->dev.host->machine, to->addr, to->data);
}

static void send_pending(struct virtio *v)
{
	if (!v->irq.msix_on)
		return;
	for (unsigned i = 0; i < virtio_irq_nr_vectors(v); i++) {
		if (v->irq.pending & 1u << i)
			send(v, i);
	}
}

static void reset_locked(struct virtio *v)
{
	struct virtio_irq *irq = &v->irq;

	irq->isr = 0;
	irq->pending = 0;
	irq->config_vector = NO_VECTOR;
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		irq->queue_vector[i] = NO_VECTOR;
}

void virtio_irq_reset(struct virtio *v)
{
	pthread_mutex_lock(&v->irq.lock);
	reset_locked(v);
	update_pin(v);
	pthread_mutex_unlock(&v->irq.lock);
}

void virtio_irq_power_on(struct virtio *v)
{
	pthread_mutex_lock(&v->irq.lock);
	reset_locked(v);
	for (unsigned i = 0; i < VIRTIO_MAX_VECTORS; i++)
		v->irq.vector[i] = (struct virtio_vector){ .masked = true };
	update_pin(v);
	pthread_mutex_unlock(&v->irq.lock);
}

static void read_control(const struct virtio *v, const uint8_t *config, struct virtio_irq *irq)
{
	const uint8_t *at = config + v->msix_cap + MSIX_CONTROL;
	unsigned control = at[0] | (unsigned)at[1] << 8;

	irq->msix_on = control & MSIX_CONTROL_ON;
	irq->all_masked = control & MSIX_CONTROL_MASK;
}

void virtio_irq_pci_changed(struct virtio *v)
{
	pthread_mutex_lock(&v->irq.lock);
	read_control(v, v->fn.config, &v->irq);
	send_pending(v);
	update_pin(v);
	pthread_mutex_unlock(&v->irq.lock);
}

static void raise(struct virtio *v, const uint16_t *vector, uint8_t isr)
{
	struct virtio_irq *irq = &v->irq;

	pthread_mutex_lock(&irq->lock);
	if (!irq->msix_on) {
		irq->isr |= isr;
		update_pin(v);
	} else if (*vector != NO_VECTOR) {
		send(v, *vector);
	}
	pthread_mutex_unlock(&irq->lock);
}

void virtio_irq_queue(struct virtio *v, unsigned queue)
{
	raise(v, &v->irq.queue_vector[queue], ISR_QUEUE);
}

void virtio_irq_config(struct virtio *v)
{
	raise(v, &v->irq.config_vector, ISR_CONFIG);
}

uint8_t virtio_irq_read_isr(struct virtio *v)
{
	uint8_t isr;

	pthread_mutex_lock(&v->irq.lock);
	isr = v->irq.isr;
	v->irq.isr = 0;
	update_pin(v);
	pthread_mutex_unlock(&v->irq.lock);
	return isr;
}

static uint16_t *vector_of(struct virtio *v, int queue)
{
	return queue < 0 ? &v->irq.config_vector : &v->irq.queue_vector[queue];
}

uint16_t virtio_irq_vector(struct virtio *v, int queue)
{
	uint16_t vector;

	pthread_mutex_lock(&v->irq.lock);
	vector = *vector_of(v, queue);
	pthread_mutex_unlock(&v->irq.lock);
	return vector;
}

void virtio_irq_set_vector(struct virtio *v, int queue, uint16_t vector)
{
	pthread_mutex_lock(&v->irq.lock);
	*vector_of(v, queue) = vector < virtio_irq_nr_vectors(v) ? vector : NO_VECTOR;
	pthread_mutex_unlock(&v->irq.lock);
}

static uint32_t entry_read(const struct virtio_vector *vector, unsigned field)
{
	switch (field) {
	case ENTRY_ADDR: return (uint32_t)vector->addr;
	case ENTRY_ADDR_HIGH: return (uint32_t)(vector->addr >> 32);
	case ENTRY_DATA: return vector->data;
	default: return vector->masked ? ENTRY_MASKED : 0;
	}
}

static void entry_write(struct virtio *v, unsigned i, unsigned field, uint32_t value)
{
	struct virtio_vector *vector = &v->irq.vector[i];

	switch (field) {
	case ENTRY_ADDR: vector->addr = (vector->addr & ~(uint64_t)UINT32_MAX) | value; break;
	case ENTRY_ADDR_HIGH: vector->addr = (vector->addr & UINT32_MAX) | (uint64_t)value << 32; break;
	case ENTRY_DATA: vector->data = value; break;
	default: vector->masked = value & ENTRY_MASKED; break;
	}
}

/* The table is accessed by aligned words of 4 or 8 bytes. */
static bool table_access(struct virtio *v, unsigned off, unsigned bytes)
{
	return (bytes == 4 || bytes == 8) && off % bytes == 0 && off + bytes <= virtio_irq_nr_vectors(v) * ENTRY_BYTES;
}

uint64_t virtio_irq_table_read(struct virtio *v, unsigned off, unsigned bytes)
{
	uint64_t value = 0;

	if (!table_access(v, off, bytes))
		return UINT64_MAX;
	pthread_mutex_lock(&v->irq.lock);
	for (unsigned i = 0; i < bytes; i += 4) {
		const struct virtio_vector *vector = &v->irq.vector[(off + i) / ENTRY_BYTES];

		value |= (uint64_t)entry_read(vector, (off + i) % ENTRY_BYTES) << (8 * i);
	}
	pthread_mutex_unlock(&v->irq.lock);
	return value;
}

void virtio_irq_table_write(struct virtio *v, unsigned off, unsigned bytes, uint64_t value)
{
	if (!table_access(v, off, bytes))
		return;
	pthread_mutex_lock(&v->irq.lock);
	for (unsigned i = 0; i < bytes; i += 4)
		entry_write(v, (off + i) / ENTRY_BYTES, (off + i) % ENTRY_BYTES, (uint32_t)(value >> (8 * i)));
	send_pending(v);
	pthread_mutex_unlock(&v->irq.lock);
}

uint64_t virtio_irq_pba_read(struct virtio *v, unsigned off, unsigned bytes)
{
	uint64_t pending;

	if ((bytes != 4 && bytes != 8) || off % bytes)
		return UINT64_MAX;
	pthread_mutex_lock(&v->irq.lock);
	pending = v->irq.pending;
	pthread_mutex_unlock(&v->irq.lock);
	return off ? 0 : pending;
}

void virtio_irq_save(struct virtio *v, struct state_writer *out)
{
	const struct virtio_irq *irq = &v->irq;

	pthread_mutex_lock(&v->irq.lock);
	state_put32(out, irq->isr);
	state_put32(out, irq->pending);
	state_put16(out, irq->config_vector);
	for (unsigned i = 0; i < v->kind->nr_queues; i++)
		state_put16(out, irq->queue_vector[i]);
	for (unsigned i = 0; i < virtio_irq_nr_vectors(v); i++) {
		state_put64(out, irq->vector[i].addr);
		state_put32(out, irq->vector[i].data);
		state_put32(out, irq->vector[i].masked);
	}
	pthread_mutex_unlock(&v->irq.lock);
}

static bool vector_is_ours(const struct virtio *v, uint16_t vector)
{
	return vector == NO_VECTOR || vector < virtio_irq_nr_vectors(v);
}

/* Whether something pends that nothing keeps back. */
static bool would_be_sent(const struct virtio *v, const struct virtio_irq *irq)
{
	if (!irq->msix_on || irq->all_masked)
		return false;
	for (unsigned i = 0; i < virtio_irq_nr_vectors(v); i++) {
		if ((irq->pending & 1u << i) && !irq->vector[i].masked)
			return true;
	}
	return false;
}

int virtio_irq_check(struct virtio *v, struct state_reader *in, const uint8_t *config, struct virtio_irq *next,
		     struct img_error *err)
{
	uint32_t isr = state_get32(in);
	bool ok = isr <= (ISR_QUEUE | ISR_CONFIG);

	memset(next, 0, sizeof(*next));
	read_control(v, config, next);
	next->isr = (uint8_t)isr;
	next->pending = state_get32(in);
	ok &= next->pending >> virtio_irq_nr_vectors(v) == 0;
	next->config_vector = state_get16(in);
	ok &= vector_is_ours(v, next->config_vector);
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
		next->queue_vector[i] = i < v->kind->nr_queues ? state_get16(in) : NO_VECTOR;
		ok &= vector_is_ours(v, next->queue_vector[i]);
	}
	for (unsigned i = 0; i < virtio_irq_nr_vectors(v); i++) {
		uint32_t masked;

		next->vector[i].addr = state_get64(in);
		next->vector[i].data = state_get32(in);
		masked = state_get32(in);
		next->vector[i].masked = masked;
		ok &= masked <= ENTRY_MASKED;
	}
	for (unsigned i = virtio_irq_nr_vectors(v); i < VIRTIO_MAX_VECTORS; i++)
		next->vector[i].masked = true;
	ok &= !would_be_sent(v, next);
	return ok && !in->bad ? 0 : fail(err, IMG_E_CORRUPT, "saved %s: impossible interrupts", v->kind->name);
}

/* virtio_irq_pci_changed() follows. */
void virtio_irq_apply(struct virtio *v, const struct virtio_irq *next)
{
	struct virtio_irq *irq = &v->irq;

	pthread_mutex_lock(&irq->lock);
	irq->isr = next->isr;
	irq->pending = next->pending;
	irq->config_vector = next->config_vector;
	memcpy(irq->queue_vector, next->queue_vector, sizeof(irq->queue_vector));
	memcpy(irq->vector, next->vector, sizeof(irq->vector));
	pthread_mutex_unlock(&irq->lock);
}
