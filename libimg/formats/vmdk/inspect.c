/* SPDX-License-Identifier: MIT */
/*
 * What a stranger's VMDK names. Its descriptor is text in which references are ordinary lines, stand beside text behind
 * a NUL that some readers do not see, or in comments that others believe; all of it is read, each line must be
 * understood, and the disk is safe only if it is one file by itself: a sparse extent with the descriptor at its usual
 * place.
 *
 * Source: VMware Virtual Disk Format 5.0.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "image.h"
#include "inspect.h"
#include "is_zero.h"
#include "stream.h"

#define SECTOR		     UINT64_C(512)
#define DESCRIPTOR_PLACE     SECTOR
#define DESCRIPTOR_MAX_BYTES ((UINT64_C(1) << 20) - 1)
#define COWD_PARENT_NAME     32u
#define COWD_PARENT_BYTES    1024u

/* ---- lines ------------------------------------------------------------------------------------------------------- */

struct descriptor {
	struct inspector *in;
	bool embedded;
	uint64_t at; /* of the present line */
	unsigned nr_extents;
	bool single_file; /* a type that is one file by itself */
	bool typed;
};

static bool begins(const char *line, size_t bytes, const char *word)
{
	return bytes >= strlen(word) && strncasecmp(line, word, strlen(word)) == 0;
}

/* Position of the word anywhere in the line, or bytes. */
static size_t find(const char *line, size_t bytes, const char *word)
{
	for (size_t i = 0; i + strlen(word) <= bytes; i++)
		if (strncasecmp(line + i, word, strlen(word)) == 0)
			return i;
	return bytes;
}

/* What stands between the first two quotation marks, or behind the sign. */
static const char *quoted(const char *line, size_t bytes, size_t *length)
{
	const char *open = memchr(line, '"', bytes), *sign = memchr(line, '=', bytes), *end = line + bytes;
	const char *close = open ? memchr(open + 1, '"', (size_t)(end - open - 1)) : NULL;

	if (open) {
		*length = (size_t)((close ? close : end) - open - 1);
		return open + 1;
	}
	*length = sign ? (size_t)(end - sign - 1) : 0;
	return sign ? sign + 1 : end;
}

static void refer(struct descriptor *d, enum inspect_id id, const char *line, size_t bytes, const char *what)
{
	size_t length;
	const char *name = quoted(line, bytes, &length);

	inspect_reference(d->in, id, (const uint8_t *)name, length, d->at, what);
}

static bool is_extent(const char *line, size_t bytes)
{
	return begins(line, bytes, "rw ") || begins(line, bytes, "rdonly ") || begins(line, bytes, "noaccess ");
}

/* The one extent of a single file is the file itself: its name is not followed, but must not be a path either. */
static void extent(struct descriptor *d, const char *line, size_t bytes)
{
	size_t length;
	const char *name = quoted(line, bytes, &length);

	d->nr_extents++;
	if (d->embedded && d->single_file && d->nr_extents == 1 && find(line, bytes, " sparse ") < bytes &&
	    !memchr(name, '/', length) && !memchr(name, '\\', length) && !memchr(name, ':', length)) {
		inspect_text(d->in, (const uint8_t *)name, length, d->at, "the name of the extent");
		return;
	}
	if (find(line, bytes, " zero") + strlen(" zero") >= bytes && length == 0)
		return; /* no file */
	refer(d, INSPECT_EXTENT_FILE, line, bytes, "an extent");
}

static void create_type(struct descriptor *d, const char *line, size_t bytes)
{
	size_t length;
	const char *type = quoted(line, bytes, &length);

	if (d->typed)
		inspect_found(d->in, INSPECT_DESCRIPTOR, d->at, "the type of the disk is given twice");
	d->typed = true;
	d->single_file = (length == 16 && strncasecmp(type, "monolithicSparse", 16) == 0) ||
			 (length == 15 && strncasecmp(type, "streamOptimized", 15) == 0);
	if (!d->single_file)
		inspect_found(d->in, INSPECT_SUBFORMAT, d->at, "a disk of type '%.*s'", (int)min_u64(length, 40), type);
}

static void field(struct descriptor *d, const char *line, size_t bytes)
{
	size_t length;
	const char *value = quoted(line, bytes, &length);

	if (begins(line, bytes, "createtype"))
		create_type(d, line, bytes);
	else if (begins(line, bytes, "parentfilenamehint"))
		refer(d, INSPECT_PARENT, line, bytes, "a parent");
	else if (begins(line, bytes, "parentcid") && !(length == 8 && strncasecmp(value, "ffffffff", 8) == 0))
		inspect_found(d->in, INSPECT_PARENT, d->at, "stands on a parent with the content id %.*s",
			      (int)min_u64(length, 16), value);
	else if (begins(line, bytes, "changetrackpath"))
		refer(d, INSPECT_EXTENT_FILE, line, bytes, "a file that tracks changes");
}

