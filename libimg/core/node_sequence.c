/* SPDX-License-Identifier: MIT */
/* The chokepoint, writing from front to back: what a driver gave is inside what it said, and its failures have names. */
#include "error.h"
#include "node_int.h"

int node_sequence_ask(const struct img_driver *drv, const char *options, struct img_error *err)
{
	int ret = drv->sequence->ask(options, err);

	return ret > 0 ? 1 : ret;
}

int node_sequence_begin(const struct img_driver *drv, struct node *file, const struct driver_create *args,
			struct sequence_shape *shape, void **state, struct img_error *err)
{
	int ret = node_check_change(file, "write", err);

	*shape = (struct sequence_shape){ .unit_bytes = 0 };
	*state = NULL;
	return ret != 0 ? ret : node_judge(file, drv->sequence->begin(file, args, shape, state, err), "create", err);
}

int node_sequence_pack(const struct img_driver *drv, struct node *file, const void *state, struct codec_ctx *codec,
		       const uint8_t *unit, uint64_t off, uint8_t *out, size_t *bytes, struct img_error *err)
{
	*bytes = 0;
	return node_judge(file, drv->sequence->pack(state, codec, unit, off, out, bytes, err), "pack", err);
}

int node_sequence_put(const struct img_driver *drv, struct node *file, void *state, const uint8_t *data,
		      const struct sequence_unit *units, size_t nr, struct img_error *err)
{
	return node_judge(file, drv->sequence->put(state, data, units, nr, err), "write", err);
}

int node_sequence_end(const struct img_driver *drv, struct node *file, void *state, int ret, struct img_error *err)
{
	if (ret == 0)
		ret = node_judge(file, drv->sequence->end(state, err), "write", err);
	drv->sequence->free(state);
	return ret;
}
