/* SPDX-License-Identifier: MIT */
/*
 * The guest's side of virtio, for tests and fuzzers: a bus with PCI and no processors, a host that counts interrupts,
 * and a driver that finds its device by configuration space and capabilities, as a real one does (virtio 1.2, 3.1.1).
 */
#ifndef TESTS_VIRTIO_DRIVER_H
#define TESTS_VIRTIO_DRIVER_H

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bus.h"
#include "pci.h"
#include "virtio.h"

#define DRIVER_RAM_BYTES (UINT64_C(4) << 20)
#define DRIVER_MAX_MSI	 64

/* ---- a machine without processors ---- */

struct board {
	struct memory mem;
	struct bus bus;
	struct machine_host host;
	struct device *pci;
	pthread_mutex_t lock;
	/* under lock */
	unsigned nr_msi;
	struct {
		uint64_t addr;
		uint32_t data;
	} msi[DRIVER_MAX_MSI]; /* the first ones */
	bool line[24];
	unsigned nr_ioeventfds; /* registered now */
	int ioeventfd[VIRTIO_MAX_QUEUES];
	uint64_t ioeventfd_gpa[VIRTIO_MAX_QUEUES];
	bool no_ioeventfd; /* the host has none */
};

static inline void board_msi(void *machine, uint64_t addr, uint32_t data)
{
	struct board *b = machine;

	pthread_mutex_lock(&b->lock);
	if (b->nr_msi < DRIVER_MAX_MSI) {
		b->msi[b->nr_msi].addr = addr;
		b->msi[b->nr_msi].data = data;
	}
	b->nr_msi++;
	pthread_mutex_unlock(&b->lock);
}

static inline void board_irq_line(void *machine, unsigned gsi, bool level)
{
	struct board *b = machine;

	pthread_mutex_lock(&b->lock);
	b->line[gsi] = level;
	pthread_mutex_unlock(&b->lock);
}

static inline bool board_line(struct board *b, unsigned gsi)
{
	bool level;

	pthread_mutex_lock(&b->lock);
	level = b->line[gsi];
	pthread_mutex_unlock(&b->lock);
	return level;
}

static inline unsigned board_nr_msi(struct board *b)
{
	unsigned nr;

	pthread_mutex_lock(&b->lock);
	nr = b->nr_msi;
	pthread_mutex_unlock(&b->lock);
	return nr;
}

static inline int board_ioeventfd(void *machine, uint64_t gpa, unsigned bytes, int fd, bool add)
{
	struct board *b = machine;

	if (b->no_ioeventfd || bytes != 2)
		return -38;
	if (!add) {
		for (unsigned i = 0; i < b->nr_ioeventfds; i++) {
			if (b->ioeventfd[i] != fd || b->ioeventfd_gpa[i] != gpa)
				continue;
			b->nr_ioeventfds--;
			b->ioeventfd[i] = b->ioeventfd[b->nr_ioeventfds];
			b->ioeventfd_gpa[i] = b->ioeventfd_gpa[b->nr_ioeventfds];
			return 0;
		}
		return -2;
	}
	if (b->nr_ioeventfds == VIRTIO_MAX_QUEUES)
		return -28;
	b->ioeventfd[b->nr_ioeventfds] = fd;
	b->ioeventfd_gpa[b->nr_ioeventfds++] = gpa;
	return 0;
}

static inline void board_event(void *machine, enum machine_event event)
{
	(void)machine;
	(void)event;
}

static inline void board_init(struct board *b)
{
	memset(b, 0, sizeof(*b));
	if (memory_init(&b->mem, DRIVER_RAM_BYTES, NULL))
		abort();
	bus_init(&b->bus);
	pthread_mutex_init(&b->lock, NULL);
	b->host = (struct machine_host){ .machine = b,
					 .msi = board_msi,
					 .irq_line = board_irq_line,
					 .ioeventfd = board_ioeventfd,
					 .event = board_event };
	b->pci = pci_create(&b->bus, &b->host);
}

static inline void board_free(struct board *b)
{
	bus_free(&b->bus);
	memory_free(&b->mem);
	pthread_mutex_destroy(&b->lock);
}

/* What vCPUs do. */

static inline uint64_t mmio_read(struct board *b, uint64_t gpa, unsigned bytes)
{
	uint64_t value = 0;

	bus_read(&b->bus, BUS_MMIO, gpa, &value, bytes);
	return value;
}

static inline void mmio_write(struct board *b, uint64_t gpa, unsigned bytes, uint64_t value)
{
	bus_write(&b->bus, BUS_MMIO, gpa, &value, bytes);
}

