/* SPDX-License-Identifier: MIT */
/* The VMDK driver: what the core sees of it. See image.h. */
#include <string.h>
#include <strings.h>

#include "image.h"
#include "stream.h"

/* ---- probing ----------------------------------------------------------------------------------------------------- */

#define TEXT_BYTES 512u

/* QEMU takes a text for a descriptor whose first line that is neither blank nor a comment is this. */
static bool has_version(const struct probe_data *data)
{
	const char *at = (const char *)data->head, *end = at + data->head_bytes;

	while (at < end && strchr("# \t\r\n", *at)) {
		const char *eol = *at == '#' ? memchr(at, '\n', (size_t)(end - at)) : at;

		at = eol ? eol + 1 : end;
	}
	return end - at >= 9 && strncasecmp(at, "version=", 8) == 0 && at[8] >= '1' && at[8] <= '9';
}

/* OpenStack takes any text for one that says which type of disk it is. */
static bool has_type(const struct probe_data *data)
{
	static const char word[] = "createtype=\"";
	size_t bytes = sizeof(word) - 1;

	for (size_t i = 0; i < data->head_bytes && i < TEXT_BYTES; i++) {
		uint8_t c = data->head[i];

		if ((c < ' ' || c > '~') && c != '\n' && c != '\r' && c != '\t')
			return false;
	}
	for (size_t i = 0; i + bytes <= data->head_bytes; i++)
		if (strncasecmp((const char *)data->head + i, word, bytes) == 0)
			return true;
	return false;
}

/* What others take for a VMDK must not pass for a raw disk, be it one or not. */
static int probe(const struct probe_data *d)
{
	static const char *const magics[] = { VMDK_MAGIC, COWD_MAGIC, "\xbe\xba\xfe\xca\0\0\0\0" };
	static const size_t bytes[] = { 4, 4, 8 };

	for (size_t i = 0; i < ARRAY_LEN(magics); i++)
		if (d->head_bytes >= bytes[i] && memcmp(d->head, magics[i], bytes[i]) == 0)
			return 100;
	if (vmdk_descriptor_begins(d->head, d->head_bytes))
		return 100;
	return has_version(d) || has_type(d) ? 90 : 0;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static uint64_t size(const struct node *n)
{
	return span_size(vmdk_of(n)->span);
}

static void limits(const struct node *n, struct driver_limits *out)
{
	uint32_t grain_bytes = vmdk_of(n)->grain_bytes;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = grain_bytes ? grain_bytes : 1,
		.optimal_bytes = 1u << 20,
		.max_size_bytes = INT64_MAX,
	};
}

static int pread_member(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return span_pread(vmdk_of(n)->span, buf, bytes, off, err);
}

/* After a change that failed with ret. One of several files that lost something stops them all. */
static int judge_failure(struct vmdk_state *v, int ret)
{
	for (size_t i = 0; ret != 0 && i < v->nr_parts; i++)
		if (v->parts[i].file && node_is_poisoned(v->parts[i].file))
			atomic_store(&v->broken, true);
	return ret;
}

/* Before any of a change: it is possible, and children will know of it. */
static int begin(struct vmdk_state *v, uint64_t bytes, uint64_t off, bool zero, struct img_error *err)
{
	int ret = vmdk_may_change(v, err);

	if (ret == 0)
		ret = span_may_change(v->span, bytes, off, zero, err);
	return ret == 0 ? vmdk_touch(v, err) : ret;
}

static int pwrite_member(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	int ret = begin(v, bytes, off, false, err);

	(void)flags;
	return ret == 0 ? judge_failure(v, span_pwrite(v->span, buf, bytes, off, err)) : ret;
}

static int zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	int ret = begin(v, bytes, off, true, err);

	return ret == 0 ? judge_failure(v, span_zero(v->span, bytes, off, flags, err)) : ret;
}

static int discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	int ret = vmdk_may_change(v, err);

	(void)flags;
	if (ret == 0)
		ret = vmdk_touch(v, err);
	return ret == 0 ? judge_failure(v, span_discard(v->span, bytes, off, err)) : ret;
}

static int flush(struct node *n, unsigned flags, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);

	(void)flags;
	return v->writable ? judge_failure(v, span_flush(v->span, err)) : 0;
}

/* Own layer only. */
static int status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return span_status(vmdk_of(n)->span, bytes, off, out, cap, nr, err);
}

const struct img_driver vmdk_driver = {
	.name = "vmdk",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct vmdk_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_CHECK,
	.checks_data = true,
	.create_help = VMDK_OPTIONS_HELP,
	.sequence = &vmdk_sequence,
	.probe = probe,
	.create = vmdk_create,
	.open = vmdk_open,
	.close = vmdk_close,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.pwrite = pwrite_member,
	.zero = zero,
	.discard = discard,
	.flush = flush,
	.status = status,
	.resize = vmdk_resize,
	.get_backing = vmdk_get_backing,
	.set_backing = vmdk_set_backing,
	.empties_in_steps = true,
	.id = vmdk_id,
	.info = vmdk_info,
	.info_details = vmdk_info_details,
	.measure = vmdk_measure,
	.check = vmdk_check,
	.inspect = vmdk_inspect,
};
