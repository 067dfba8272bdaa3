/* SPDX-License-Identifier: MIT */
/*
 * A descriptor's text to what it says. One pass over the elements (xml.h), each with its place in the table below; then
 * the whole is judged: storages (PRL-11), what is not supported (PRL-12), shots (PRL-13).
 */
#include "prl_descriptor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "is_zero.h"
#include "node.h"
#include "xml.h"

#define LAYER	     "parallels"
#define TEXT_MAX     1024u
#define FILE_MAX     (UINT64_C(4) << 20) /* bytes of a descriptor; one shot of one storage takes some 300 */
#define SHOTS_MAX    4096u
#define SECTOR_BYTES 512u

const uint8_t prl_guid_head[16] = { 0x5f, 0xba, 0xab, 0xe3, 0x69, 0x58, 0x40, 0xff,
				    0x92, 0xa7, 0x86, 0x0e, 0x32, 0x9a, 0xab, 0x41 };

enum element {
	NOTHING,
	ROOT,
	PARAMETERS,
	DISK_SIZE,
	CYLINDERS,
	HEADS,
	SECTORS,
	PADDING,
	SECTOR_SIZE,
	UID,
	ENCRYPTION,
	ENGINE,
	STORAGE_DATA,
	STORAGE,
	START,
	END,
	BLOCKSIZE,
	IMAGE,
	IMAGE_GUID,
	IMAGE_TYPE,
	IMAGE_FILE,
	SNAPSHOTS,
	TOP_GUID,
	SHOT,
	SHOT_GUID,
	SHOT_PARENT,
	OTHER,
};

static const struct {
	enum element in, element;
	const char *name;
	bool many;
} elements[] = {
	{ NOTHING, ROOT, "Parallels_disk_image", false },
	{ ROOT, PARAMETERS, "Disk_Parameters", false },
	{ PARAMETERS, DISK_SIZE, "Disk_size", false },
	{ PARAMETERS, CYLINDERS, "Cylinders", false },
	{ PARAMETERS, HEADS, "Heads", false },
	{ PARAMETERS, SECTORS, "Sectors", false },
	{ PARAMETERS, PADDING, "Padding", false },
	{ PARAMETERS, SECTOR_SIZE, "LogicSectorSize", false },
	{ PARAMETERS, UID, "UID", false },
	{ PARAMETERS, ENCRYPTION, "Encryption", false },
	{ ENCRYPTION, ENGINE, "Engine", false },
	{ ROOT, STORAGE_DATA, "StorageData", false },
	{ STORAGE_DATA, STORAGE, "Storage", true },
	{ STORAGE, START, "Start", false },
	{ STORAGE, END, "End", false },
	{ STORAGE, BLOCKSIZE, "Blocksize", false },
	{ STORAGE, IMAGE, "Image", true },
	{ IMAGE, IMAGE_GUID, "GUID", false },
	{ IMAGE, IMAGE_TYPE, "Type", false },
	{ IMAGE, IMAGE_FILE, "File", false },
	{ ROOT, SNAPSHOTS, "Snapshots", false },
	{ SNAPSHOTS, TOP_GUID, "TopGUID", false },
	{ SNAPSHOTS, SHOT, "Shot", true },
	{ SHOT, SHOT_GUID, "GUID", false },
	{ SHOT, SHOT_PARENT, "ParentGUID", false },
};

struct parser {
	struct xml x;
	struct prl_descriptor *d;
	struct img_error *err;
	struct {
		enum element element;
		uint32_t seen; /* elements in it */
	} open[XML_MAX_DEPTH + 1];
	unsigned depth;
	char text[TEXT_MAX]; /* of the innermost element */
	size_t text_bytes;
};

static int corrupt(const struct parser *p, const char *what)
{
	return error_set(p->err, IMG_E_CORRUPT, 0, (uint64_t)(p->x.at - p->x.begin), LAYER, "the descriptor %s", what);
}

/* ---- GUIDs ------------------------------------------------------------------------------------------------------- */