static void comment(struct descriptor *d, const char *line, size_t bytes)
{
	size_t skip = 0;

	while (skip < bytes && (line[skip] == '#' || line[skip] == ' ' || line[skip] == '\t'))
		skip++;
	if (find(line, bytes, "parentfilenamehint") < bytes)
		refer(d, INSPECT_HIDDEN_REFERENCE, line, bytes, "a parent in a comment");
	else if (is_extent(line + skip, bytes - skip))
		refer(d, INSPECT_HIDDEN_REFERENCE, line, bytes, "an extent in a comment");
}

static void judge_line(struct descriptor *d, const char *line, size_t bytes, bool hidden)
{
	const char *sign;

	while (bytes > 0 && (*line == ' ' || *line == '\t')) {
		line++;
		bytes--;
	}
	while (bytes > 0 && (line[bytes - 1] == ' ' || line[bytes - 1] == '\t' || line[bytes - 1] == '\r'))
		bytes--;
	if (bytes == 0)
		return;
	if (hidden)
		inspect_found(d->in,
			      is_extent(line, bytes) || find(line, bytes, "parentfilenamehint") < bytes ?
				      INSPECT_HIDDEN_REFERENCE :
				      INSPECT_DESCRIPTOR,
			      d->at, "text behind the end of the descriptor: '%.*s'", (int)min_u64(bytes, 60), line);
	for (size_t i = 0; i < bytes; i++)
		if ((uint8_t)line[i] >= 0x80) {
			inspect_found(d->in, INSPECT_DESCRIPTOR, d->at + i, "the descriptor is not ASCII");
			break;
		}
	sign = memchr(line, '=', bytes);
	if (line[0] == '#')
		comment(d, line, bytes);
	else if (is_extent(line, bytes))
		extent(d, line, bytes);
	else if (sign && find(line, (size_t)(sign - line), "parentfilenamehint") > 0 &&
		 find(line, bytes, "parentfilenamehint") < bytes)
		refer(d, INSPECT_HIDDEN_REFERENCE, line + find(line, bytes, "parentfilenamehint"),
		      bytes - find(line, bytes, "parentfilenamehint"), "a parent in the middle of a line");
	else if (begins(line, bytes, "ddb"))
		inspect_text(d->in, (const uint8_t *)line, bytes, d->at, "the descriptor");
	else if (sign)
		field(d, line, bytes);
	else
		inspect_found(d->in, INSPECT_DESCRIPTOR, d->at, "a line that is not understood: '%.*s'",
			      (int)min_u64(bytes, 60), line);
}

/* Lines end at newlines and at NULs; behind the first NUL there should be nothing but more of them. */
static void judge_text(struct descriptor *d, const char *text, size_t bytes, uint64_t off)
{
	bool hidden = false;

	for (size_t at = 0; at < bytes && !inspect_over(d->in);) {
		size_t end = at;

		while (end < bytes && text[end] != '\n' && text[end] != '\0')
			end++;
		d->at = off + at;
		judge_line(d, text + at, end - at, hidden);
		hidden |= end < bytes && text[end] == '\0';
		at = end + 1;
	}
	if (!d->typed)
		inspect_found(d->in, INSPECT_SUBFORMAT, off, "the descriptor does not say what type of disk it is");
	if (d->nr_extents == 0)
		inspect_found(d->in, INSPECT_DESCRIPTOR, off, "the descriptor has no extents");
	else if (d->embedded && d->nr_extents > 1)
		inspect_found(d->in, INSPECT_DESCRIPTOR, off, "%u extents in a disk of one file", d->nr_extents);
}

static int descriptor(struct inspector *in, struct node *file, bool embedded, uint64_t off, uint64_t bytes,
		      struct img_error *err)
{
	struct descriptor d = { .in = in, .embedded = embedded };
	char *text;
	int ret;

	if (bytes > DESCRIPTOR_MAX_BYTES) {
		inspect_found(in, INSPECT_DESCRIPTOR, off,
			      "a descriptor of %" PRIu64 " bytes: only the first %" PRIu64 " are judged", bytes,
			      DESCRIPTOR_MAX_BYTES);
		bytes = DESCRIPTOR_MAX_BYTES;
	}
	bytes = min_u64(bytes, off < node_size(file) ? node_size(file) - off : 0);
	text = malloc((size_t)bytes + 1);
	if (!text)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = inspect_read(file, text, bytes, off, err);
	if (ret == 0)
		judge_text(&d, text, (size_t)bytes, off);
	free(text);
	return ret;
}

/* ---- sparse extents ---------------------------------------------------------------------------------------------- */

