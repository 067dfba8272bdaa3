/* SPDX-License-Identifier: MIT */
/*
 * The descriptor, read. Text of lines in any order, of any size up to the budget, with any line ends; it ends with its
 * first NUL. A line is blank, a comment (#), an extent (ACCESS SECTORS KIND "NAME" OFFSET) or KEY = VALUE. A line that
 * is none of these may be an extent that this library does not know, and leaving one out would show another disk: it is
 * refused. So is a key that decides what the disk is and is given twice. Rules: VMDK-10 to VMDK-16.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vmdk.h"

#define FIRST_LINE  "# Disk DescriptorFile"
#define VERSION_MAX 4u
/* What a line of an extent may cost in memory for each of its bytes in the text. */
#define COST_PER_BYTE 8u

const char *const vmdk_extent_words[VMDK_EXTENT_KINDS] = { "FLAT",	 "SPARSE",   "ZERO",   "VMFS",
							   "VMFSSPARSE", "SESPARSE", "VMFSRDM" };
const char *const vmdk_access_words[3] = { "RW", "RDONLY", "NOACCESS" };

/* A piece of the text. */
struct span_text {
	const char *at;
	size_t bytes;
};

struct parser {
	const char *path;
	struct vmdk_descriptor *d;
	uint64_t line_off; /* in the file */
	size_t cap;	   /* of extents */
	bool has_version, has_parent_cid;
	struct img_error *err;
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static struct span_text trim(struct span_text t)
{
	while (t.bytes > 0 && is_blank(t.at[0])) {
		t.at++;
		t.bytes--;
	}
	while (t.bytes > 0 && is_blank(t.at[t.bytes - 1]))
		t.bytes--;
	return t;
}

static bool is_word(struct span_text t, const char *word)
{
	return t.bytes == strlen(word) && strncasecmp(t.at, word, t.bytes) == 0;
}

/* Takes the next word off t. */
static struct span_text next_word(struct span_text *t)
{
	struct span_text w;

	*t = trim(*t);
	w = (struct span_text){ t->at, 0 };
	while (w.bytes < t->bytes && !is_blank(t->at[w.bytes]))
		w.bytes++;
	t->at += w.bytes;
	t->bytes -= w.bytes;
	return w;
}

static char *copy_of(struct span_text t)
{
	return strndup(t.at, t.bytes);
}

static int bad_line(struct parser *p, struct span_text line, const char *what)
{
	return error_set(p->err, IMG_E_CORRUPT, 0, p->line_off, LAYER, "%s: the descriptor %s: '%.*s'", p->path, what,
			 (int)min_u64(line.bytes, 60), line.at);
}

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static bool number(struct span_text t, unsigned base, uint64_t *out)
{
	uint64_t v = 0;

	if (t.bytes == 0 || t.bytes > 20)
		return false;
	for (size_t i = 0; i < t.bytes; i++) {
		char c = t.at[i];
		unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0') :
				 c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 :
				 c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10 :
							99;

		if (digit >= base || mul_overflows(v, base, &v) || add_overflows(v, digit, &v))
			return false;
	}
	*out = v;
	return true;
}

static bool sectors(struct span_text t, uint64_t *bytes)
{
	return number(t, 10, bytes) && !mul_overflows(*bytes, VMDK_SECTOR_BYTES, bytes) && *bytes <= INT64_MAX;
}

/* ---- extents ----------------------------------------------------------------------------------------------------- */

static bool access_of(struct span_text word, enum vmdk_access *out)
{
	for (unsigned i = 0; i < ARRAY_LEN(vmdk_access_words); i++)
		if (is_word(word, vmdk_access_words[i])) {
			*out = (enum vmdk_access)i;
			return true;
		}
	return false;
}

static bool kind_of(struct span_text word, enum vmdk_extent_kind *out)
{
	for (unsigned i = 0; i < VMDK_EXTENT_KINDS; i++)
		if (is_word(word, vmdk_extent_words[i])) {
			*out = (enum vmdk_extent_kind)i;
			return true;
		}
	if (is_word(word, "VMFSRAW") || is_word(word, "VMFSRAWDEVICEMAP") ||
	    is_word(word, "VMFSPASSTHROUGHRAWDEVICEMAP")) {
		*out = VMDK_DEVICE;
		return true;
	}
	return false;
}

static struct vmdk_extent *new_extent(struct parser *p)
{
	struct vmdk_descriptor *d = p->d;

