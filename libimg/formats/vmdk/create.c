/* SPDX-License-Identifier: MIT */
/*
 * New images. One file: header, descriptor and tables in it. Several: each extent in a file that is named after the
 * descriptor's (NAME-flat.vmdk, NAME-f001.vmdk, NAME-s001.vmdk, as VMware's tools call them), and the descriptor. The
 * core makes the files durable and gives them their names, the descriptor last.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "image.h"
#include "stream.h"

/* What QEMU and VMware's tools leave for an embedded descriptor. */
#define DESCRIPTOR_ROOM (20 * VMDK_SECTOR_BYTES)

struct creation {
	struct node *file;
	const struct driver_create *args;
	struct vmdk_options o;
	char *base, *stem; /* of the image's name: with and without its ending */
	struct vmdk_extent *extents;
	size_t nr;
};

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static int learn_name(struct creation *c, struct img_error *err)
{
	const char *path = c->args->path ? c->args->path : "disk.vmdk", *slash = strrchr(path, '/');
	size_t bytes;

	c->base = strdup(slash ? slash + 1 : path);
	c->stem = c->base ? strdup(c->base) : NULL;
	if (!c->stem)
		return no_memory(err);
	bytes = strlen(c->stem);
	if (bytes > 5 && strcasecmp(c->stem + bytes - 5, ".vmdk") == 0)
		c->stem[bytes - 5] = '\0';
	return 0;
}

static bool is_split(enum vmdk_subformat s)
{
	return s == VMDK_SPLIT_SPARSE || s == VMDK_SPLIT_FLAT;
}

static bool is_flat(enum vmdk_subformat s)
{
	return s == VMDK_MONOLITHIC_FLAT || s == VMDK_SPLIT_FLAT || s == VMDK_TYPE_VMFS;
}

static int plan_extents(struct creation *c, struct img_error *err)
{
	enum vmdk_subformat s = c->o.subformat;
	uint64_t left = c->args->size_bytes, step = is_split(s) ? c->o.extent_bytes : left;
	int ret = 0;

	c->nr = (size_t)((left - 1) / step + 1);
	c->extents = calloc(c->nr, sizeof(*c->extents));
	if (!c->extents)
		return no_memory(err);
	for (size_t i = 0; i < c->nr && ret == 0; i++) {
		struct vmdk_extent *e = &c->extents[i];

		e->kind = s == VMDK_TYPE_VMFS ? VMDK_VMFS : is_flat(s) ? VMDK_FLAT : VMDK_SPARSE;
		e->bytes = min_u64(step, left);
		left -= e->bytes;
		if (is_split(s))
			ret = asprintf(&e->name, "%s-%c%03zu.vmdk", c->stem, is_flat(s) ? 'f' : 's', i + 1);
		else
			ret = asprintf(&e->name, "%s%s", is_flat(s) ? c->stem : c->base,
				       is_flat(s) ? "-flat.vmdk" : "");
		if (ret < 0) {
			e->name = NULL;
			return no_memory(err);
		}
		ret = 0;
	}
	return ret;
}

static struct vmdk_header header_of(const struct creation *c, const struct vmdk_extent *e, bool embedded)
{
	return (struct vmdk_header){
		.version = c->o.zeroed_grain ? 2 : 1,
		.flags = VMDK_NEWLINES_VALID | VMDK_RGD_VALID | (c->o.zeroed_grain ? VMDK_ZERO_GRAINS : 0u),
		.capacity_bytes = e->bytes,
		.grain_bytes = c->o.grain_bytes,
		.descriptor_bytes = embedded ? DESCRIPTOR_ROOM : 0,
		.nr_gtes = VMDK_GTES,
	};
}

static int make_text(struct creation *c, char **text, size_t *bytes, struct img_error *err)
{
	static const char *const types[] = {
		[VMDK_MONOLITHIC_SPARSE] = "monolithicSparse",
		[VMDK_MONOLITHIC_FLAT] = "monolithicFlat",
		[VMDK_SPLIT_SPARSE] = "twoGbMaxExtentSparse",
		[VMDK_SPLIT_FLAT] = "twoGbMaxExtentFlat",
		[VMDK_STREAM] = "streamOptimized",
		[VMDK_TYPE_VMFS] = "vmfs",
	};
	const struct backing_ref *backing = c->args->backing;
	struct vmdk_descriptor_new d = {
		.parent_cid = VMDK_NO_PARENT_CID,
		.create_type = types[c->o.subformat],
		.extents = c->extents,
		.nr_extents = c->nr,
	};
	int ret = vmdk_options_ddb(&c->o, c->args->size_bytes, &d.ddb, &d.cid, err);

	if (ret == 0 && backing) {
		d.parent_hint = backing->name;
		ret = vmdk_parent_cid(backing, &d.parent_cid, err);
	}
	return ret == 0 ? vmdk_descriptor_write(&d, text, bytes, err) : ret;
}

