/* SPDX-License-Identifier: MIT */
/*
 * Probing. A guess decides how untrusted bytes are read, so it is made carefully: head and tail of the file are shown
 * to every driver and compared with the magics of formats that this build does not open. Exactly one match is a format.
 * Two are an error: a file made to be one thing to one program and another to the next. None is raw, which is only ever
 * guessed for reading. A foreign magic is an error, too: an image of another format read as raw would be copied as if
 * its metadata were the disk.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "magic.h"
#include "node_int.h"
#include "probe.h"

#define LAYER	     "probe"
#define SAMPLE_TRIES 8

static void note(struct probe_verdict *v, const char *format)
{
	/* The head and the tail of one format are one format. */
	if (v->seen.nr_magics > 0 && (strcmp(v->seen.format, format) == 0 || strcmp(v->seen.other, format) == 0))
		return;
	if (v->seen.nr_magics == 0)
		strncpy(v->seen.format, format, sizeof(v->seen.format) - 1);
	else if (v->seen.nr_magics == 1)
		strncpy(v->seen.other, format, sizeof(v->seen.other) - 1);
	v->seen.nr_magics++;
}

static void note_foreign(void *ctx, const char *format, enum magic_kind kind, uint64_t at)
{
	(void)at;
	if (kind == MAGIC_IMAGE)
		note(ctx, format);
}

static void judge(const struct probe_data *data, struct probe_verdict *v)
{
	const struct img_driver *drv;
	int best = 0;

	for (size_t i = 0; (drv = registry_at(i)) != NULL; i++) {
		int bid = node_probe(drv, data);

		if (bid == 0)
			continue;
		note(v, drv->name);
		if (bid > best) {
			v->drv = drv;
			best = bid;
		}
	}
	magic_scan(data, note_foreign, v);
	if (v->seen.nr_magics == 0)
		memcpy(v->seen.format, "raw", sizeof("raw"));
}

/* Head and tail into buf. *moved: beside a writer, of which a snapshot is to be read, the file may end elsewhere
 * meanwhile. */
static int sample(struct node *file, uint8_t *buf, struct probe_data *out, bool *moved, struct img_error *err)
{
	uint64_t size = node_size(file);
	int ret;

	*out = (struct probe_data){
		.file = file,
		.head = buf,
		.head_bytes = (size_t)min_u64(size, MAGIC_HEAD_BYTES),
		.tail = buf + MAGIC_HEAD_BYTES,
		.tail_bytes = (size_t)min_u64(size, MAGIC_TAIL_BYTES),
		.file_bytes = size,
	};
	ret = node_pread(file, buf, out->head_bytes, 0, 0, err);
	if (ret == 0)
		ret = node_pread(file, buf + MAGIC_HEAD_BYTES, out->tail_bytes, size - out->tail_bytes, 0, err);
	*moved = node_size(file) != size;
	return ret;
}

int probe_node(struct node *file, struct probe_verdict *out, struct img_error *err)
{
	uint8_t *buf = calloc(1, MAGIC_HEAD_BYTES + MAGIC_TAIL_BYTES);
	struct img_error failure;
	struct probe_data data;
	bool moved = true;
	int ret = 0;

	memset(out, 0, sizeof(*out));
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", file->path);
	for (int i = 0; i < SAMPLE_TRIES && moved; i++) {
		error_clear(&failure);
		ret = sample(file, buf, &data, &moved, &failure);
	}
	/* A tail that is still moving is the tail of some moment: good enough for a guess. */
	if (ret == 0)
		judge(&data, out);
	else if (err && err->code == IMG_OK)
		*err = failure;
	free(buf);
	return ret;
}

int probe_choose(struct node *file, bool writable, const struct img_driver **out, struct img_error *err)
{
	struct probe_verdict v;
	int ret = probe_node(file, &v, err);

	*out = NULL;
	if (ret != 0)
		return ret;
	if (v.seen.nr_magics > 1)
		return error_set(
			err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			"%s: looks like %s and like %s at once; name the format (-f FORMAT) if the file is to be trusted",
			file->path, v.seen.format, v.seen.other);
	if (v.seen.nr_magics == 1 && !v.drv)
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"%s: looks like %s, which this build cannot open; to take the file itself as a disk, name the format (-f raw)",
			file->path, v.seen.format);
	if (!v.drv)
		v.drv = registry_find("raw");
	if (writable && v.drv->never_guess_for_writing)
		return error_set(
			err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			"%s: no known format is recognised, and raw is never guessed for writing; if it is raw, name the format (-f raw)",
			file->path);
	*out = v.drv;
	return 0;
}