static inline uint32_t config_read(struct board *b, unsigned slot, unsigned off, unsigned bytes)
{
	uint32_t address = 0x80000000u | slot << 11 | (off & 0xfc), value = 0;

	bus_write(&b->bus, BUS_PIO, 0xcf8, &address, 4);
	bus_read(&b->bus, BUS_PIO, 0xcfc + (off & 3), &value, bytes);
	return value;
}

static inline void config_write(struct board *b, unsigned slot, unsigned off, unsigned bytes, uint32_t value)
{
	uint32_t address = 0x80000000u | slot << 11 | (off & 0xfc);

	bus_write(&b->bus, BUS_PIO, 0xcf8, &address, 4);
	bus_write(&b->bus, BUS_PIO, 0xcfc + (off & 3), &value, bytes);
}

/* ---- a driver ---- */

enum { R_FEATURE_SELECT = 0, R_FEATURE = 4, R_DRIVER_SELECT = 8, R_DRIVER_FEATURE = 12, R_CONFIG_VECTOR = 16 };
enum { R_NUM_QUEUES = 18, R_STATUS = 20, R_GENERATION = 21, R_QUEUE_SELECT = 22, R_QUEUE_SIZE = 24 };
enum { R_QUEUE_VECTOR = 26, R_QUEUE_ENABLE = 28, R_NOTIFY_OFF = 30, R_DESC = 32, R_DRIVER = 40, R_DEVICE = 48 };
enum { S_ACKNOWLEDGE = 1, S_DRIVER = 2, S_DRIVER_OK = 4, S_FEATURES_OK = 8, S_NEEDS_RESET = 64, S_FAILED = 128 };
enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };

#define F_VERSION_1 (UINT64_C(1) << 32)

/* Where queue n has its areas: below 1 MiB, a queue every 64 KiB. */
#define RING_SIZE     8u
#define RING_DESC(n)  (UINT64_C(0x10000) + (n)*UINT64_C(0x10000))
#define RING_AVAIL(n) (RING_DESC(n) + 0x1000)
#define RING_USED(n)  (RING_DESC(n) + 0x2000)
#define DRIVER_DATA   UINT64_C(0x100000) /* free for the test from here on */

struct driver {
	struct board *b;
	unsigned slot;
	uint64_t bar;
	uint32_t common, notify, isr, device; /* offsets in the BAR */
	uint32_t notify_step;
	unsigned msix; /* capability */
	uint16_t avail_idx[VIRTIO_MAX_QUEUES], used_idx[VIRTIO_MAX_QUEUES];
};

static inline uint64_t reg_read(struct driver *d, unsigned off, unsigned bytes)
{
	return mmio_read(d->b, d->bar + d->common + off, bytes);
}

static inline void reg_write(struct driver *d, unsigned off, unsigned bytes, uint64_t value)
{
	mmio_write(d->b, d->bar + d->common + off, bytes, value);
}

static inline void driver_find_caps(struct driver *d)
{
	unsigned at = config_read(d->b, d->slot, 0x34, 1);

	for (unsigned n = 0; at && n < 16; n++) {
		unsigned id = config_read(d->b, d->slot, at, 1), type = config_read(d->b, d->slot, at + 3, 1);
		uint32_t off = config_read(d->b, d->slot, at + 8, 4);

		if (id == 0x11)
			d->msix = at;
		if (id == 9 && type == 1)
			d->common = off;
		if (id == 9 && type == 2) {
			d->notify = off;
			d->notify_step = config_read(d->b, d->slot, at + 16, 4);
		}
		if (id == 9 && type == 3)
			d->isr = off;
		if (id == 9 && type == 4)
			d->device = off;
		at = config_read(d->b, d->slot, at + 1, 1);
	}
}

/* Finds the device in slot, puts its BAR at 0xe0000000 + slot * 1 MiB. */
static inline void driver_attach(struct driver *d, struct board *b, unsigned slot)
{
	*d = (struct driver){ .b = b, .slot = slot, .bar = UINT64_C(0xe0000000) + slot * UINT64_C(0x100000) };
	driver_find_caps(d);
	config_write(b, slot, 0x10, 4, (uint32_t)d->bar);
	config_write(b, slot, 0x04, 2, 6);
}

static inline uint64_t driver_offered(struct driver *d)
{
	uint64_t low, high;

	reg_write(d, R_FEATURE_SELECT, 4, 0);
	low = reg_read(d, R_FEATURE, 4);
	reg_write(d, R_FEATURE_SELECT, 4, 1);
	high = reg_read(d, R_FEATURE, 4);
	return high << 32 | low;
}

