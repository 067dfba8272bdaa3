/* SPDX-License-Identifier: MIT */
/*
 * A driver for tests of the core: bytes in an array, a map of what each 512-byte sector is, counters, and switches that
 * make it misbehave. The same state serves as a protocol (grows by writing) and as a format (does not; has a backing).
 * Requests are checked against the alignment that it claims.
 */
#ifndef UNIT_MOCK_H
#define UNIT_MOCK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"
#include "image.h"
#include "node.h"

#define MOCK_BYTES  (256u << 10)
#define MOCK_SECTOR 512u

struct mock {
	uint8_t *data;
	uint8_t kind[MOCK_BYTES / MOCK_SECTOR]; /* enum status_kind */
	uint64_t size;
	uint32_t align, block, unit;
	unsigned nr_pread, nr_pwrite, nr_zero, nr_discard, nr_flush, nr_resize, nr_close, nr_status;
	unsigned write_flags; /* of the last pwrite */
	uint64_t last_off, last_bytes;
	size_t status_cap; /* at most so many extents per answer; 0: as many as asked for */
	int fail_flush;	   /* code to return */
	int fail_write;
	bool silent;	/* failures do not fill err */
	int bad_status; /* 1: gap, 2: empty extent, 3: none, 4: more than cap, 5: beyond the range, 6: unknown kind, 7:
			   overflow */
};

static inline struct mock *mock_of(struct node *node)
{
	return node->state;
}

static inline int mock_fail(struct node *node, int code, struct img_error *err)
{
	return mock_of(node)->silent ? code : error_set(err, code, 0, NO_OFFSET, "mock", "mock fails");
}

static inline void mock_check(struct node *node, const void *buf, uint64_t bytes, uint64_t off)
{
	struct mock *m = mock_of(node);

	assert_true(bytes > 0);
	if (m->align > 1)
		assert_true((off | bytes | (uintptr_t)buf) % m->align == 0);
	m->last_off = off;
	m->last_bytes = bytes;
}

static inline int mock_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			     struct img_error *err)
{
	struct mock *m = mock_of(node);

	(void)flags;
	mock_check(node, buf, bytes, off);
	assert_true(off + bytes <= MOCK_BYTES);
	m->nr_pread++;
	for (uint64_t i = 0; i < bytes; i++) {
		uint8_t *p = (uint8_t *)buf + i;

		switch (m->kind[(off + i) / MOCK_SECTOR]) {
		case STATUS_UNALLOCATED:
			if (node_read_backing(node, p, 1, off + i, err) != 0)
				return IMG_E_IO;
			break;
		case STATUS_ZERO: *p = 0; break;
		default: *p = m->data[off + i];
		}
	}
	return 0;
}

/* Sectors that become data keep what the rest of them read as before only where that was zero: tests use whole ones on
 * formats. */
static inline void mock_store(struct mock *m, const uint8_t *buf, uint64_t bytes, uint64_t off, enum status_kind kind)
{
	assert_true(off + bytes <= MOCK_BYTES);
	for (uint64_t i = 0; i < bytes; i++)
		m->data[off + i] = buf ? buf[i] : 0;
	for (uint64_t s = off / MOCK_SECTOR; s <= (off + bytes - 1) / MOCK_SECTOR; s++)
		m->kind[s] = (uint8_t)kind;
	if (off + bytes > m->size)
		m->size = off + bytes;
}

static inline int mock_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			      struct img_error *err)
{
	struct mock *m = mock_of(node);

	mock_check(node, buf, bytes, off);
	m->nr_pwrite++;
	m->write_flags = flags;
	if (m->fail_write)
		return mock_fail(node, m->fail_write, err);
	mock_store(m, buf, bytes, off, STATUS_DATA);
	return 0;
}

static inline int mock_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct mock *m = mock_of(node);

	(void)flags;
	(void)err;
	mock_check(node, NULL, bytes, off);
	m->nr_zero++;
	assert_true((off | bytes) % MOCK_SECTOR == 0);
	mock_store(m, NULL, bytes, off, STATUS_ZERO);
	return 0;
}

static inline int mock_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	(void)err;
	mock_check(node, NULL, bytes, off);
	mock_of(node)->nr_discard++;
	return 0;
}

