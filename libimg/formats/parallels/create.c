/* SPDX-License-Identifier: MIT */
/* New expandable images: a header and a table of free entries. The core makes the file durable and names it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "prl_bundle.h"

#define ZERO_BYTES 65536u

int prl_write_free(struct node *file, uint64_t first, uint64_t nr, struct img_error *err)
{
	uint64_t off = PRL_TABLE_OFF + first * PRL_ENTRY_BYTES, bytes = nr * PRL_ENTRY_BYTES;
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

int prl_image_plan(const struct prl_options *o, uint64_t size_bytes, struct prl_header *h, struct img_error *err)
{
	int ret;

	*h = (struct prl_header){ .v2 = !o->v1, .in_use = PRL_CLOSED, .cluster_bytes = o->cluster_bytes };
	ret = prl_header_set_size(h, size_bytes, err);
	if (ret != 0)
		return ret;
	h->data_off = round_up(prl_table_end(h), h->cluster_bytes);
	if (h->data_off / PRL_SECTOR_BYTES > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes needs a smaller cluster_size", size_bytes);
	return 0;
}

int prl_image_make(struct node *file, const struct prl_options *o, uint64_t size_bytes, struct img_error *err)
{
	struct prl_header h;
	int ret = prl_image_plan(o, size_bytes, &h, err);

	/* QEMU reads the whole area before the data, wherever the table ends. */
	if (ret == 0)
		ret = node_resize(file, h.data_off, err);
	if (ret == 0)
		ret = prl_write_free(file, 0, h.nr_entries, err);
	return ret == 0 ? prl_header_store(file, &h, err) : ret;
}

int prl_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct prl_options o;
	int ret = prl_options_parse(args->options, &o, err);

	if (ret == 0 && args->size_bytes == 0)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				"a Parallels image holds a disk of at least 512 bytes");
	if (ret != 0)
		return ret;
	return o.subformat == PRL_EXPANDABLE ? prl_image_make(file, &o, args->size_bytes, err) :
					       prl_bundle_make(file, &o, args, err);
}

int prl_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct prl_options o;
	struct prl_header h;
	uint64_t data, full, tables = 0, left = args->size_bytes;
	int ret = prl_options_parse(args->options, &o, err);

	if (ret == 0)
		ret = blockmap_measure(args, o.cluster_bytes, 0, &data, &full, err);
	if (ret != 0)
		return ret;
	if (o.subformat == PRL_PLAIN) {
		out->fully_allocated_bytes = out->required_bytes = args->size_bytes;
		return 0;
	}
	do {
		uint64_t part = o.split_bytes ? min_u64(left, o.split_bytes) : left;

		ret = prl_image_plan(&o, part, &h, err);
		if (ret != 0)
			return ret;
		tables += h.data_off;
		left -= part;
	} while (left > 0);
	out->fully_allocated_bytes = tables + full;
	out->required_bytes = tables + data;
	return 0;
}