/* Returns the status after FEATURES_OK. */
static inline unsigned driver_negotiate(struct driver *d, uint64_t features)
{
	memset(d->avail_idx, 0, sizeof(d->avail_idx));
	memset(d->used_idx, 0, sizeof(d->used_idx));
	reg_write(d, R_STATUS, 1, 0);
	reg_write(d, R_STATUS, 1, S_ACKNOWLEDGE);
	reg_write(d, R_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER);
	for (unsigned half = 0; half < 2; half++) {
		reg_write(d, R_DRIVER_SELECT, 4, half);
		reg_write(d, R_DRIVER_FEATURE, 4, (uint32_t)(features >> (32 * half)));
	}
	reg_write(d, R_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	return (unsigned)reg_read(d, R_STATUS, 1);
}

static inline void driver_set_address(struct driver *d, unsigned reg, uint64_t gpa)
{
	reg_write(d, reg, 4, (uint32_t)gpa);
	reg_write(d, reg + 4, 4, gpa >> 32);
}

static inline void driver_queue(struct driver *d, unsigned queue)
{
	memset(memory_at(&d->b->mem, RING_DESC(queue), 0x3000), 0, 0x3000);
	reg_write(d, R_QUEUE_SELECT, 2, queue);
	reg_write(d, R_QUEUE_SIZE, 2, RING_SIZE);
	driver_set_address(d, R_DESC, RING_DESC(queue));
	driver_set_address(d, R_DRIVER, RING_AVAIL(queue));
	driver_set_address(d, R_DEVICE, RING_USED(queue));
	reg_write(d, R_QUEUE_ENABLE, 2, 1);
}

/* All the way to DRIVER_OK, every queue enabled. */
static inline bool driver_start(struct driver *d, uint64_t features)
{
	unsigned nr;

	if (!(driver_negotiate(d, features | F_VERSION_1) & S_FEATURES_OK))
		return false;
	nr = (unsigned)reg_read(d, R_NUM_QUEUES, 2);
	/* ones where the BAR is not mapped */
	for (unsigned i = 0; i < nr && i < VIRTIO_MAX_QUEUES; i++)
		driver_queue(d, i);
	reg_write(d, R_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	return true;
}

static inline void *driver_ptr(struct driver *d, uint64_t gpa)
{
	return memory_at(&d->b->mem, gpa, 1);
}

static inline void driver_desc(struct driver *d, unsigned queue, unsigned i, uint64_t gpa, uint32_t bytes,
			       unsigned flags, unsigned next)
{
	uint64_t *at = driver_ptr(d, RING_DESC(queue) + 16u * i);

	__atomic_store_n(at, gpa, __ATOMIC_RELAXED);
	__atomic_store_n(at + 1, bytes | (uint64_t)flags << 32 | (uint64_t)next << 48, __ATOMIC_RELAXED);
}

static inline void driver_kick(struct driver *d, unsigned queue)
{
	mmio_write(d->b, d->bar + d->notify + queue * d->notify_step, 2, queue);
}

static inline void driver_offer(struct driver *d, unsigned queue, unsigned head)
{
	uint16_t *ring = driver_ptr(d, RING_AVAIL(queue));

	/* used_event (2.7.7): an interrupt for the next one, please */
	__atomic_store_n(&ring[2 + RING_SIZE], d->used_idx[queue], __ATOMIC_RELAXED);
	__atomic_store_n(&ring[2 + d->avail_idx[queue] % RING_SIZE], (uint16_t)head, __ATOMIC_RELAXED);
	__atomic_store_n(&ring[1], ++d->avail_idx[queue], __ATOMIC_RELEASE);
}

static inline uint64_t driver_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

/* Waits for the next used element, as a driver that polls. False: none came within ms. */
static inline bool driver_wait(struct driver *d, unsigned queue, unsigned ms, uint32_t *head, uint32_t *len)
{
	uint8_t *used = driver_ptr(d, RING_USED(queue));
	uint64_t end = driver_now_ns() + ms * UINT64_C(1000000);
	uint32_t *element = (uint32_t *)(void *)(used + 4 + 8 * (d->used_idx[queue] % RING_SIZE));

	while (__atomic_load_n((uint16_t *)(void *)(used + 2), __ATOMIC_ACQUIRE) == d->used_idx[queue]) {
		if (driver_now_ns() > end)
			return false;
		sched_yield();
	}
	*head = __atomic_load_n(element, __ATOMIC_RELAXED);
	*len = __atomic_load_n(element + 1, __ATOMIC_RELAXED);
	d->used_idx[queue]++;
	return true;
}

/* Waits until *condition holds; false after ms. */
#define DRIVER_UNTIL(condition, ms)                                                \
	({                                                                         \
		uint64_t until_end = driver_now_ns() + (ms)*UINT64_C(1000000);     \
		bool until_held;                                                   \
		while (!(until_held = (condition)) && driver_now_ns() < until_end) \
			sched_yield();                                             \
		until_held;                                                        \
	})

#endif