static int make_single(struct creation *c, const char *text, size_t bytes, struct img_error *err)
{
	struct vmdk_header h = header_of(c, &c->extents[0], true);
	int ret;

	if (bytes > DESCRIPTOR_ROOM)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "the names of the image and of its parent are too long for its descriptor");
	ret = vmdk_sparse_create(c->file, &h, err);
	return ret == 0 ? node_pwrite(c->file, text, bytes, h.descriptor_off, 0, err) : ret;
}

static int make_extent(struct creation *c, const struct vmdk_extent *e, struct img_error *err)
{
	struct vmdk_header h = header_of(c, e, false);
	struct node *file;
	int ret = c->args->create_data(c->args->create_data_ctx, e->name, &file, err);

	if (ret != 0)
		return ret;
	return is_flat(c->o.subformat) ? node_resize(file, e->bytes, err) : vmdk_sparse_create(file, &h, err);
}

static int make_files(struct creation *c, const char *text, size_t bytes, struct img_error *err)
{
	int ret = 0;

	if (c->o.subformat == VMDK_MONOLITHIC_SPARSE)
		return make_single(c, text, bytes, err);
	if (!c->args->create_data)
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"this type of disk needs files of its own beside the image, and none can be made here");
	for (size_t i = 0; i < c->nr && ret == 0; i++)
		ret = make_extent(c, &c->extents[i], err);
	return ret == 0 ? node_pwrite(c->file, text, bytes, 0, 0, err) : ret;
}

static int create(struct creation *c, struct img_error *err)
{
	char *text = NULL;
	size_t bytes;
	int ret;

	if (c->args->backing && is_flat(c->o.subformat))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "an image over a backing file grows as it is written: it is monolithicSparse or "
				 "twoGbMaxExtentSparse");
	ret = learn_name(c, err);
	if (ret == 0)
		ret = plan_extents(c, err);
	if (ret == 0)
		ret = make_text(c, &text, &bytes, err);
	if (ret == 0)
		ret = make_files(c, text, bytes, err);
	free(text);
	return ret;
}

int vmdk_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct creation c = { .file = file, .args = args };
	int ret = vmdk_options_parse(args->options, &c.o, err);

	if (ret != 0)
		return ret;
	if (args->size_bytes == 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a VMDK holds a disk of at least 512 bytes");
	if (c.o.subformat == VMDK_STREAM && args->backing)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a streamOptimized VMDK has no backing file");
	if (c.o.subformat == VMDK_STREAM)
		return vmdk_stream_create(file, args, &c.o, err);
	ret = create(&c, err);
	for (size_t i = 0; c.extents && i < c.nr; i++)
		free(c.extents[i].name);
	free(c.extents);
	free(c.base);
	free(c.stem);
	return ret;
}

/* Of all extents: what stands before their grains. */
static int overhead(const struct vmdk_options *o, uint64_t size_bytes, uint64_t *out, struct img_error *err)
{
	bool split = is_split(o->subformat);
	uint64_t step = split ? o->extent_bytes : size_bytes;
	const struct creation c = { .o = *o };

	*out = 0;
	for (uint64_t at = 0; at < size_bytes; at += step) {
		const struct vmdk_extent e = { .bytes = min_u64(step, size_bytes - at) };
		struct vmdk_header h = header_of(&c, &e, !split);
		int ret = vmdk_sparse_plan(&h, err);

		if (ret != 0)
			return ret;
		*out += h.overhead_bytes;
	}
	return 0;
}

int vmdk_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct vmdk_options o;
	uint64_t data, full, before = 0;
	int ret = vmdk_options_parse(args->options, &o, err);

	if (ret == 0 && o.subformat == VMDK_STREAM)
		return vmdk_stream_measure(args, &o, out, err);
	if (ret == 0 && is_flat(o.subformat)) {
		out->required_bytes = out->fully_allocated_bytes = args->size_bytes + VMDK_SECTOR_BYTES;
		return 0;
	}
	if (ret == 0)
		ret = blockmap_measure(args, o.grain_bytes, 0, &data, &full, err);
	if (ret == 0)
		ret = overhead(&o, args->size_bytes, &before, err);
	if (ret != 0)
		return ret;
	out->required_bytes = before + data;
	out->fully_allocated_bytes = before + full;
	return 0;
}
