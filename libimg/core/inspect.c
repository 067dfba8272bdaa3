/* SPDX-License-Identifier: MIT */
/*
 * Inspection of an untrusted file, in this order:
 *
 *   1. what it looks like: magics at head and tail, of all formats that are known, with a driver or without
 *   2. the format's own look at header, extensions, references and mapping (driver.h, inspect), or, without a driver,
 *      that of inspect_foreign.c
 *   3. the format's check of its metadata, whose damage is a finding here
 *   4. the image is opened without anything that it names, as a reader would, and the beginning and the end of its disk
 *      are looked at: for another image in it, and for partition tables that contradict each other
 *
 * Each step only adds findings; where one cannot go on the later ones that need it are left out. The file is read
 * through one node, under a filter that is closed instead of it, so that all steps see the same file.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "checked.h"
#include "error.h"
#include "image_int.h"
#include "inspect.h"
#include "magic.h"

#define LAYER		"inspect"
#define SECONDS_DEFAULT 60u
#define FORMATS_MAX	8u

/* ---- the file, lent ---------------------------------------------------------------------------------------------- */

struct lent {
	struct node *file;
};

static struct node *lent_file(const struct node *node)
{
	return ((struct lent *)node->state)->file;
}

static uint64_t lent_size(const struct node *node)
{
	return node_size(lent_file(node));
}

static int lent_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return node_pread(lent_file(node), buf, bytes, off, flags, err);
}

static int lent_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	return node_stat(lent_file(node), out, err);
}

static const struct img_driver lent_driver = {
	.name = "lent",
	.kind = DRIVER_FILTER,
	.state_bytes = sizeof(struct lent),
	.size = lent_size,
	.pread = lent_pread,
	.stat = lent_stat,
};

/* A node over file for a format to be opened on; closing it leaves file alone. */
static struct node *lend(struct node *file, struct img_error *err)
{
	struct node *node = node_new(&lent_driver, file->path, err);

	if (node) {
		((struct lent *)node->state)->file = file;
		node->opened = true;
	}
	return node;
}

/* ---- what it looks like ------------------------------------------------------------------------------------------ */

struct looks {
	char format[FORMATS_MAX][16];
	uint64_t at[FORMATS_MAX];
	unsigned nr;
	const char *archive; /* NULL: none */
	const char *content; /* as a disk; NULL: nothing known */
	uint64_t content_at;
};

static void add_format(struct looks *l, const char *format, uint64_t at)
{
	for (unsigned i = 0; i < l->nr; i++)
		if (strcmp(l->format[i], format) == 0)
			return;
	if (l->nr == FORMATS_MAX)
		return;
	(void)snprintf(l->format[l->nr], sizeof(l->format[0]), "%s", format);
	l->at[l->nr++] = at;
}

static void add_magic(void *ctx, const char *format, enum magic_kind kind, uint64_t at)
{
	struct looks *l = ctx;

	if (kind == MAGIC_IMAGE) {
		add_format(l, format, at);
	} else if (kind == MAGIC_ARCHIVE) {
		l->archive = format;
	} else if (!l->content) {
		l->content = format;
		l->content_at = at;
	}
}

/* What head and tail of a file, or of a disk, fit. */
static int look(struct node *file, struct looks *l, struct img_error *err)
{
	uint8_t *buf = calloc(1, MAGIC_HEAD_BYTES + MAGIC_TAIL_BYTES);
	struct probe_data data = { .file = file, .head = buf, .file_bytes = node_size(file) };
	const struct img_driver *drv;
	int ret;

	*l = (struct looks){ 0 };
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	data.head_bytes = (size_t)min_u64(data.file_bytes, MAGIC_HEAD_BYTES);
	data.tail = buf + MAGIC_HEAD_BYTES;
	data.tail_bytes = (size_t)min_u64(data.file_bytes, MAGIC_TAIL_BYTES);
	ret = inspect_read(file, buf, data.head_bytes, 0, err);
	if (ret == 0)
		ret = inspect_read(file, buf + MAGIC_HEAD_BYTES, data.tail_bytes, data.file_bytes - data.tail_bytes,
				   err);
	for (size_t i = 0; ret == 0 && (drv = registry_at(i)) != NULL; i++)
		if (node_probe(drv, &data) > 0)
			add_format(l, drv->name, 0);
	if (ret == 0)
		magic_scan(&data, add_magic, l);
	free(buf);
	return ret;
}

/* Their file begins with the disk. */
static bool is_at_the_end(const char *format)
{
	return strcmp(format, "raw") == 0 || strcmp(format, "vhd") == 0 || strcmp(format, "dmg") == 0;
}

