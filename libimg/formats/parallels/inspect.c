/* SPDX-License-Identifier: MIT */
/* What a stranger's header says beyond what check looks for. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "inspect.h"
#include "prl_descriptor.h"
#include "prl.h"

#define CHUNK_ENTRIES 16384u

/* The table, in pieces: how much it leads to, and whether it leads anywhere. */
static int look_at_table(struct inspector *in, struct node *file, const struct prl_header *h, struct img_error *err)
{
	struct le32 *buf = malloc(CHUNK_ENTRIES * sizeof(*buf));
	uint64_t nr_data = 0, nr_bad = 0, bad = 0;
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t at = 0; at < h->nr_entries && ret == 0 && !inspect_over(in); at += CHUNK_ENTRIES) {
		uint64_t n = min_u64(h->nr_entries - at, CHUNK_ENTRIES);

		ret = inspect_read(file, buf, n * sizeof(*buf), PRL_TABLE_OFF + at * sizeof(*buf), err);
		for (uint64_t i = 0; i < n && ret == 0; i++) {
			uint64_t off = le32_get(buf[i]) * prl_unit_bytes(h);

			if (off == 0)
				continue;
			nr_data++;
			if (off < h->data_off || off >= node_size(file))
				bad = nr_bad++ == 0 ? PRL_TABLE_OFF + (at + i) * sizeof(*buf) : bad;
		}
	}
	free(buf);
	if (nr_bad > 0)
		inspect_found(in, INSPECT_ENTRY_BOUNDS, bad, "%" PRIu64 " clusters lie outside of the data area",
			      nr_bad);
	inspect_expansion(in, nr_data * h->cluster_bytes, node_size(file), PRL_TABLE_OFF, "the block table");
	if ((h->flags & PRL_FLAG_EMPTY) && nr_data > 0)
		inspect_found(in, INSPECT_INCONSISTENT, PRL_AT(flags), "marked as empty, with %" PRIu64 " clusters",
			      nr_data);
	return ret;
}

static int look_at_ext(struct inspector *in, struct node *file, const struct prl_header *h, struct img_error *err)
{
	struct prl_ext x;
	int ret = prl_ext_load(file, h, in->path, &in->budget, &x, err);

	if (ret != 0)
		return ret;
	free(x.taken);
	if (x.damage[0])
		inspect_found(in, INSPECT_BAD_EXTENSION, x.damage_off, "the Format Extension: %s", x.damage);
	if (x.nr_bitmaps > 0)
		inspect_found(in, INSPECT_BITMAPS, h->ext_off, "%" PRIu64 " dirty bitmaps", x.nr_bitmaps);
	if (x.nr_other > 0)
		inspect_found(in, INSPECT_UNKNOWN_EXTENSION, h->ext_off,
			      "%" PRIu64 " unknown sections of the Format Extension", x.nr_other);
	return 0;
}

static void look_at_header(struct inspector *in, const struct prl_header *h)
{
	in->out->virtual_bytes = prl_disk_bytes(h);
	inspect_limit(in, BUDGET_VIRTUAL, in->out->virtual_bytes, PRL_AT(nr_sectors));
	if (h->in_use == PRL_IN_USE)
		inspect_found(in, INSPECT_DIRTY, PRL_AT(in_use), "the last writer did not close it");
	if (h->high_sectors)
		inspect_found(in, INSPECT_INCONSISTENT, PRL_AT(nr_sectors),
			      "a size of more than 32 bits, of which some readers take the low half");
	if (h->flags & ~PRL_FLAG_EMPTY)
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, PRL_AT(flags), "flags 0x%" PRIx32, h->flags);
}

/* A descriptor names all files of its disk; none of them is looked at. */
static int look_at_descriptor(struct inspector *in, struct node *file, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct prl_descriptor d;
	int ret = prl_descriptor_load(file, in->path, &in->budget, &d, &why);

	if (ret == IMG_E_CORRUPT || ret == IMG_E_UNSUPPORTED || ret == IMG_E_LIMIT) {
		inspect_found(in,
			      ret == IMG_E_LIMIT   ? INSPECT_LIMIT :
			      d.encrypted	   ? INSPECT_ENCRYPTED :
			      ret == IMG_E_CORRUPT ? INSPECT_DESCRIPTOR :
						     INSPECT_UNKNOWN_FEATURE,
			      why.offset, "%s", why.msg);
		ret = 0;
	} else if (ret != 0 && err) {
		*err = why;
	}
	in->out->virtual_bytes = d.disk_bytes;
	if (ret == 0)
		inspect_limit(in, BUDGET_VIRTUAL, d.disk_bytes, NO_OFFSET);
	for (size_t i = 0; i < d.nr_storages && ret == 0; i++)
		for (size_t k = 0; k < d.storage[i].nr_parts && !inspect_over(in); k++) {
			const char *name = d.storage[i].part[k].file;

			if (name)
				inspect_reference(in, INSPECT_EXTENT_FILE, (const uint8_t *)name, strlen(name),
						  NO_OFFSET, "an image of the disk");
		}
	prl_descriptor_free(&d);
	return ret;
}

int prl_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct prl_header h;
	char first = 0;
	int ret = inspect_read(file, &first, 1, 0, err);

	if (ret == 0 && first != PRL_MAGIC_V1[0])
		return look_at_descriptor(in, file, err);
	if (ret == 0)
		ret = prl_header_load(file, &h, &why);
	if (ret == IMG_E_CORRUPT || ret == IMG_E_UNSUPPORTED) {
		enum inspect_id id = INSPECT_BAD_HEADER;

		if (why.offset == PRL_AT(nr_entries) || why.offset == PRL_AT(data_off))
			id = INSPECT_TABLE_BOUNDS;
		inspect_found(in, id, why.offset, "%s", why.msg);
		return 0;
	}
	if (ret != 0) {
		if (err)
			*err = why;
		return ret;
	}
	look_at_header(in, &h);
	ret = look_at_table(in, file, &h, err);
	return ret == 0 && h.ext_off ? look_at_ext(in, file, &h, err) : ret;
}
