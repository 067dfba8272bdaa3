/* SPDX-License-Identifier: MIT */
/*
 * The chokepoint, machine state: ranges lie inside the volume (writing and zeroing grow it), answers about its layout
 * are policed as those about a disk's. What a driver says of host offsets is used to map the file; that never reaches
 * beyond the file's end, where touching a page would be the death of the process.
 */
#include <string.h>

#include "checked.h"
#include "error.h"
#include "node_int.h"

#define LAYER "node"

static const char no_vmstate[] = "machine state";

static int bad_range(const struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return error_set(err, IMG_E_INVALID, 0, off, LAYER, "%s: machine state: 0x%llx bytes at 0x%llx", node->path,
			 (unsigned long long)bytes, (unsigned long long)off);
}

static int check_buffer(const struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	if ((buf || bytes == 0) && bytes <= PTRDIFF_MAX && range_inside(off, bytes, INT64_MAX))
		return 0;
	return bad_range(node, bytes, off, err);
}

int node_vmstate_write(struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret;

	if (!node->drv->vmstate_write)
		return node_unsupported(node, no_vmstate, err);
	ret = node_check_change(node, "write machine state", err);
	if (ret == 0)
		ret = check_buffer(node, buf, bytes, off, err);
	if (ret != 0 || bytes == 0)
		return ret;
	return node_judge(node, node->drv->vmstate_write(node, buf, bytes, off, err), "vmstate write", err);
}

int node_vmstate_size(struct node *node, const char *snap, uint64_t *bytes, struct img_error *err)
{
	*bytes = 0;
	if (!node->drv->vmstate_size)
		return node_unsupported(node, no_vmstate, err);
	return node_judge(node, node->drv->vmstate_size(node, snap, bytes, err), "vmstate size", err);
}

int node_vmstate_zero(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret;

	if (!node->drv->vmstate_zero)
		return node_unsupported(node, no_vmstate, err);
	ret = node_check_change(node, "zero machine state", err);
	if (ret == 0 && !range_inside(off, bytes, INT64_MAX))
		ret = bad_range(node, bytes, off, err);
	if (ret != 0 || bytes == 0)
		return ret;
	return node_judge(node, node->drv->vmstate_zero(node, bytes, off, err), "vmstate zero", err);
}

/* What is read lies inside the volume. */
static int check_inside(struct node *node, const char *snap, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size = 0;
	int ret = node_vmstate_size(node, snap, &size, err);

	if (ret != 0 || range_inside(off, bytes, size))
		return ret;
	return error_set(err, IMG_E_INVALID, 0, off, LAYER,
			 "%s: machine state ends at 0x%llx, 0x%llx bytes at 0x%llx are beyond", node->path,
			 (unsigned long long)size, (unsigned long long)bytes, (unsigned long long)off);
}

int node_vmstate_read(struct node *node, const char *snap, void *buf, uint64_t bytes, uint64_t off,
		      struct img_error *err)
{
	int ret;

	if (!node->drv->vmstate_read)
		return node_unsupported(node, no_vmstate, err);
	ret = check_buffer(node, buf, bytes, off, err);
	if (ret == 0)
		ret = check_inside(node, snap, bytes, off, err);
	if (ret != 0 || bytes == 0)
		return ret;
	return node_judge(node, node->drv->vmstate_read(node, snap, buf, bytes, off, err), "vmstate read", err);
}

int node_vmstate_status(struct node *node, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			size_t cap, size_t *nr, struct img_error *err)
{
	int ret;

	*nr = 0;
	if (!node->drv->vmstate_read)
		return node_unsupported(node, no_vmstate, err);
	ret = check_inside(node, snap, bytes, off, err);
	if (ret != 0 || bytes == 0)
		return ret;
	if (!node->drv->vmstate_status) {
		out[0] = (struct status_extent){
			.off = off, .bytes = bytes, .kind = STATUS_DATA, .host_off = STATUS_NO_HOST
		};
		*nr = 1;
		return 0;
	}
	ret = node_judge(node, node->drv->vmstate_status(node, snap, bytes, off, out, cap, nr, err), "vmstate status",
			 err);
	return ret == 0 ? node_police_status(node, bytes, off, out, cap, nr, err) : ret;
}

int node_map(struct node *node, void *addr, uint64_t bytes, uint64_t off, struct img_error *err)
{
	if (!node->opened || !node->drv->map)
		return node_unsupported(node, "pages to map", err);
	if (!range_inside(off, bytes, node_size(node)))
		return error_set(err, IMG_E_IO, 0, off, node->drv->name,
				 "%s: cannot map 0x%llx bytes at 0x%llx: the file ends at 0x%llx", node->path,
				 (unsigned long long)bytes, (unsigned long long)off,
				 (unsigned long long)node_size(node));
	return node_judge(node, node->drv->map(node, addr, bytes, off, err), "map", err);
}

int node_vmstate_map(struct node *node, void *addr, uint64_t bytes, uint64_t host_off, struct img_error *err)
{
	const struct node *owner = node->view_of ? node->view_of : node;

	if (!owner->file)
		return node_unsupported(node, "file to map", err);
	return node_map(owner->file, addr, bytes, host_off, err);
}

int node_vmstate_resize(struct node *node, uint64_t bytes, struct img_error *err)
{
	int ret;

	if (!node->drv->vmstate_resize)
		return node_unsupported(node, no_vmstate, err);
	ret = node_check_change(node, "resize machine state", err);
	return ret != 0 ? ret : node_judge(node, node->drv->vmstate_resize(node, bytes, err), "vmstate resize", err);
}