static bool is_allowed(const char *format, const char *const *allowed)
{
	while (allowed && *allowed && strcmp(*allowed, format) != 0)
		allowed++;
	return !allowed || *allowed;
}

static void judge_looks(struct inspector *in, const struct looks *l, const struct img_inspect_options *o)
{
	const char *wanted = o->format, *format = wanted ? wanted : l->nr ? l->format[0] : "raw";

	if (!is_allowed(format, o->formats))
		inspect_found(in, INSPECT_FORMAT_NOT_ALLOWED, NO_OFFSET, "of format %s", format);
	(void)snprintf(in->out->format, sizeof(in->out->format), "%s", format);
	if (l->nr > 1)
		inspect_found(in, INSPECT_SEVERAL_FORMATS, l->at[1], "looks like %s, and like %s at 0x%" PRIx64,
			      l->format[0], l->format[1], l->at[1]);
	else if (l->nr == 1 && l->content && !is_at_the_end(l->format[0]))
		inspect_found(in, INSPECT_SEVERAL_FORMATS, l->content_at, "looks like %s, and like %s at 0x%" PRIx64,
			      l->format[0], l->content, l->content_at);
	if (wanted && l->nr > 0 && strcmp(wanted, l->format[0]) != 0)
		inspect_found(in, INSPECT_FORMAT_MISMATCH, l->at[0], "looks like %s, and is to be used as %s",
			      l->format[0], wanted);
	else if (wanted && l->nr == 0 && strcmp(wanted, "raw") != 0)
		inspect_found(in, INSPECT_BAD_HEADER, 0, "does not look like %s", wanted);
	if (l->archive && strcmp(format, "raw") == 0)
		inspect_found(in, INSPECT_ARCHIVE, 0, "looks like %s", l->archive);
}

/* ---- the format's check ------------------------------------------------------------------------------------------ */

static void take_finding(void *ctx, const struct img_finding *f)
{
	struct inspector *in = ctx;
	const char *rule = f->rule[0] ? f->rule : "no rule";

	switch (f->kind) {
	case IMG_FINDING_DAMAGE:
		inspect_found(in, INSPECT_INCONSISTENT, f->file_off, "%.440s [%s]", f->msg, rule);
		break;
	case IMG_FINDING_REDUNDANCY:
		inspect_found(in, INSPECT_HEAD_TAIL, f->file_off, "%.440s [%s]", f->msg, rule);
		break;
	case IMG_FINDING_LEAK: inspect_found(in, INSPECT_LEAKS, f->file_off, "%.440s [%s]", f->msg, rule); break;
	case IMG_FINDING_NOTE: break; /* the format's own look told it */
	}
}

static int in_time(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
	(void)done_bytes;
	(void)total_bytes;
	return inspect_over(ctx);
}

/* What the host could not do is the caller's; all else is about the image. */
static bool is_hosts(int ret)
{
	return ret == IMG_E_NOMEM || ret == IMG_E_IO || ret == IMG_E_INVALID;
}

static int open_on(struct inspector *in, const struct img_driver *drv, struct node *file, bool for_check,
		   struct node **out, struct img_error *err)
{
	struct budget budget = in->budget;
	struct driver_open args = { .for_check = for_check, .force_share = true, .budget = &budget };
	struct backing_ref ref;
	int ret;

	*out = node_new(drv, file->path, err);
	if (!*out)
		return IMG_E_NOMEM;
	(*out)->file = lend(file, err);
	budget_layer(&budget);
	ret = (*out)->file ? node_open(*out, &args, err) : IMG_E_NOMEM;
	if (ret != 0) {
		node_close(*out, NULL);
		*out = NULL;
		return ret;
	}
	(*out)->backing_missing = !for_check && node_get_backing(*out, &ref);
	return 0;
}

/* A disk that cannot be opened from this file alone (VMDK): that was told, and is nothing wrong with the file. */
static bool explained(const struct inspector *in, int ret)
{
	return (ret == IMG_E_UNSUPPORTED || ret == IMG_E_REFUSED) &&
	       in->nr[INSPECT_SUBFORMAT] + in->nr[INSPECT_DESCRIPTOR] + in->nr[INSPECT_EXTENT_FILE] > 0;
}

/* True: the image can be opened for more. */
static int check_metadata(struct inspector *in, const struct img_driver *drv, struct node *file, bool *sound,
			  struct img_error *err)
{
	const struct img_progress progress = { .fn = in_time, .ctx = in };
	struct img_error why = { .code = IMG_OK };
	struct img_check_result result;
	struct node *node;
	int ret = drv->check && !inspect_over(in) ? open_on(in, drv, file, true, &node, &why) : 1;