struct mapping {
	uint64_t nr, nr_bad, first_bad; /* entries; first_bad: where in the file */
};

/* Entries of one table. */
static void count_entries(const struct vmdk_header *h, const struct vmdk_tables *t, const uint8_t *table, uint64_t off,
			  uint64_t file_bytes, struct mapping *m)
{
	for (uint64_t i = 0; i < h->nr_gtes; i++) {
		uint32_t entry = le32_at(table, (size_t)i * VMDK_GTE_BYTES);
		uint64_t at = (uint64_t)entry * VMDK_SECTOR_BYTES;

		if (entry == 0 || (entry == VMDK_GTE_ZERO && h->flags & VMDK_ZERO_GRAINS))
			continue;
		m->nr++;
		if (range_inside(at, h->grain_bytes, file_bytes) && !vmdk_tables_take(t, at, h->grain_bytes))
			continue;
		if (m->nr_bad++ == 0)
			m->first_bad = off + i * VMDK_GTE_BYTES;
	}
}

static int look_at_tables(struct inspector *in, struct node *file, const struct vmdk_header *h, struct vmdk_tables *t,
			  struct img_error *err)
{
	uint64_t size = node_size(file);
	struct mapping m = { 0 };
	uint8_t *table = malloc((size_t)t->table_bytes);
	int ret = table ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t i = 0; i < t->nr && ret == 0 && !inspect_over(in); i++) {
		uint64_t off = (uint64_t)t->place[i] * VMDK_SECTOR_BYTES;

		if (off == 0)
			continue;
		if (!range_inside(off, t->table_bytes, size)) {
			inspect_found(in, INSPECT_TABLE_BOUNDS, h->gd_off + i * VMDK_GDE_BYTES,
				      "a grain table at 0x%" PRIx64 ", outside the file", off);
			continue;
		}
		ret = inspect_read(file, table, t->table_bytes, off, err);
		if (ret == 0)
			count_entries(h, t, table, off, size, &m);
	}
	free(table);
	if (m.nr_bad > 0)
		inspect_found(in, INSPECT_ENTRY_BOUNDS, m.first_bad,
			      "%" PRIu64 " grains lie outside the file, or over its tables", m.nr_bad);
	if (t->overlap)
		inspect_found(in, INSPECT_TABLE_OVERLAP, h->gd_off,
			      "header, descriptor, directories and tables lie over each other");
	inspect_expansion(in, m.nr * h->grain_bytes, size, h->gd_off, "the grain tables");
	return ret;
}

static int mapping(struct inspector *in, struct node *file, const struct vmdk_header *h, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct vmdk_tables t;
	int ret;

	if (h->gd_off == VMDK_AT_END) {
		inspect_found(in, INSPECT_TABLE_BOUNDS, offsetof(struct disk_vmdk_header, gd_off),
			      "no grain directory");
		return 0;
	}
	if (vmdk_header_judge(h, node_size(file), file->path, &why) != 0) {
		inspect_found(in, INSPECT_TABLE_BOUNDS, why.offset, "%s", why.msg);
		return 0;
	}
	if (inspect_limit(in, BUDGET_METADATA, vmdk_tables_cost(h), offsetof(struct disk_vmdk_header, capacity)))
		return 0;
	ret = vmdk_tables_load(file, h, false, NULL, &t, err);
	if (ret != 0)
		return ret;
	ret = look_at_tables(in, file, h, &t, err);
	vmdk_tables_free(&t);
	return ret;
}

/* Marker, header, end marker: the last three sectors. */
static int footer(struct inspector *in, struct node *file, const struct disk_vmdk_header *head, struct img_error *err)
{
	uint64_t size = node_size(file), at = size >= 3 * SECTOR ? size - 3 * SECTOR : 0;
	bool promised = le64_get(head->gd_off) == VMDK_AT_END;
	uint8_t buf[3 * 512];
	struct disk_vmdk_header f;
	struct le32 type;
	int ret = inspect_read(file, buf, sizeof(buf), at, err);

	if (ret != 0)
		return ret;
	memcpy(&f, buf + SECTOR, sizeof(f));
	memcpy(&type, buf + 12, sizeof(type));
	if (memcmp(f.magic, "KDMV", 4) != 0) {
		if (promised)
			inspect_found(in, INSPECT_HEAD_TAIL, at, "the footer that the header promises is missing");
		return 0;
	}
	if (le32_get(f.version) != le32_get(head->version) || le64_get(f.capacity) != le64_get(head->capacity) ||
	    le64_get(f.descriptor_off) != le64_get(head->descriptor_off) ||
	    le64_get(f.descriptor_sectors) != le64_get(head->descriptor_sectors) || le64_get(f.gd_off) == VMDK_AT_END)
		inspect_found(in, INSPECT_HEAD_TAIL, at + SECTOR, "the footer says something else than the header");
	if (le32_get(type) != VMDK_MARKER_FOOTER || !is_zero(buf + 8, 4) || !is_zero(buf + 16, 496) ||
	    !is_zero(buf + 2 * SECTOR, SECTOR))
		inspect_found(in, INSPECT_HEAD_TAIL, at, "the markers around the footer are wrong");
	return 0;
}

