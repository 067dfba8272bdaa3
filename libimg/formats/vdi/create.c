/* SPDX-License-Identifier: MIT */
/*
 * New images: header, map, and for a fixed one the places of all blocks. The core makes the file durable and gives it
 * its name.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vdi.h"

#define CHUNK_ENTRIES 16384u
#define ZERO_BYTES    (1u << 20)

int vdi_write_entries(struct node *file, uint64_t map_off, uint64_t first, uint64_t nr, uint32_t first_entry,
		      uint32_t step, struct img_error *err)
{
	struct le32 *buf = malloc(CHUNK_ENTRIES * sizeof(*buf));
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (nr > 0 && ret == 0) {
		uint64_t n = min_u64(nr, CHUNK_ENTRIES);

		for (uint64_t i = 0; i < n; i++, first_entry += step)
			buf[i] = le32_of(first_entry);
		ret = node_pwrite(file, buf, n * sizeof(*buf), map_off + first * sizeof(*buf), 0, err);
		first += n;
		nr -= n;
	}
	free(buf);
	return ret;
}

/* Where everything goes. */
static int plan(const struct vdi_options *o, uint64_t size_bytes, struct vdi_header *h, struct img_error *err)
{
	uint64_t data_off;
	int ret = vdi_blocks_for(size_bytes, o->block_bytes, &h->nr_blocks, err);

	if (ret != 0)
		return ret;
	h->version = VDI_VERSION_1;
	h->header_bytes = VDI_HEADER1P_BYTES;
	h->type = o->fixed ? VDI_FIXED : VDI_DYNAMIC;
	h->disk_bytes = size_bytes;
	h->block_bytes = o->block_bytes;
	h->map_off = (uint32_t)round_up(VDI_HEADER_OFF + VDI_HEADER1P_BYTES, o->align_bytes);
	data_off = round_up(h->map_off + (uint64_t)h->nr_blocks * 4, o->align_bytes);
	if (data_off > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes needs a larger block_size", size_bytes);
	h->data_off = (uint32_t)data_off;
	h->nr_allocated = o->fixed ? h->nr_blocks : 0;
	return 0;
}

static int fill(struct node *file, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t *zeros = calloc(1, ZERO_BYTES);
	int ret = 0;

	if (!zeros)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (bytes > 0 && ret == 0) {
		uint64_t n = min_u64(bytes, ZERO_BYTES);

		ret = node_pwrite(file, zeros, n, off, 0, err);
		off += n;
		bytes -= n;
	}
	free(zeros);
	return ret;
}

static int make_places(struct node *file, const struct vdi_options *o, const struct vdi_header *h,
		       struct img_error *err)
{
	uint64_t bytes = h->nr_allocated * vdi_place_bytes(h);
	int ret = node_resize(file, h->data_off + bytes, err);

	if (ret == 0 && o->preallocation != VDI_PREALLOC_OFF)
		ret = node_allocate(file, bytes, h->data_off, err);
	if (ret == 0 && o->preallocation == VDI_PREALLOC_FULL)
		ret = fill(file, bytes, h->data_off, err);
	return ret;
}

int vdi_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct vdi_header h = { 0 };
	struct vdi_options o;
	int ret = vdi_options_parse(args->options, &o, err);

	if (ret == 0 && args->size_bytes == 0)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a VDI holds a disk of at least 512 bytes");
	if (ret == 0 && args->backing && o.fixed)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				"an image over a backing file grows as it is written: it cannot be fixed");
	if (ret == 0)
		ret = plan(&o, args->size_bytes, &h, err);
	if (ret == 0 && o.has_uuid)
		memcpy(h.uuid, o.uuid, 16);
	else if (ret == 0)
		ret = vdi_uuid_new(h.uuid, err);
	if (ret == 0)
		ret = vdi_uuid_new(h.modification, err);
	if (ret == 0 && args->backing)
		ret = vdi_header_set_backing(&h, args->backing, err);
	if (ret == 0)
		ret = make_places(file, &o, &h, err);
	if (ret == 0)
		ret = vdi_write_entries(file, h.map_off, 0, h.nr_blocks, o.fixed ? 0 : VDI_ENTRY_FREE, o.fixed ? 1 : 0,
					err);
	return ret == 0 ? vdi_header_create(file, &h, err) : ret;
}

int vdi_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct vdi_header h = { 0 };
	struct vdi_options o;
	uint64_t data, full;
	int ret = vdi_options_parse(args->options, &o, err);

	if (ret == 0)
		ret = plan(&o, args->size_bytes, &h, err);
	if (ret == 0)
		ret = blockmap_measure(args, o.block_bytes, 0, &data, &full, err);
	if (ret != 0)
		return ret;
	out->fully_allocated_bytes = h.data_off + full;
	out->required_bytes = h.data_off + (o.fixed ? full : data);
	return 0;
}