	*sound = ret >= 0;
	if (ret == 1)
		return 0;
	if (ret == 0) {
		ret = node_check(node, IMG_CHECK_METADATA, take_finding, in, &progress, &result, &why);
		node_close(node, NULL);
	}
	if (ret == 0 || ret == IMG_E_CANCELLED)
		return 0;
	if (is_hosts(ret)) {
		if (err)
			*err = why;
		return ret;
	}
	if (ret == IMG_E_LIMIT && in->nr[INSPECT_LIMIT] == 0)
		inspect_found(in, INSPECT_LIMIT, why.offset, "%s", why.msg);
	else if (ret != IMG_E_LIMIT && in->nr[INSPECT_UNKNOWN_FEATURE] == 0 && !explained(in, ret))
		inspect_found(in, INSPECT_BAD_HEADER, why.offset, "%s", why.msg);
	return 0;
}

/* ---- what stands beside the disk --------------------------------------------------------------------------------- */

#define BITMAPS_SHOWN 1024u

static void judge_bitmaps(struct inspector *in, const struct img_bitmap *list, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		inspect_text(in, (const uint8_t *)list[i].name, strlen(list[i].name), NO_OFFSET, "a bitmap's name");
		for (size_t k = 0; k < i; k++)
			if (strcmp(list[i].name, list[k].name) == 0) {
				inspect_found(in, INSPECT_DUPLICATE_NAME, NO_OFFSET,
					      "two bitmaps have the name '%.100s'", list[i].name);
				break;
			}
	}
}

static int list_bitmaps(struct inspector *in, struct node *disk, struct img_error *err)
{
	struct img_bitmap *list;
	size_t nr;
	int ret = node_bitmap_list(disk, NULL, 0, &nr, err);

	if (ret != 0 || nr == 0)
		return ret;
	inspect_found(in, INSPECT_BITMAPS, NO_OFFSET, "%zu dirty bitmaps", nr);
	if (nr > BITMAPS_SHOWN)
		inspect_found(in, INSPECT_NOT_INSPECTED, NO_OFFSET, "only the first %u bitmaps", BITMAPS_SHOWN);
	list = calloc(BITMAPS_SHOWN, sizeof(*list));
	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = node_bitmap_list(disk, list, BITMAPS_SHOWN, &nr, err);
	if (ret == 0)
		judge_bitmaps(in, list, (size_t)min_u64(nr, BITMAPS_SHOWN));
	free(list);
	return ret;
}

static int list_beside(struct inspector *in, struct node *disk, struct img_error *err)
{
	uint64_t bytes = 0;
	size_t nr;
	int ret = node_snap_list(disk, NULL, 0, &nr, err);

	if (ret == 0 && nr > 0)
		inspect_found(in, INSPECT_SNAPSHOTS, NO_OFFSET, "%zu internal snapshots", nr);
	if (ret == 0 && disk->drv->vmstate_size && node_vmstate_size(disk, NULL, &bytes, NULL) == 0 && bytes > 0)
		inspect_found(in, INSPECT_MACHINE_STATE, NO_OFFSET, "%" PRIu64 " bytes of machine state", bytes);
	return ret == 0 ? list_bitmaps(in, disk, err) : ret;
}

/* ---- the disk ---------------------------------------------------------------------------------------------------- */

/* A disk that begins like an image is taken for one by whoever gets it as raw. */
static int nested(struct inspector *in, struct node *disk, struct img_error *err)
{
	struct looks l;
	int ret = look(disk, &l, err);

	if (ret == 0 && l.nr > 0)
		inspect_found(in, INSPECT_NESTED_IMAGE, NO_OFFSET, "the disk looks like an image of format %s",
			      l.format[0]);
	return ret;
}

