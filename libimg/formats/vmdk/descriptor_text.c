/* SPDX-License-Identifier: MIT */
/*
 * The descriptor, written and edited. What changes in the life of an image (content ids, the parent's name) stands in
 * the header, its first lines; these are followed by blank lines up to the end of the first sector in an embedded
 * descriptor, so that an edit changes one sector, in one write, and a crash leaves it old or new (VMDK-17).
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "is_zero.h"
#include "vmdk.h"

/* ---- identity and geometry --------------------------------------------------------------------------------------- */

static int random_bytes(void *out, size_t bytes, struct img_error *err)
{
	if (getrandom(out, bytes, 0) != (ssize_t)bytes)
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers from the system");
	return 0;
}

int vmdk_new_cid(uint32_t old, uint32_t *out, struct img_error *err)
{
	int ret;

	/* All ones say that there is no parent; one less is the id of a disk that was never written. */
	do {
		ret = random_bytes(out, sizeof(*out), err);
	} while (ret == 0 && (*out == old || *out >= VMDK_NO_PARENT_CID - 1));
	return ret;
}

int vmdk_ddb_identify(struct vmdk_ddb *ddb, uint32_t *cid, struct img_error *err)
{
	static const uint8_t prefix[3] = { 0x60, 0x00, 0xc2 };
	int ret = random_bytes(ddb->uuid, sizeof(ddb->uuid), err);

	if (ret == 0)
		ret = random_bytes(ddb->long_content_id, sizeof(ddb->long_content_id), err);
	if (ret == 0)
		ret = vmdk_new_cid(0, cid, err);
	if (ret != 0)
		return ret;
	memcpy(ddb->uuid, prefix, sizeof(prefix));
	ddb->uuid[3] = (uint8_t)(0x90u | (ddb->uuid[3] & 0x0fu));
	for (unsigned i = 0; i < 4; i++)
		ddb->long_content_id[12 + i] = (uint8_t)(*cid >> (24 - 8 * i));
	return 0;
}

void vmdk_ddb_geometry(struct vmdk_ddb *ddb, uint64_t disk_bytes)
{
	uint64_t sectors = disk_bytes / VMDK_SECTOR_BYTES;
	bool ide = strcmp(ddb->adapter, "ide") == 0, small = disk_bytes < UINT64_C(1) << 30;

	ddb->heads = ide ? 16 : small ? 64 : 255;
	ddb->sectors = ide ? 63 : small ? 32 : 63;
	ddb->cylinders = sectors / (ddb->heads * ddb->sectors);
	/* More than a guest's driver for ide can say. */
	if (ide && ddb->cylinders > 16383)
		ddb->cylinders = 16383;
	if (ddb->cylinders == 0)
		ddb->cylinders = 1;
}

/* ---- building ---------------------------------------------------------------------------------------------------- */

struct builder {
	char *text;
	size_t bytes, cap;
	bool failed; /* no memory */
};

static void __attribute__((format(printf, 2, 3))) add(struct builder *b, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (b->failed || n < 0) {
		b->failed = true;
		return;
	}
	if (b->bytes + (size_t)n + 1 > b->cap) {
		size_t cap = 2 * (b->bytes + (size_t)n + 1);
		char *grown = realloc(b->text, cap);

		if (!grown) {
			b->failed = true;
			return;
		}
		b->text = grown;
		b->cap = cap;
	}
	va_start(ap, fmt);
	(void)vsnprintf(b->text + b->bytes, b->cap - b->bytes, fmt, ap);
	va_end(ap);
	b->bytes += (size_t)n;
}