/* What the header says of where things are. */
static int look_at_header(struct inspector *in, struct node *file, const struct disk_vmdk_header *d,
			  struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct vmdk_header h;
	int ret = vmdk_header_decode(d, 0, file->path, &h, &why);

	if (ret == IMG_E_UNSUPPORTED && why.offset == offsetof(struct disk_vmdk_header, flags))
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, why.offset, "%s", why.msg);
	else if (ret != 0 && why.offset != offsetof(struct disk_vmdk_header, version))
		inspect_found(in, INSPECT_BAD_HEADER, why.offset, "%s", why.msg);
	if (ret != 0)
		return 0;
	if (h.flags & VMDK_COMPRESSED)
		return vmdk_stream_inspect(file, in, &h, err);
	/* Without grains that are compressed nothing is to be at the end, which some readers believe all the same. */
	ret = footer(in, file, d, err);
	return ret == 0 ? mapping(in, file, &h, err) : ret;
}

static int sparse(struct inspector *in, struct node *file, struct img_error *err)
{
	struct disk_vmdk_header h;
	uint64_t off = 0, bytes = 0;
	int ret = inspect_read(file, &h, sizeof(h), 0, err);

	if (ret != 0)
		return ret;
	if (le32_get(h.version) < 1 || le32_get(h.version) > VMDK_VERSION_MAX)
		inspect_found(in, INSPECT_BAD_HEADER, 4, "version %" PRIu32 " of a sparse extent", le32_get(h.version));
	if (le64_get(h.capacity) > INT64_MAX / SECTOR) {
		inspect_found(in, INSPECT_BAD_HEADER, 12, "a disk of %" PRIu64 " sectors", le64_get(h.capacity));
		return 0;
	}
	in->out->virtual_bytes = le64_get(h.capacity) * SECTOR;
	inspect_limit(in, BUDGET_VIRTUAL, in->out->virtual_bytes, 12);
	if (le64_get(h.capacity) == 0)
		inspect_found(in, INSPECT_EXTENT_FILE, 12,
			      "a capacity of 0: readers take the extents of the descriptor instead");
	if (h.unclean)
		inspect_found(in, INSPECT_DIRTY, offsetof(struct disk_vmdk_header, unclean),
			      "the last writer did not close it");
	ret = look_at_header(in, file, &h, err);
	if (ret != 0)
		return ret;
	if (mul_overflows(le64_get(h.descriptor_off), SECTOR, &off) ||
	    mul_overflows(le64_get(h.descriptor_sectors), SECTOR, &bytes) || off != DESCRIPTOR_PLACE || bytes == 0) {
		inspect_found(in, INSPECT_DESCRIPTOR, 28, "the descriptor is not at its place, but in sector %" PRIu64,
			      le64_get(h.descriptor_off));
		if (le64_get(h.descriptor_off) == 0 || off >= node_size(file))
			return 0;
		bytes = max_u64(bytes, SECTOR);
	}
	return descriptor(in, file, true, off, bytes, err);
}

/* An extent of ESX: no disk by itself, and it may have the name of a parent. */
static int cowd(struct inspector *in, struct node *file, struct img_error *err)
{
	uint8_t name[COWD_PARENT_BYTES];
	size_t length;
	int ret = inspect_read(file, name, sizeof(name), COWD_PARENT_NAME, err);

	if (ret != 0)
		return ret;
	inspect_found(in, INSPECT_SUBFORMAT, 0, "an extent of ESX, which is no disk by itself");
	for (length = 0; length < sizeof(name) && name[length] >= ' ' && name[length] < 0x7f; length++)
		;
	if (length >= 4)
		inspect_reference(in, INSPECT_PARENT, name, length, COWD_PARENT_NAME, "a parent");
	return 0;
}

int vmdk_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	uint8_t magic[4];
	int ret = inspect_read(file, magic, sizeof(magic), 0, err);

	if (ret != 0)
		return ret;
	if (memcmp(magic, "KDMV", 4) == 0)
		return sparse(in, file, err);
	if (memcmp(magic, "COWD", 4) == 0)
		return cowd(in, file, err);
	if (memcmp(magic, "\xbe\xba\xfe\xca", 4) == 0) {
		inspect_found(in, INSPECT_SUBFORMAT, 0, "a seSparse extent, which is no disk by itself");
		return 0;
	}
	return descriptor(in, file, false, 0, node_size(file), err);
}