static inline int mock_flush(struct node *node, unsigned flags, struct img_error *err)
{
	struct mock *m = mock_of(node);

	(void)flags;
	m->nr_flush++;
	return m->fail_flush ? mock_fail(node, m->fail_flush, err) : 0;
}

static inline int mock_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	(void)err;
	mock_of(node)->nr_resize++;
	mock_of(node)->size = size_bytes;
	return 0;
}

static inline uint64_t mock_size(const struct node *node)
{
	return ((const struct mock *)node->state)->size;
}

static inline void mock_limits(const struct node *node, struct driver_limits *out)
{
	const struct mock *m = node->state;

	*out = (struct driver_limits){ .request_align = m->align, .block_bytes = m->block, .unit_bytes = m->unit };
}

static inline int mock_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			      size_t *nr, struct img_error *err)
{
	struct mock *m = mock_of(node);
	uint64_t end = off + bytes;

	(void)err;
	m->nr_status++;
	if (m->status_cap && cap > m->status_cap)
		cap = m->status_cap;
	for (*nr = 0; off < end && *nr < cap; (*nr)++) {
		uint64_t s = off / MOCK_SECTOR, stop = s + 1;

		while (stop * MOCK_SECTOR < end && m->kind[stop] == m->kind[s])
			stop++;
		stop = stop * MOCK_SECTOR < end ? stop * MOCK_SECTOR : end;
		out[*nr] = (struct status_extent){
			.off = off, .bytes = stop - off, .kind = m->kind[s], .host_off = off + 0x100000
		};
		off = stop;
	}
	if (m->bad_status == 1)
		out[*nr - 1].off++;
	if (m->bad_status == 2)
		out[*nr - 1].bytes = 0;
	if (m->bad_status == 3)
		*nr = 0;
	if (m->bad_status == 4)
		*nr = cap + 1;
	if (m->bad_status == 5)
		out[*nr - 1].bytes += 12345;
	if (m->bad_status == 6)
		out[0].kind = (enum status_kind)17;
	if (m->bad_status == 7)
		out[0].bytes = UINT64_MAX;
	return 0;
}

static inline int mock_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct mock *m = mock_of(node);

	(void)args;
	(void)err;
	m->data = calloc(1, MOCK_BYTES);
	assert_non_null(m->data);
	return 0;
}

static inline int mock_close(struct node *node, struct img_error *err)
{
	(void)err;
	free(mock_of(node)->data);
	return 0;
}

#define MOCK_MEMBERS                                                                                   \
	.state_bytes = sizeof(struct mock), .open = mock_open, .close = mock_close, .size = mock_size, \
	.limits = mock_limits, .pread = mock_pread, .pwrite = mock_pwrite, .flush = mock_flush, .resize = mock_resize

static const struct img_driver mock_protocol = {
	.name = "mock-protocol",
	.kind = DRIVER_PROTOCOL,
	MOCK_MEMBERS,
	.zero = mock_zero,
	.discard = mock_discard,
	.status = mock_status,
};
static const struct img_driver mock_format __attribute__((unused)) = {
	.name = "mock-format",
	.kind = DRIVER_FORMAT,
	MOCK_MEMBERS,
	.zero = mock_zero,
	.status = mock_status,
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE,
};
/* Nothing but reading and writing. */
static const struct img_driver mock_plain __attribute__((unused)) = {
	.name = "mock-plain",
	.kind = DRIVER_PROTOCOL,
	MOCK_MEMBERS,
};

static inline struct node *mock_node(const struct img_driver *drv, uint64_t size, bool writable)
{
	struct driver_open args = { .writable = writable };
	struct img_error err = { 0 };
	struct node *node = node_new(drv, drv->name, &err);

	assert_non_null(node);
	assert_int_equal(node_open(node, &args, &err), 0);
	mock_of(node)->size = size;
	return node;
}

/* An image around a node. */
static inline struct img *mock_image(struct node *node)
{
	struct img *img = calloc(1, sizeof(*img));

	assert_non_null(img);
	img->top = node;
	img->depth = 1;
	img->path = strdup(node->path);
	img->env = &image_env_host;
	pthread_rwlock_init(&img->content_lock, NULL);
	return img;
}

#endif