static void add_ddb(struct builder *b, const struct vmdk_ddb *ddb)
{
	add(b, "# The Disk Data Base\n#DDB\n\n");
	add(b, "ddb.adapterType = \"%s\"\n", ddb->adapter);
	add(b, "ddb.geometry.cylinders = \"%" PRIu64 "\"\n", ddb->cylinders);
	add(b, "ddb.geometry.heads = \"%" PRIu32 "\"\n", ddb->heads);
	add(b, "ddb.geometry.sectors = \"%" PRIu32 "\"\n", ddb->sectors);
	if (!is_zero(ddb->long_content_id, sizeof(ddb->long_content_id))) {
		add(b, "ddb.longContentID = \"");
		for (unsigned i = 0; i < sizeof(ddb->long_content_id); i++)
			add(b, "%02x", ddb->long_content_id[i]);
		add(b, "\"\n");
	}
	if (ddb->thin)
		add(b, "ddb.thinProvisioned = \"1\"\n");
	if (ddb->tools_version)
		add(b, "ddb.toolsVersion = \"%s\"\n", ddb->tools_version);
	if (!is_zero(ddb->uuid, sizeof(ddb->uuid))) {
		/* In the spelling of VMware's tools. */
		add(b, "ddb.uuid = \"%02X %02X %02X ", ddb->uuid[0], ddb->uuid[1], ddb->uuid[2]);
		for (unsigned i = 3; i < sizeof(ddb->uuid); i++)
			add(b, "%02x%s", ddb->uuid[i], i == 7 ? "-" : i == 15 ? "\"\n" : " ");
	}
	add(b, "ddb.virtualHWVersion = \"%s\"\n", ddb->hw_version);
}

static void add_extent(struct builder *b, const struct vmdk_extent *e)
{
	add(b, "%s %" PRIu64 " %s", vmdk_access_words[e->access], e->bytes / VMDK_SECTOR_BYTES,
	    vmdk_extent_words[e->kind]);
	if (e->name && e->name[0])
		add(b, " \"%s\"", e->name);
	if (e->kind == VMDK_FLAT)
		add(b, " %" PRIu64, e->file_off / VMDK_SECTOR_BYTES);
	add(b, "\n");
}

static bool can_be_written(const char *name)
{
	return !name || !strpbrk(name, "\"\r\n");
}

int vmdk_descriptor_write(const struct vmdk_descriptor_new *d, char **text, size_t *bytes, struct img_error *err)
{
	struct builder b = { 0 };
	bool fine = can_be_written(d->parent_hint);

	for (size_t i = 0; i < d->nr_extents; i++)
		fine = fine && can_be_written(d->extents[i].name);
	if (!fine)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "the names of files in a VMDK have no quotation marks and no line breaks");
	add(&b, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%08" PRIx32 "\nparentCID=%08" PRIx32 "\n",
	    d->cid, d->parent_cid);
	add(&b, "createType=\"%s\"\n", d->create_type);
	if (d->parent_hint)
		add(&b, "parentFileNameHint=\"%s\"\n", d->parent_hint);
	/* A sector of its own for what changes; see above. */
	if (d->nr_extents > 0 && d->extents[0].kind == VMDK_SPARSE && strcmp(d->create_type, "streamOptimized") != 0)
		while (!b.failed && b.bytes < VMDK_SECTOR_BYTES - 1)
			add(&b, "\n");
	add(&b, "\n# Extent description\n");
	for (size_t i = 0; i < d->nr_extents; i++)
		add_extent(&b, &d->extents[i]);
	/* Room for a longer number, in the sector of the last extent. */
	add(&b, strcmp(d->create_type, "streamOptimized") == 0 ? "\n" : "\n\n\n\n\n\n\n\n\n\n");
	add_ddb(&b, &d->ddb);
	if (b.failed) {
		free(b.text);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	*text = b.text;
	*bytes = b.bytes;
	return 0;
}

/* ---- editing ----------------------------------------------------------------------------------------------------- */

/* Where the line that begins at `at` ends, its line end included. */
static size_t line_end(const char *text, size_t bytes, size_t at)
{
	while (at < bytes && text[at] != '\n' && text[at] != '\r')
		at++;
	if (at + 1 < bytes && text[at] == '\r' && text[at + 1] == '\n')
		at++;
	return at < bytes ? at + 1 : at;
}

static bool line_has_key(const char *text, size_t at, size_t end, const char *key)
{
	size_t n = strlen(key);

	while (at < end && (text[at] == ' ' || text[at] == '\t'))
		at++;
	if (end - at <= n || strncasecmp(text + at, key, n) != 0)
		return false;
	for (at += n; at < end && (text[at] == ' ' || text[at] == '\t');)
		at++;
	return at < end && text[at] == '=';
}