static int look_inside(struct inspector *in, const struct img_driver *drv, struct node *file, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct node *disk;
	int ret = open_on(in, drv, file, false, &disk, &why);

	if (ret == 0) {
		in->out->virtual_bytes = node_size(disk);
		if (!drv->inspect)
			inspect_limit(in, BUDGET_VIRTUAL, node_size(disk), NO_OFFSET);
		ret = list_beside(in, disk, &why);
		in->where = "content: ";
		if (ret == 0)
			ret = drv->never_guess_for_writing ? 0 : nested(in, disk, &why);
		if (ret == 0)
			ret = inspect_disk(in, disk, drv->never_guess_for_writing, &why);
		in->where = "";
		node_close(disk, NULL);
	}
	if (is_hosts(ret)) {
		if (err)
			*err = why;
		return ret;
	}
	/* REFUSED and UNSUPPORTED: what is not here, or encrypted. That has been told. */
	if (ret == IMG_E_LIMIT && in->nr[INSPECT_LIMIT] + in->nr[INSPECT_EXPANSION] == 0)
		inspect_found(in, INSPECT_LIMIT, why.offset, "%s", why.msg);
	else if ((ret == IMG_E_CORRUPT || ret == IMG_E_FORMAT) && in->nr[INSPECT_INCONSISTENT] == 0)
		inspect_found(in, INSPECT_INCONSISTENT, why.offset, "cannot be read: %.440s", why.msg);
	return 0;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static int inspect_own(struct inspector *in, const struct img_driver *drv, struct node *file, struct img_error *err)
{
	bool sound = true;
	int ret = node_inspect(drv, file, in, err);

	if (ret == 0 && in->out->unparseable == 0)
		ret = check_metadata(in, drv, file, &sound, err);
	if (ret == 0 && sound && in->out->unparseable == 0 && !inspect_over(in))
		ret = look_inside(in, drv, file, err);
	return ret;
}

static int inspect_file(struct inspector *in, struct node *file, const struct img_inspect_options *o,
			struct img_error *err)
{
	const struct img_driver *drv;
	struct looks l;
	int ret = look(file, &l, err);

	if (ret != 0)
		return ret;
	in->out->file_bytes = node_size(file);
	judge_looks(in, &l, o);
	drv = registry_find(in->out->format);
	if (drv)
		ret = inspect_own(in, drv, file, err);
	else
		ret = inspect_foreign(in, in->out->format, file, err);
	inspect_end(in);
	return ret;
}

static void ignore(void *ctx, const struct img_inspect_finding *finding)
{
	(void)ctx;
	(void)finding;
}

/* Without a limit of its own an inspection has a minute, not the day of a check. */
static int prepare(struct inspector *in, const struct img_inspect_options *o, struct img_error *err)
{
	struct img_open_options limits = { .struct_size = sizeof(limits),
					   .max_virtual_bytes = o->max_virtual_bytes,
					   .budget = o->budget };
	struct budget_timer timer;
	int ret = budget_init(&in->budget, &limits, err);

	if (ret == 0)
		ret = image_check_flags(o->flags, IMG_OPEN_FORCE_SHARE, err);
	if (ret == 0 && o->format && !registry_find(o->format) && !magic_knows(o->format))
		ret = error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "there is no format '%s'", o->format);
	if (ret != 0)
		return ret;
	if (!o->budget || o->budget->check_seconds == 0)
		in->budget.limit[BUDGET_CHECK] = SECONDS_DEFAULT;
	budget_timer_start(&timer, in->budget.limit[BUDGET_CHECK], NULL);
	in->end_ms = timer.end_ms;
	return 0;
}

int image_inspect_env(const char *path, const struct img_inspect_options *opts, img_inspect_fn fn, void *ctx,
		      struct img_inspect_result *out, const struct image_env *env, struct img_error *err)
{
	struct inspector in = { .path = path, .fn = fn ? fn : ignore, .ctx = ctx, .where = "" };
	struct img_inspect_result unused;
	struct img_inspect_options o;
	struct host_open host = { .use = SHARE_PEEK_USE };
	struct node *file;
	char *resolved;
	int ret;

	error_clear(err);
	/* cppcheck-suppress uninitvar ; the next line fills it */
	in.out = out ? out : &unused;
	memset(in.out, 0, sizeof(*in.out));
	if (!path)
		return image_invalid(err, "no path");
	ret = image_copy_options(&o, sizeof(o), opts, err);
	if (ret == 0)
		ret = prepare(&in, &o, err);
	if (ret != 0)
		return ret;
	host.no_lock = (o.flags & IMG_OPEN_FORCE_SHARE) != 0;
	ret = env->open_file(env->ctx, NULL, path, IMG_REFS_NONE, &host, &file, &resolved, err);
	if (ret != 0)
		return ret;
	if (!host.no_lock)
		ret = node_share(file, SHARE_READER_USE, SHARE_READER_FORBID, err);
	if (ret == 0)
		ret = inspect_file(&in, file, &o, err);
	node_close(file, NULL);
	free(resolved);
	return ret;
}

int img_inspect(const char *path, const struct img_inspect_options *opts, img_inspect_fn fn, void *ctx,
		struct img_inspect_result *out, struct img_error *err)
{
	struct img_inspect_options o;
	int ret;

	error_clear(err);
	ret = image_copy_options(&o, sizeof(o), opts, err);
	return ret == 0 ? image_inspect_env(path, &o, fn, ctx, out, image_env_of(o.host), err) : ret;
}