	if (d->nr_extents == p->cap) {
		size_t cap = p->cap ? 2 * p->cap : 4;
		struct vmdk_extent *grown = realloc(d->extents, cap * sizeof(*grown));

		if (!grown)
			return NULL;
		d->extents = grown;
		p->cap = cap;
	}
	d->extents[d->nr_extents] = (struct vmdk_extent){ .line_off = p->line_off };
	return &d->extents[d->nr_extents];
}

/* The name in quotation marks, and what stands behind it. */
static int take_name(struct parser *p, struct span_text line, struct span_text rest, struct vmdk_extent *e)
{
	const char *close;
	struct span_text off;

	rest = trim(rest);
	if (rest.bytes == 0 && e->kind == VMDK_ZERO) {
		e->name = strdup("");
		return e->name ? 0 : no_memory(p->err);
	}
	close = rest.bytes > 1 && rest.at[0] == '"' ? memchr(rest.at + 1, '"', rest.bytes - 1) : NULL;
	if (!close)
		return bad_line(p, line, "has an extent without a name");
	e->name = copy_of((struct span_text){ rest.at + 1, (size_t)(close - rest.at) - 1 });
	if (!e->name)
		return no_memory(p->err);
	rest.bytes -= (size_t)(close - rest.at) + 1;
	rest.at = close + 1;
	off = next_word(&rest);
	if (off.bytes > 0 && !sectors(off, &e->file_off))
		return bad_line(p, line, "has an extent whose offset is no number");
	/* What devices have here does not matter: they are refused anyway. */
	if (trim(rest).bytes > 0 && e->kind != VMDK_DEVICE)
		return bad_line(p, line, "has an extent with more than is understood");
	return 0;
}

static int take_extent(struct parser *p, struct span_text line, enum vmdk_access access, struct span_text rest)
{
	struct span_text size = next_word(&rest), kind = next_word(&rest);
	struct vmdk_extent *e = new_extent(p);
	int ret;

	if (!e)
		return no_memory(p->err);
	e->access = access;
	if (!sectors(size, &e->bytes) || add_overflows(p->d->disk_bytes, e->bytes, &p->d->disk_bytes) ||
	    p->d->disk_bytes > INT64_MAX)
		return bad_line(p, line, "has an extent of no possible size");
	if (!kind_of(kind, &e->kind))
		return error_set(p->err, IMG_E_UNSUPPORTED, 0, p->line_off, LAYER,
				 "%s: an extent of an unknown kind: '%.*s'", p->path, (int)min_u64(line.bytes, 60),
				 line.at);
	ret = take_name(p, line, rest, e);
	if (ret != 0) {
		free(e->name);
		e->name = NULL;
		return ret;
	}
	p->d->nr_extents++;
	return 0;
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

static struct span_text unquoted(struct span_text t)
{
	t = trim(t);
	if (t.bytes >= 2 && t.at[0] == '"' && t.at[t.bytes - 1] == '"')
		return (struct span_text){ t.at + 1, t.bytes - 2 };
	return t;
}

static int take_cid(struct parser *p, struct span_text line, struct span_text value, bool *have, uint32_t *out)
{
	uint64_t v;

	if (!number(value, 16, &v) || v > UINT32_MAX)
		return bad_line(p, line, "has a content id that is none");
	if (*have && *out != v)
		return bad_line(p, line, "gives a content id twice");
	*have = true;
	*out = (uint32_t)v;
	return 0;
}

static int take_text(struct parser *p, struct span_text line, struct span_text value, char **out)
{
	if (*out && (strlen(*out) != value.bytes || memcmp(*out, value.at, value.bytes) != 0))
		return bad_line(p, line, "says the same thing twice, and differently");
	free(*out);
	*out = copy_of(value);
	return *out ? 0 : no_memory(p->err);
}

static int take_type(struct parser *p, struct span_text line, struct span_text value)
{
	char *type = p->d->create_type;

	if (value.bytes == 0 || value.bytes > VMDK_TYPE_MAX)
		return bad_line(p, line, "has a type that is none");
	if (type[0] && (strlen(type) != value.bytes || strncasecmp(type, value.at, value.bytes) != 0))
		return bad_line(p, line, "gives the type of the disk twice");
	memcpy(type, value.at, value.bytes);
	type[value.bytes] = '\0';
	return 0;
}

static int take_version(struct parser *p, struct span_text line, struct span_text value)
{
	uint64_t v;

	if (!number(value, 10, &v) || v < 1)
		return bad_line(p, line, "has a version that is none");
	if (v > VERSION_MAX)
		return error_set(p->err, IMG_E_UNSUPPORTED, 0, p->line_off, LAYER,
				 "%s: a descriptor of version %" PRIu64, p->path, v);
	p->has_version = true;
	return 0;
}

static int take_key(struct parser *p, struct span_text line, struct span_text key, struct span_text value)
{
	struct vmdk_descriptor *d = p->d;

	if (is_word(key, "version"))
		return take_version(p, line, value);
	if (is_word(key, "CID"))
		return take_cid(p, line, value, &d->has_cid, &d->cid);
	if (is_word(key, "parentCID"))
		return take_cid(p, line, value, &p->has_parent_cid, &d->parent_cid);
	if (is_word(key, "createType"))
		return take_type(p, line, value);
	if (is_word(key, "parentFileNameHint"))
		return take_text(p, line, value, &d->parent_hint);
	if (is_word(key, "encoding") || is_word(key, "ddb.encoding"))
		return is_word(key, "encoding") || !d->encoding ? take_text(p, line, value, &d->encoding) : 0;
	return 0;
}

static int take_line(struct parser *p, struct span_text line)
{
	struct span_text rest = line, word;
	enum vmdk_access access;
	const char *sign;

	if (line.bytes == 0 || line.at[0] == '#')
		return 0;
	word = next_word(&rest);
	if (access_of(word, &access))
		return take_extent(p, line, access, rest);
	sign = memchr(line.at, '=', line.bytes);
	if (!sign || sign == line.at)
		return bad_line(p, line, "has a line that is not understood");
	return take_key(p, line, trim((struct span_text){ line.at, (size_t)(sign - line.at) }),
			unquoted((struct span_text){ sign + 1, line.bytes - (size_t)(sign - line.at) - 1 }));
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static int parse_lines(struct parser *p)
{
	const char *text = p->d->text;
	int ret = 0;

	for (size_t at = 0, end; at < p->d->text_bytes && ret == 0; at = end + 1) {
		/* Any of \n, \r\n and \r ends a line. */
		for (end = at; end < p->d->text_bytes && text[end] != '\n' && text[end] != '\r';)
			end++;
		p->line_off = p->d->off + at;
		ret = take_line(p, trim((struct span_text){ text + at, end - at }));
	}
	return ret;
}

static int judge(struct parser *p)
{
	const char *lacks = !p->has_version	  ? "a version" :
			    !p->d->create_type[0] ? "the type of the disk" :
			    p->d->nr_extents == 0 ? "extents" :
						    NULL;

	if (lacks)
		return error_set(p->err, IMG_E_CORRUPT, 0, p->d->off, LAYER, "%s: the descriptor lacks %s", p->path,
				 lacks);
	if (p->d->parent_cid != VMDK_NO_PARENT_CID && !p->d->parent_hint)
		return error_set(p->err, IMG_E_CORRUPT, 0, p->d->off, LAYER,
				 "%s: the descriptor has a parent's content id %08" PRIx32 ", but does not name the "
				 "parent",
				 p->path, p->d->parent_cid);
	return 0;
}

int vmdk_descriptor_parse(const char *text, size_t bytes, uint64_t off, const char *path, struct vmdk_descriptor *out,
			  struct img_error *err)
{
	struct parser p = { .path = path, .d = out, .err = err };
	int ret;

	*out = (struct vmdk_descriptor){ .off = off, .parent_cid = VMDK_NO_PARENT_CID };
	out->text_bytes = strnlen(text, bytes);
	out->text = strndup(text, out->text_bytes);
	if (!out->text)
		return no_memory(err);
	ret = parse_lines(&p);
	if (ret == 0)
		ret = judge(&p);
	if (ret != 0)
		vmdk_descriptor_free(out);
	return ret;
}

int vmdk_descriptor_load(struct node *file, uint64_t off, uint64_t bytes, struct budget *budget,
			 struct vmdk_descriptor *out, struct img_error *err)
{
	uint64_t size = node_size(file);
	char *text;
	int ret;

	memset(out, 0, sizeof(*out));
	bytes = off < size ? min_u64(bytes, size - off) : 0;
	if (bytes > VMDK_DESCRIPTOR_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, off, LAYER, "%s: a descriptor of 0x%" PRIx64 " bytes", file->path,
				 bytes);
	ret = budget_metadata(budget, file->path, bytes * COST_PER_BYTE, err);
	if (ret != 0)
		return ret;
	text = malloc((size_t)bytes + 1);
	if (!text)
		return no_memory(err);
	ret = bytes > 0 ? node_pread(file, text, bytes, off, 0, err) : 0;
	if (ret == 0)
		ret = vmdk_descriptor_parse(text, (size_t)bytes, off, file->path, out, err);
	free(text);
	return ret;
}

void vmdk_descriptor_free(struct vmdk_descriptor *d)
{
	for (size_t i = 0; i < d->nr_extents; i++)
		free(d->extents[i].name);
	free(d->extents);
	free(d->parent_hint);
	free(d->encoding);
	free(d->text);
	memset(d, 0, sizeof(*d));
}

bool vmdk_descriptor_value(const struct vmdk_descriptor *d, const char *key, char *out, size_t cap)
{
	for (size_t at = 0, end; at < d->text_bytes; at = end + 1) {
		struct span_text line, value;
		const char *sign;

		end = at + strcspn(d->text + at, "\r\n");
		line = trim((struct span_text){ d->text + at, end - at });
		sign = memchr(line.at, '=', line.bytes);
		if (!sign || line.at[0] == '#' ||
		    !is_word(trim((struct span_text){ line.at, (size_t)(sign - line.at) }), key))
			continue;
		value = unquoted((struct span_text){ sign + 1, line.bytes - (size_t)(sign - line.at) - 1 });
		if (value.bytes >= cap)
			value.bytes = cap - 1;
		memcpy(out, value.at, value.bytes);
		out[value.bytes] = '\0';
		return true;
	}
	return false;
}

bool vmdk_descriptor_begins(const uint8_t *head, size_t bytes)
{
	return bytes >= strlen(FIRST_LINE) && strncasecmp((const char *)head, FIRST_LINE, strlen(FIRST_LINE)) == 0;
}