struct place {
	size_t from, to; /* of the line; from == to: it is to be put there */
};

/* The line of key, or the end of the header: behind the last line with one of its keys. */
static struct place find_line(const char *text, size_t bytes, const char *key)
{
	static const char *const header[] = { "version", "CID", "parentCID", "createType", "encoding" };
	struct place p = { 0, 0 };

	for (size_t at = 0, end; at < bytes; at = end) {
		end = line_end(text, bytes, at);
		if (line_has_key(text, at, end, key))
			return (struct place){ at, end };
		for (size_t i = 0; i < ARRAY_LEN(header); i++)
			if (line_has_key(text, at, end, header[i]))
				p = (struct place){ end, end };
	}
	return p;
}

/* Line ends of blank lines behind `at`, in the same sector of the text, that may go. One blank line stays. */
static size_t blanks_behind(const char *text, size_t bytes, size_t *at)
{
	size_t end = *at, limit = (size_t)min_u64(bytes, round_up(*at + 1, VMDK_SECTOR_BYTES)), n = 0;

	/* Over other lines of the header, to the first blank one. */
	while (end < limit && text[end] != '\n')
		end = line_end(text, bytes, end);
	*at = end;
	while (end + n < limit && text[end + n] == '\n')
		n++;
	return n > 0 ? n - 1 : 0;
}

int vmdk_descriptor_edit(const char *text, size_t bytes, const char *key, const char *value, bool quoted, char **out,
			 size_t *out_bytes, struct img_error *err)
{
	struct place line = find_line(text, bytes, key);
	const char *nl = memchr(text, '\r', bytes) ? "\r\n" : "\n";
	struct builder b = { 0 };
	size_t blank = line.to, spare = blanks_behind(text, bytes, &blank), grown, old = line.to - line.from;

	if (!can_be_written(value))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "the names of files in a VMDK have no quotation marks and no line breaks");
	add(&b, "%.*s", (int)line.from, text);
	if (value)
		add(&b, quoted ? "%s=\"%s\"%s" : "%s=%s%s", key, value, nl);
	grown = b.failed ? 0 : b.bytes - line.from;
	add(&b, "%.*s", (int)(blank - line.to), text + line.to);
	/* A longer line takes from the blank ones, a shorter one leaves more of them, if any are there. */
	if (grown > old)
		blank += (size_t)min_u64(spare, grown - old);
	else
		for (size_t n = grown; n < old && spare > 0; n++)
			add(&b, "\n");
	add(&b, "%.*s", (int)(bytes - blank), text + blank);
	if (b.failed) {
		free(b.text);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	*out = b.text;
	*out_bytes = b.bytes;
	return 0;
}

int vmdk_descriptor_resize(const struct vmdk_descriptor *d, size_t extent, uint64_t bytes, char **out,
			   size_t *out_bytes, struct img_error *err)
{
	size_t at = (size_t)(d->extents[extent].line_off - d->off), end = line_end(d->text, d->text_bytes, at), digits;
	size_t blank = end, spare, grown, old;
	struct builder b = { 0 };

	/* Behind the word for the access. */
	for (digits = at + strspn(d->text + at, " \t"); digits < end && !strchr(" \t", d->text[digits]);)
		digits++;
	digits += strspn(d->text + digits, " \t");
	old = strspn(d->text + digits, "0123456789");
	spare = blanks_behind(d->text, d->text_bytes, &blank);
	add(&b, "%.*s%" PRIu64, (int)digits, d->text, bytes / VMDK_SECTOR_BYTES);
	grown = b.failed ? 0 : b.bytes - digits;
	add(&b, "%.*s", (int)(blank - digits - old), d->text + digits + old);
	if (grown > old)
		blank += (size_t)min_u64(spare, grown - old);
	else
		for (size_t n = grown; n < old && spare > 0; n++)
			add(&b, "\n");
	add(&b, "%.*s", (int)(d->text_bytes - blank), d->text + blank);
	if (b.failed) {
		free(b.text);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	*out = b.text;
	*out_bytes = b.bytes;
	return 0;
}
