/* SPDX-License-Identifier: MIT */
/* How large an image will be: what create.c writes, and the blocks in which the source holds data, each with what lies
 * before its data. */
#include "vhd.h"

int vhd_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct img_measure_args rounded = *args;
	uint64_t size, data, full, fixed_part, bitmap;
	struct vhd_options o;
	int ret = vhd_options_parse(args->options, false, &o, err);

	if (ret == 0)
		ret = vhd_options_size(&o, args->size_bytes, &size, err);
	if (ret != 0)
		return ret;
	if (o.fixed) {
		out->required_bytes = out->fully_allocated_bytes = size + VHD_SECTOR_BYTES;
		return 0;
	}
	bitmap = round_up(vhd_bitmap_bytes(o.block_bytes), VHD_DATA_ALIGN_BYTES);
	rounded.size_bytes = size;
	ret = blockmap_measure(&rounded, o.block_bytes, bitmap, &data, &full, err);
	/* The first place may begin a page further on than the table's end. */
	fixed_part = VHD_TABLE_OFF + vhd_table_bytes(size / o.block_bytes + (size % o.block_bytes != 0)) +
		     VHD_DATA_ALIGN_BYTES + 2 * VHD_SECTOR_BYTES;
	out->required_bytes = fixed_part + data;
	out->fully_allocated_bytes = fixed_part + full;
	return ret;
}
