/* SPDX-License-Identifier: MIT */
/*
 * virtio-blk (virtio 1.2, 5.2) over an image.
 *
 * Data goes through a buffer of ours, in pieces of its size: the guest may change its own buffer while a request is
 * handled, and what is written must be what its checksum was computed over. Ranges are judged against the size that the
 * image has now, and a read-only disk is not written whatever was negotiated.
 *
 * A driver that does not take the FLUSH feature gets write-through (5.2.6.2): its writes are durable when they complete.
 */
#include "virtio.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fail.h"
#include "throttle.h"

#define BUFFER_BYTES (256u << 10)
#define SECTOR_BYTES 512u

enum { VIRTIO_ID_BLOCK = 2, QUEUE_SIZE = 128, SERIAL_BYTES = 20 };
#define CLASS_REV 0x01800000u /* mass storage, other */

/* 5.2.3 */
#define F_SIZE_MAX     (UINT64_C(1) << 1)
#define F_SEG_MAX      (UINT64_C(1) << 2)
#define F_RO	       (UINT64_C(1) << 5)
#define F_BLK_SIZE     (UINT64_C(1) << 6)
#define F_FLUSH	       (UINT64_C(1) << 9)
#define F_TOPOLOGY     (UINT64_C(1) << 10)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)

/* 5.2.4: device configuration */
enum {
	CONFIG_CAPACITY = 0x00, /* sectors */
	CONFIG_SIZE_MAX = 0x08,
	CONFIG_SEG_MAX = 0x0c,
	CONFIG_BLK_SIZE = 0x14,
	CONFIG_PHYSICAL_EXP = 0x18, /* blocks of 2^this logical ones */
	CONFIG_MIN_IO = 0x1a,	    /* in blocks */
	CONFIG_OPT_IO = 0x1c,
	CONFIG_DISCARD_SECTORS = 0x24,
	CONFIG_DISCARD_SEGS = 0x28,
	CONFIG_DISCARD_ALIGN = 0x2c, /* sectors */
	CONFIG_ZEROES_SECTORS = 0x30,
	CONFIG_ZEROES_SEGS = 0x34,
	CONFIG_ZEROES_UNMAP = 0x38,
};

/* A request has a header, a status, and so many pieces of data; a well-behaved one is no longer than this. */
#define SEG_MAX	       (VIRTQUEUE_MAX_CHAIN - 2)
#define MAX_DATA_BYTES ((uint64_t)SEG_MAX * BUFFER_BYTES)

/* What one request may discard or zero: no request keeps the machine from being paused for long. */
#define DISCARD_SECTORS (1u << 21)
#define ZEROES_SECTORS	(1u << 18)
#define RANGES_MAX	16u

/* 5.2.6: requests */
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPP = 2 };
enum { ZEROES_F_UNMAP = 1 };

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct range {
	uint64_t sector;
	uint32_t nr_sectors, flags;
};

struct blk {
	struct virtio_kind kind; /* its features differ from disk to disk */
	struct img *img;
	bool read_only;
	uint8_t serial[SERIAL_BYTES];
	struct throttle *throttle; /* NULL: none */
	uint8_t *buffer;	   /* BUFFER_BYTES */
	struct virtio_blk_stats stats;
	struct virtqueue_chain chain; /* the request in hand; too large for the worker's stack */
};