void prl_guid_text(const uint8_t *g, char out[PRL_GUID_TEXT_BYTES])
{
	(void)snprintf(out, PRL_GUID_TEXT_BYTES,
		       "{%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x}", g[0], g[1], g[2], g[3],
		       g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool prl_guid_parse(const char *text, uint8_t *out)
{
	bool braces = text[0] == '{';
	unsigned n = 0;

	text += braces;
	for (unsigned i = 0; i < 36; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		int high, low;

		if (dash && text[i] == '-')
			continue;
		high = hex_digit(text[i]);
		low = high < 0 ? -1 : hex_digit(text[i + 1]);
		if (dash || low < 0)
			return false;
		out[n++] = (uint8_t)(high << 4 | low);
		i++;
	}
	return strcmp(text + 36, braces ? "}" : "") == 0;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static int take_number(struct parser *p, uint64_t *out)
{
	uint64_t n = 0;

	if (p->text[0] == '\0')
		return corrupt(p, "lacks a number");
	for (const char *c = p->text; *c; c++)
		if (*c < '0' || *c > '9' || mul_overflows(n, 10, &n) || add_overflows(n, (uint64_t)(*c - '0'), &n))
			return corrupt(p, "has something else where a number belongs");
	*out = n;
	return 0;
}

static int take_bytes(struct parser *p, uint64_t *out)
{
	int ret = take_number(p, out);

	if (ret == 0 && (mul_overflows(*out, SECTOR_BYTES, out) || *out > INT64_MAX))
		return corrupt(p, "has a number of sectors that is too large");
	return ret;
}

static int take_guid(struct parser *p, uint8_t *out)
{
	return prl_guid_parse(p->text, out) ? 0 : corrupt(p, "has something else where a GUID belongs");
}

static int take_type(struct parser *p, struct prl_part *part)
{
	part->plain = strcmp(p->text, "Plain") == 0;
	return part->plain || strcmp(p->text, "Compressed") == 0 ? 0 : corrupt(p, "has an image of an unknown type");
}

static int take_file(struct parser *p, struct prl_part *part)
{
	if (p->text[0] == '\0')
		return corrupt(p, "has an image without a file");
	part->file = strdup(p->text);
	return part->file ? 0 : error_set(p->err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static int take_engine(struct parser *p)
{
	static const uint8_t none[16];
	uint8_t guid[16];

	if (p->text[0] == '\0')
		return 0;
	p->d->encrypted = !prl_guid_parse(p->text, guid) || memcmp(guid, none, 16) != 0;
	return 0;
}

static struct prl_storage *last_storage(const struct prl_descriptor *d)
{
	return &d->storage[d->nr_storages - 1];
}

static struct prl_part *last_part(const struct prl_descriptor *d)
{
	return &last_storage(d)->part[last_storage(d)->nr_parts - 1];
}

static struct prl_shot *last_shot(const struct prl_descriptor *d)
{
	return &d->shot[d->nr_shots - 1];
}

/* An element that holds text is over. */
static int take_value(struct parser *p, enum element element)
{
	struct prl_descriptor *d = p->d;

	switch ((int)element) {
	case DISK_SIZE: return take_bytes(p, &d->disk_bytes);
	case CYLINDERS: return take_number(p, &d->cylinders);
	case HEADS: return take_number(p, &d->heads);
	case SECTORS: return take_number(p, &d->sectors);
	case PADDING: return take_number(p, &d->padding);
	case SECTOR_SIZE: return take_number(p, &d->sector_bytes);
	case UID: d->has_uid = prl_guid_parse(p->text, d->uid); return 0;
	case ENGINE: return take_engine(p);
	case START: return take_bytes(p, &last_storage(d)->start);
	case END: return take_bytes(p, &last_storage(d)->end);
	case BLOCKSIZE: return take_bytes(p, &last_storage(d)->cluster_bytes);
	case IMAGE_GUID: return take_guid(p, last_part(d)->guid);
	case IMAGE_TYPE: return take_type(p, last_part(d));
	case IMAGE_FILE: return take_file(p, last_part(d));
	case TOP_GUID: d->has_top = true; return take_guid(p, d->top);
	case SHOT_GUID: return take_guid(p, last_shot(d)->guid);
	case SHOT_PARENT: return take_guid(p, last_shot(d)->parent_guid);
	default: return 0;
	}
}

/* ---- elements ---------------------------------------------------------------------------------------------------- */

/* One more at the end of an array, zeroed. Its memory grows no faster than the text. */
static void *one_more(const struct parser *p, void **array, size_t *nr, size_t bytes)
{
	void *grown = realloc(*array, (*nr + 1) * bytes);

	if (!grown) {
		error_set(p->err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		return NULL;
	}
	*array = grown;
	return memset((uint8_t *)grown + (*nr)++ * bytes, 0, bytes);
}

static int begin_element(struct parser *p, enum element element)
{
	struct prl_descriptor *d = p->d;
	void *array = NULL, *made = NULL;

	if (element == STORAGE) {
		array = d->storage;
		made = one_more(p, &array, &d->nr_storages, sizeof(*d->storage));
		d->storage = array;
	} else if (element == IMAGE) {
		struct prl_storage *s = last_storage(d);

		if (s->nr_parts == SHOTS_MAX)
			return error_set(p->err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
					 "the descriptor has a storage with more than %u images", SHOTS_MAX);
		array = s->part;
		made = one_more(p, &array, &s->nr_parts, sizeof(*s->part));
		s->part = array;
	} else if (element == SHOT) {
		if (d->nr_shots == SHOTS_MAX)
			return error_set(p->err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
					 "the descriptor has more than %u snapshots", SHOTS_MAX);
		array = d->shot;
		made = one_more(p, &array, &d->nr_shots, sizeof(*d->shot));
		d->shot = array;
	} else {
		return 0;
	}
	return made ? 0 : IMG_E_NOMEM;
}

static int open_element(struct parser *p)
{
	enum element in = p->open[p->depth].element, element = OTHER;
	bool many = true;

	for (size_t i = 0; i < ARRAY_LEN(elements); i++)
		if (elements[i].in == in && xml_is(p->x.name, elements[i].name)) {
			element = elements[i].element;
			many = elements[i].many;
		}
	if (p->depth == 0 && element != ROOT)
		return corrupt(p, "is one of something else");
	if (!many && (p->open[p->depth].seen & UINT32_C(1) << element))
		return corrupt(p, "has an element twice that belongs there once");
	p->open[p->depth].seen |= UINT32_C(1) << element;
	p->depth++;
	p->open[p->depth].element = element;
	p->open[p->depth].seen = 0;
	p->text[0] = '\0';
	p->text_bytes = 0;
	return begin_element(p, element);
}

static int add_text(struct parser *p)
{
	long n;

	if (p->open[p->depth].element == OTHER)
		return 0;
	n = xml_decode(&p->x, p->text + p->text_bytes, TEXT_MAX - p->text_bytes);
	if (n < 0)
		return corrupt(p, "has a text that is too long, or with what is not understood");
	p->text_bytes += (size_t)n;
	return 0;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static void trim(struct parser *p)
{
	size_t first = 0;

	while (p->text_bytes > 0 && is_blank(p->text[p->text_bytes - 1]))
		p->text_bytes--;
	while (first < p->text_bytes && is_blank(p->text[first]))
		first++;
	p->text_bytes -= first;
	memmove(p->text, p->text + first, p->text_bytes);
	p->text[p->text_bytes] = '\0';
}

static int close_element(struct parser *p)
{
	int ret;

	trim(p);
	ret = take_value(p, p->open[p->depth].element);
	p->depth--;
	p->text[0] = '\0';
	p->text_bytes = 0;
	return ret;
}

static int parse(struct parser *p)
{
	for (;;) {
		int ret;

		switch (xml_next(&p->x)) {
		case XML_OPEN: ret = open_element(p); break;
		case XML_CLOSE: ret = close_element(p); break;
		case XML_TEXT: ret = add_text(p); break;
		case XML_DONE: return 0;
		case XML_BAD:
		default: return corrupt(p, "is not well-formed, or holds what is not understood");
		}
		if (ret != 0)
			return ret;
	}
}

bool prl_descriptor_is(const void *head, size_t bytes)
{
	static const char root[] = "<Parallels_disk_image", mark[] = "\xef\xbb\xbf";
	const char *at = head, *end = at + bytes;

	if (bytes >= 3 && memcmp(at, mark, 3) == 0)
		at += 3;
	while (at < end && is_blank(*at))
		at++;
	/* What comes before may be anything: that it is well-formed is judged by who opens it, and never as raw. */
	return at < end && *at == '<' && memmem(at, (size_t)(end - at), root, sizeof(root) - 1) != NULL;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

const struct prl_part *prl_part_of(const struct prl_storage *s, const uint8_t *guid)
{
	for (size_t i = 0; i < s->nr_parts; i++)
		if (memcmp(s->part[i].guid, guid, 16) == 0)
			return &s->part[i];
	return NULL;
}

static size_t find_shot(const struct prl_descriptor *d, const uint8_t *guid)
{
	for (size_t i = 0; i < d->nr_shots; i++)
		if (memcmp(d->shot[i].guid, guid, 16) == 0)
			return i;
	return PRL_NO_SHOT;
}

size_t prl_shot_named(const struct prl_descriptor *d, const char *name)
{
	uint8_t guid[16];

	return prl_guid_parse(name, guid) ? find_shot(d, guid) : PRL_NO_SHOT;
}

static int by_start(const void *a, const void *b)
{
	const struct prl_storage *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* PRL-11 */
static int judge_storages(const struct parser *p)
{
	struct prl_descriptor *d = p->d;
	uint64_t at = 0;

	if (d->nr_storages == 0)
		return corrupt(p, "has no storages");
	qsort(d->storage, d->nr_storages, sizeof(*d->storage), by_start);
	for (size_t i = 0; i < d->nr_storages; i++) {
		const struct prl_storage *s = &d->storage[i];

		if (s->start != at || s->end <= s->start)
			return corrupt(p, "has storages that overlap, or leave something out");
		at = s->end;
		for (size_t k = 0; k < s->nr_parts; k++) {
			if (!s->part[k].file)
				return corrupt(p, "has an image without a file");
			if (prl_part_of(s, s->part[k].guid) != &s->part[k])
				return corrupt(p, "has two images of one storage with one GUID");
		}
	}
	if (at != d->disk_bytes)
		return error_set(p->err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "the descriptor says that the disk has 0x%" PRIx64
				 " bytes, but its storages have 0x%" PRIx64,
				 d->disk_bytes, at);
	return 0;
}

/* Ids so that parents come before children: each round numbers those whose parent has a number. */
static int number_shots(const struct parser *p)
{
	struct prl_descriptor *d = p->d;
	uint64_t id = 0, before;

	d->by_id = calloc(d->nr_shots, sizeof(*d->by_id));
	if (!d->by_id)
		return error_set(p->err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	do {
		before = id;
		for (size_t i = 0; i < d->nr_shots; i++) {
			struct prl_shot *s = &d->shot[i];

			if (s->id == 0 && (s->parent == PRL_NO_SHOT || d->shot[s->parent].id != 0)) {
				d->by_id[id] = i;
				s->id = ++id;
			}
		}
	} while (id != before);
	return id == d->nr_shots ? 0 : corrupt(p, "has snapshots that stand on themselves");
}

/* PRL-13 */
static int judge_shots(const struct parser *p)
{
	struct prl_descriptor *d = p->d;

	for (size_t i = 0; i < d->nr_shots; i++) {
		struct prl_shot *s = &d->shot[i];
		bool root = is_zero(s->parent_guid, 16);

		if (is_zero(s->guid, 16))
			return corrupt(p, "has a snapshot without a GUID");
		if (find_shot(d, s->guid) != i)
			return corrupt(p, "has two snapshots with one GUID");
		s->parent = root ? PRL_NO_SHOT : find_shot(d, s->parent_guid);
		if (!root && s->parent == PRL_NO_SHOT)
			return corrupt(p, "has a snapshot whose parent is not there");
	}
	d->head = find_shot(d, d->has_top ? d->top : prl_guid_head);
	if (d->head == PRL_NO_SHOT)
		return corrupt(p, "does not say which snapshot is the present state");
	for (size_t i = 0; i < d->nr_shots; i++)
		if (d->shot[i].parent == d->head)
			return corrupt(p, "has a snapshot that stands on the present state");
	return number_shots(p);
}

/* PRL-12 */
static int judge_supported(const struct prl_descriptor *d, struct img_error *err)
{
	if (d->encrypted)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "the disk is encrypted, which is not supported: decrypt it with Parallels");
	if (d->padding != 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "the descriptor says Padding %" PRIu64
				 ": such disks are not documented, and not opened",
				 d->padding);
	if (d->sector_bytes != 0 && d->sector_bytes != SECTOR_BYTES)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "sectors of %" PRIu64 " bytes are not supported", d->sector_bytes);
	return 0;
}

static int load_text(struct node *file, const char *path, struct budget *budget, char **out, size_t *bytes,
		     struct img_error *err)
{
	uint64_t size = node_size(file);
	int ret;

	if (size == 0 || size > FILE_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "a descriptor of %" PRIu64 " bytes", size);
	/* The text, and what is made of it. */
	ret = budget_metadata(budget, path, 2 * size, err);
	if (ret != 0)
		return ret;
	*out = malloc((size_t)size);
	if (!*out)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	*bytes = (size_t)size;
	return node_pread(file, *out, size, 0, 0, err);
}

int prl_descriptor_load(struct node *file, const char *path, struct budget *budget, struct prl_descriptor *out,
			struct img_error *err)
{
	struct parser *p = calloc(1, sizeof(*p));
	char *text = NULL;
	size_t bytes = 0;
	int ret;

	*out = (struct prl_descriptor){ .head = PRL_NO_SHOT };
	if (!p)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	p->d = out;
	p->err = err;
	ret = load_text(file, path, budget, &text, &bytes, err);
	if (ret == 0) {
		xml_start(&p->x, text, bytes);
		ret = parse(p);
	}
	if (ret == 0)
		ret = budget_snapshots(budget, path, out->nr_shots, err);
	if (ret == 0)
		ret = judge_storages(p);
	if (ret == 0)
		ret = judge_shots(p);
	if (ret == 0)
		ret = judge_supported(out, err);
	free(text);
	free(p);
	return ret;
}

void prl_descriptor_free(struct prl_descriptor *d)
{
	for (size_t i = 0; i < d->nr_storages; i++) {
		for (size_t k = 0; k < d->storage[i].nr_parts; k++)
			free(d->storage[i].part[k].file);
		free(d->storage[i].part);
	}
	free(d->storage);
	free(d->shot);
	free(d->by_id);
	*d = (struct prl_descriptor){ .head = PRL_NO_SHOT };
}
