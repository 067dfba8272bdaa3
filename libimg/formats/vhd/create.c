/* SPDX-License-Identifier: MIT */
/*
 * New images. Fixed: the disk as a hole, and the footer. Dynamic, in this order:
 *
 *   copy of the footer | header | table, all free | texts of the parent's locators | footer
 *
 * The table has exactly as many entries as the disk has blocks, which Azure insists on.
 */
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

#define FILL_BYTES (64u << 10)

static int write_footer(struct node *file, const struct disk_vhd_footer *f, uint64_t off, struct img_error *err)
{
	return node_pwrite(file, f, sizeof(*f), off, 0, err);
}

static int write_free_table(struct node *file, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint8_t *buf = malloc(FILL_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (buf)
		memset(buf, 0xff, FILL_BYTES); /* VHD_FREE */
	for (uint64_t done = 0; done < bytes && ret == 0; done += FILL_BYTES)
		ret = node_pwrite(file, buf, min_u64(FILL_BYTES, bytes - done), off + done, 0, err);
	free(buf);
	return ret;
}

static int create_fixed(struct node *file, struct disk_vhd_footer *f, uint64_t size_bytes, struct img_error *err)
{
	int ret = node_resize(file, size_bytes + sizeof(*f), err);

	f->type = be32_of(VHD_FIXED);
	vhd_footer_seal(f);
	return ret == 0 ? write_footer(file, f, size_bytes, err) : ret;
}

static int create_dynamic(struct node *file, struct disk_vhd_footer *f, uint64_t size_bytes, uint32_t block_bytes,
			  const struct backing_ref *backing, struct img_error *err)
{
	uint64_t entries = size_bytes / block_bytes + (size_bytes % block_bytes != 0);
	uint64_t table_bytes = vhd_table_bytes(entries), texts_off = VHD_TABLE_OFF + table_bytes, end = texts_off;
	uint8_t *texts = malloc(VHD_LOCATORS_BYTES);
	struct vhd_header h;
	int ret;

	if (!texts)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	vhd_header_init(&h, VHD_TABLE_OFF, (uint32_t)entries, block_bytes);
	ret = vhd_set_parent(&h.disk, backing, texts, texts_off, err);
	vhd_header_seal(&h);
	f->type = be32_of(backing ? VHD_DIFFERENCING : VHD_DYNAMIC);
	f->data_off = be64_of(h.off);
	vhd_footer_seal(f);
	if (ret == 0)
		ret = write_footer(file, f, 0, err);
	if (ret == 0)
		ret = node_pwrite(file, &h.disk, sizeof(h.disk), h.off, 0, err);
	if (ret == 0)
		ret = write_free_table(file, VHD_TABLE_OFF, table_bytes, err);
	if (ret == 0 && backing) {
		ret = node_pwrite(file, texts, VHD_LOCATORS_BYTES, texts_off, 0, err);
		end += VHD_LOCATORS_BYTES;
	}
	if (ret == 0)
		ret = write_footer(file, f, end, err);
	free(texts);
	return ret;
}

int vhd_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct disk_vhd_footer f;
	struct vhd_options o;
	uint64_t size;
	int ret = vhd_options_parse(args->options, args->backing != NULL, &o, err);

	if (ret == 0)
		ret = vhd_options_size(&o, args->size_bytes, &size, err);
	if (ret != 0)
		return ret;
	vhd_footer_init(&f, size);
	if (o.has_uuid)
		memcpy(f.uuid, o.uuid, sizeof(f.uuid));
	else
		ret = vhd_random_uuid(f.uuid, err);
	if (ret != 0)
		return ret;
	return o.fixed ? create_fixed(file, &f, size, err) :
			 create_dynamic(file, &f, size, o.block_bytes, args->backing, err);
}