static void put16(uint8_t *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

static void config(struct virtio *v, uint8_t *out)
{
	struct blk *blk = virtio_priv(v);
	struct img_limits limits;
	uint32_t block, optimal;

	img_limits(blk->img, &limits);
	block = limits.block_bytes / SECTOR_BYTES;
	optimal = limits.optimal_bytes / SECTOR_BYTES;
	put64(out + CONFIG_CAPACITY, img_size(blk->img) / SECTOR_BYTES);
	put32(out + CONFIG_SIZE_MAX, BUFFER_BYTES);
	put32(out + CONFIG_SEG_MAX, SEG_MAX);
	put32(out + CONFIG_BLK_SIZE, SECTOR_BYTES);
	/* 4 KiB is what file systems and partition tools know how to align to */
	out[CONFIG_PHYSICAL_EXP] = block >= 8 ? 3 : 0;
	put16(out + CONFIG_MIN_IO, block > UINT16_MAX ? 0 : (uint16_t)block);
	put32(out + CONFIG_OPT_IO, optimal);
	put32(out + CONFIG_DISCARD_SECTORS, DISCARD_SECTORS);
	put32(out + CONFIG_DISCARD_SEGS, RANGES_MAX);
	put32(out + CONFIG_DISCARD_ALIGN, block ? block : 1);
	put32(out + CONFIG_ZEROES_SECTORS, ZEROES_SECTORS);
	put32(out + CONFIG_ZEROES_SEGS, RANGES_MAX);
	out[CONFIG_ZEROES_UNMAP] = 1;
}

static bool in_range(const struct blk *blk, uint64_t sector, uint64_t bytes)
{
	uint64_t nr_sectors = img_size(blk->img) / SECTOR_BYTES;

	return bytes % SECTOR_BYTES == 0 && sector <= nr_sectors && bytes / SECTOR_BYTES <= nr_sectors - sector;
}

/* *done: bytes that went to the guest. */
static uint8_t do_read(struct blk *blk, const struct header *h, uint64_t *done)
{
	uint64_t bytes = blk->chain.in_bytes - 1;

	blk->stats.reads++;
	if (bytes > MAX_DATA_BYTES || !in_range(blk, h->sector, bytes))
		return STATUS_IOERR;
	while (*done < bytes) {
		uint64_t n = bytes - *done < BUFFER_BYTES ? bytes - *done : BUFFER_BYTES;

		if (img_pread(blk->img, blk->buffer, n, h->sector * SECTOR_BYTES + *done, 0, NULL))
			return STATUS_IOERR;
		virtqueue_copy_in(&blk->chain, *done, blk->buffer, n);
		*done += n;
	}
	blk->stats.read_bytes += bytes;
	return STATUS_OK;
}

static bool write_through(struct virtio *v)
{
	return !(virtio_features(v) & F_FLUSH);
}

static uint8_t do_write(struct virtio *v, struct blk *blk, const struct header *h)
{
	uint64_t bytes = blk->chain.out_bytes - sizeof(*h);
	unsigned flags = write_through(v) ? IMG_IO_FUA : 0;

	blk->stats.writes++;
	if (blk->read_only || bytes > MAX_DATA_BYTES || !in_range(blk, h->sector, bytes))
		return STATUS_IOERR;
	for (uint64_t done = 0; done < bytes; done += BUFFER_BYTES) {
		uint64_t n = bytes - done < BUFFER_BYTES ? bytes - done : BUFFER_BYTES;

		virtqueue_copy_out(&blk->chain, sizeof(*h) + done, blk->buffer, n);
		if (img_pwrite(blk->img, blk->buffer, n, h->sector * SECTOR_BYTES + done, flags, NULL))
			return STATUS_IOERR;
	}
	blk->stats.write_bytes += bytes;
	return STATUS_OK;
}

static uint8_t do_flush(struct blk *blk)
{
	blk->stats.flushes++;
	if (blk->read_only)
		return STATUS_OK;
	return img_flush(blk->img, 0, NULL) ? STATUS_IOERR : STATUS_OK;
}

static uint8_t do_get_id(struct blk *blk, uint64_t *done)
{
	*done = virtqueue_copy_in(&blk->chain, 0, blk->serial,
				  blk->chain.in_bytes - 1 < SERIAL_BYTES ? blk->chain.in_bytes - 1 : SERIAL_BYTES);
	return STATUS_OK;
}

static uint8_t check_ranges(const struct blk *blk, const struct range *ranges, uint64_t nr, bool zero)
{
	for (uint64_t i = 0; i < nr; i++) {
		/* 5.2.6.2: unmap goes with write zeroes only, other bits with nothing */
		if (ranges[i].flags & ~(zero ? (uint32_t)ZEROES_F_UNMAP : 0))
			return STATUS_UNSUPP;
		if (ranges[i].nr_sectors > (zero ? ZEROES_SECTORS : DISCARD_SECTORS) ||
		    !in_range(blk, ranges[i].sector, (uint64_t)ranges[i].nr_sectors * SECTOR_BYTES))
			return STATUS_IOERR;
	}
	return STATUS_OK;
}

static int apply_range(struct blk *blk, const struct range *range, bool zero)
{
	uint64_t bytes = (uint64_t)range->nr_sectors * SECTOR_BYTES, off = range->sector * SECTOR_BYTES;

	if (!zero)
		return img_discard(blk->img, bytes, off, 0, NULL);
	return img_zero(blk->img, bytes, off, range->flags & ZEROES_F_UNMAP ? 0 : IMG_IO_NO_UNMAP, NULL);
}

static uint8_t do_ranges(struct virtio *v, struct blk *blk, bool zero)
{
	uint64_t bytes = blk->chain.out_bytes - sizeof(struct header), nr = bytes / sizeof(struct range);
	struct range ranges[RANGES_MAX];
	uint8_t status;

	blk->stats.writes++;
	if (blk->read_only || bytes % sizeof(struct range) || !nr || nr > RANGES_MAX)
		return STATUS_IOERR;
	virtqueue_copy_out(&blk->chain, sizeof(struct header), ranges, bytes);
	for (uint64_t i = 0; i < nr; i++)
		ranges[i] = (struct range){ .sector = le64toh(ranges[i].sector),
					    .nr_sectors = le32toh(ranges[i].nr_sectors),
					    .flags = le32toh(ranges[i].flags) };
	status = check_ranges(blk, ranges, nr, zero);
	for (uint64_t i = 0; i < nr && status == STATUS_OK; i++) {
		if (apply_range(blk, &ranges[i], zero))
			status = STATUS_IOERR;
	}
	if (status == STATUS_OK && write_through(v) && img_flush(blk->img, 0, NULL))
		status = STATUS_IOERR;
	return status;
}

static uint8_t do_request(struct virtio *v, struct blk *blk, const struct header *h, uint64_t *done)
{
	switch (h->type) {
	case T_IN: return do_read(blk, h, done);
	case T_OUT: return do_write(v, blk, h);
	case T_FLUSH: return do_flush(blk);
	case T_GET_ID: return do_get_id(blk, done);
	case T_DISCARD: return do_ranges(v, blk, false);
	case T_WRITE_ZEROES: return do_ranges(v, blk, true);
	default: return STATUS_UNSUPP;
	}
}

/* False: the request must wait, and has been put back. */
static bool may_start(struct virtio *v, struct blk *blk)
{
	uint64_t bytes = blk->chain.out_bytes > blk->chain.in_bytes ? blk->chain.out_bytes : blk->chain.in_bytes;
	struct timespec ts;
	uint64_t wait;

	if (!blk->throttle)
		return true;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	wait = throttle_take(blk->throttle, (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec, bytes);
	if (!wait)
		return true;
	virtqueue_unpop(virtio_queue(v, 0));
	virtio_look_later(v, 0, wait);
	return false;
}

static void answer(struct virtio *v, struct blk *blk)
{
	struct virtqueue_chain *chain = &blk->chain;
	uint64_t done = 0, room = chain->in_bytes - 1; /* the last byte is for the status */
	struct header h;
	uint8_t status;

	virtqueue_copy_out(chain, 0, &h, sizeof(h));
	h.type = le32toh(h.type);
	h.sector = le64toh(h.sector);
	status = do_request(v, blk, &h, &done);
	blk->stats.errors += status != STATUS_OK;
	virtqueue_copy_in(chain, room, &status, sizeof(status));
	/* used.len counts from the first byte on: the status only where nothing was left out before it */
	virtqueue_push(virtio_queue(v, 0), chain, (uint32_t)(done == room ? room + 1 : done));
	virtio_notify_guest(v, 0);
}

static bool handle(struct virtio *v, unsigned queue)
{
	struct blk *blk = virtio_priv(v);
	struct virtqueue *vq = virtio_queue(v, queue);
	struct img_error why = { 0 };
	int got;

	virtqueue_enable_kick(vq, false);
	got = virtqueue_pop(vq, &blk->chain, &why);
	if (got == 0)
		return virtqueue_enable_kick(vq, true);
	if (got > 0 && (blk->chain.out_bytes < sizeof(struct header) || !blk->chain.in_bytes)) {
		virtqueue_unpop(vq);
		got = fail(&why, IMG_E_INVALID, "virtio-blk: a request without header or status");
	}
	if (got < 0) {
		virtio_broken(v, &why);
		return false;
	}
	if (!may_start(v, blk))
		return false;
	answer(v, blk);
	return true;
}

static void destroy_blk(struct blk *blk)
{
	free(blk->buffer);
	free(blk);
}

static void destroy(struct virtio *v)
{
	destroy_blk(virtio_priv(v));
}

static const struct virtio_kind template = {
	.name = "virtio-blk",
	.virtio_id = VIRTIO_ID_BLOCK,
	.class_rev = CLASS_REV,
	.tag = STATE_TAG('V', 'B', 'L', 'K'),
	.nr_queues = 1,
	.queue_size = QUEUE_SIZE,
	.features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_DISCARD | F_WRITE_ZEROES,
	.handle = handle,
	.config = config,
	.destroy = destroy,
};

struct virtio *virtio_blk_create(const struct virtio_blk_options *opts, struct bus *bus, struct device *pcidev,
				 const struct machine_host *host, struct memory *mem, struct img_error *err)
{
	struct blk *blk = calloc(1, sizeof(*blk));
	struct virtio *v;

	if (blk)
		blk->buffer = aligned_alloc(MEMORY_PAGE, BUFFER_BYTES);
	if (!blk || !blk->buffer) {
		free(blk);
		fail(err, IMG_E_NOMEM, "out of memory");
		return NULL;
	}
	blk->kind = template;
	blk->kind.features |= opts->read_only ? F_RO : 0;
	blk->img = opts->img;
	blk->read_only = opts->read_only;
	blk->throttle = opts->throttle;
	if (opts->serial)
		memcpy(blk->serial, opts->serial, strnlen(opts->serial, SERIAL_BYTES));
	v = virtio_create(&blk->kind, bus, pcidev, host, mem, blk, err);
	if (!v)
		destroy_blk(blk);
	return v;
}

void virtio_blk_changed(struct virtio *v)
{
	virtio_config_changed(v);
}

void virtio_blk_stats(struct virtio *v, struct virtio_blk_stats *out)
{
	struct blk *blk = virtio_priv(v);

	virtio_lock(v);
	*out = blk->stats;
	virtio_unlock(v);
}
