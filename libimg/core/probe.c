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
#include "node_int.h"
#include "probe.h"

#define LAYER	     "probe"
#define HEAD_BYTES   (64u << 10)
#define TAIL_BYTES   4096u
#define SAMPLE_TRIES 8

/* from_end: offset counted back from the end of the file. */
static const struct magic {
	const char *format;
	bool from_end;
	uint32_t off, bytes;
	const char *text;
} magics[] = {
	{ "qcow", false, 0, 8, "QFI\xfb\0\0\0\1" }, /* version 1; later ones are qcow2 */
	{ "qed", false, 0, 4, "QED\0" },
	{ "vmdk", false, 0, 4, "KDMV" },
	{ "vmdk", false, 0, 4, "COWD" },
	{ "vmdk", false, 0, 21, "# Disk DescriptorFile" },
	{ "vdi", false, 64, 4, "\x7f\x10\xda\xbe" },
	{ "vhdx", false, 0, 8, "vhdxfile" },
	{ "vhd", false, 0, 8, "conectix" },
	{ "vhd", true, 512, 8, "conectix" },
	{ "vhd", true, 511, 8, "conectix" }, /* old Virtual PC wrote footers of 511 bytes */
	{ "luks", false, 0, 6, "LUKS\xba\xbe" },
	{ "parallels", false, 0, 16, "WithoutFreeSpace" },
	{ "parallels", false, 0, 16, "WithouFreSpacExt" },
	{ "bochs", false, 0, 18, "Bochs Virtual HD I" },
	{ "dmg", true, 512, 4, "koly" },
};

static bool magic_fits(const struct magic *m, const struct probe_data *data)
{
	const uint8_t *at;

	if (m->from_end) {
		if (data->tail_bytes < m->off)
			return false;
		at = data->tail + data->tail_bytes - m->off;
		return m->bytes <= m->off && memcmp(at, m->text, m->bytes) == 0;
	}
	return data->head_bytes >= m->off + m->bytes && memcmp(data->head + m->off, m->text, m->bytes) == 0;
}

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
	for (size_t i = 0; i < ARRAY_LEN(magics); i++) {
		/* A format of our own judges itself. */
		if (!registry_find(magics[i].format) && magic_fits(&magics[i], data))
			note(v, magics[i].format);
	}
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
		.head_bytes = (size_t)min_u64(size, HEAD_BYTES),
		.tail = buf + HEAD_BYTES,
		.tail_bytes = (size_t)min_u64(size, TAIL_BYTES),
		.file_bytes = size,
	};
	ret = node_pread(file, buf, out->head_bytes, 0, 0, err);
	if (ret == 0)
		ret = node_pread(file, buf + HEAD_BYTES, out->tail_bytes, size - out->tail_bytes, 0, err);
	*moved = node_size(file) != size;
	return ret;
}

int probe_node(struct node *file, struct probe_verdict *out, struct img_error *err)
{
	uint8_t *buf = calloc(1, HEAD_BYTES + TAIL_BYTES);
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
