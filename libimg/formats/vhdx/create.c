/* SPDX-License-Identifier: MIT */
/*
 * New images, laid out as Hyper-V does:
 *
 *   signature | two headers | two region tables | log | metadata | table of blocks | blocks
 *
 * Blocks have 32 MiB, Hyper-V's default, and in a difference 2 MiB, which it takes there. The host's holes make large
 * blocks cheap; who copies the file to where there are none wants smaller ones.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "foreign_name.h"
#include "vhdx.h"

#define BLOCK_DEFAULT	 (32 * VHDX_MIB)
#define BLOCK_DIFFERENCE (2 * VHDX_MIB)
#define BATCH_ENTRIES	 8192u
#define CREATOR		 "libimg"

/* Items of metadata, one behind the other; the locator on a sector of its own. */
enum { AT_PARAMETERS = 0, AT_SIZE = 8, AT_LOGICAL = 16, AT_PHYSICAL = 20, AT_PAGE83 = 24, AT_LOCATOR = 4096 };

struct plan {
	struct vhdx_header h;
	struct vhdx_meta m;
	uint64_t data_off;
};

static int make_plan(const struct vhdx_options *o, uint64_t size_bytes, const struct backing_ref *backing,
		     struct plan *p, struct img_error *err)
{
	struct vhdx_meta *m = &p->m;
	const struct pin *id = backing && backing->id.kind == PIN_ID ? &backing->id : NULL;

	*p = (struct plan){ 0 };
	p->h.log = (struct vhdx_range){ VHDX_MIB, o->log_bytes };
	m->disk_bytes = size_bytes;
	m->has_parent = backing != NULL;
	m->leave_blocks = o->fixed;
	m->block_bytes = o->block_bytes ? o->block_bytes : backing ? BLOCK_DIFFERENCE : BLOCK_DEFAULT;
	m->sector_bytes = o->sector_bytes ? o->sector_bytes : id && id->sector_bytes ? id->sector_bytes : 512;
	m->physical_bytes = max_u64(o->physical_bytes, m->sector_bytes) == 512 ? 512 : 4096;
	if (size_bytes == 0 || size_bytes % m->sector_bytes != 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "a VHDX holds whole sectors of %u bytes, at least one, not a disk of %" PRIu64
				 " bytes",
				 m->sector_bytes, size_bytes);
	if (size_bytes > VHDX_DISK_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes is larger than a VHDX can be (64 TiB)", size_bytes);
	if (backing && o->fixed)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "a fixed VHDX holds the whole disk: there can be no backing file");
	vhdx_count_slots(m);
	m->metadata = (struct vhdx_range){ VHDX_MIB + o->log_bytes, VHDX_MIB };
	m->bat = (struct vhdx_range){ m->metadata.off + VHDX_MIB, round_up(m->nr_slots * 8, VHDX_MIB) };
	p->data_off = m->bat.off + m->bat.bytes;
	return 0;
}

static int write_identifier(struct node *file, struct img_error *err)
{
	uint8_t id[8 + VHDX_CREATOR_BYTES] = "vhdxfile";
	size_t n;

	(void)name_to_utf16(CREATOR, false, id + 8, VHDX_CREATOR_BYTES, &n);
	return node_pwrite(file, id, sizeof(id), 0, 0, err);
}

static int write_headers(struct node *file, struct vhdx_header *h, struct img_error *err)
{
	int ret = vhdx_guid_new(h->file_write, err);

	if (ret == 0)
		ret = vhdx_guid_new(h->data_write, err);
	h->which = 1;
	/* Both copies, one after the other. */
	for (unsigned i = 0; i < 2 && ret == 0; i++)
		ret = vhdx_header_store(file, h, false, err);
	return ret;
}

static void put_region(uint8_t *table, uint32_t i, const uint8_t guid[16], const struct vhdx_range *r)
{
	struct disk_vhdx_region d = { .off = le64_of(r->off),
				      .bytes = le32_of((uint32_t)r->bytes),
				      .required = le32_of(1) };

	memcpy(d.guid, guid, sizeof(d.guid));
	memcpy(table + sizeof(struct disk_vhdx_regions) + i * sizeof(d), &d, sizeof(d));
}

static int write_regions(struct node *file, const struct vhdx_meta *m, struct img_error *err)
{
	struct disk_vhdx_regions head = { .nr = le32_of(2) };
	uint8_t *table = calloc(1, VHDX_TABLE_BYTES);
	int ret;

	if (!table)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(head.signature, "regi", 4);
	memcpy(table, &head, sizeof(head));
	put_region(table, 0, vhdx_guid_bat, &m->bat);
	put_region(table, 1, vhdx_guid_metadata, &m->metadata);
	vhdx_regions_seal(table);
	ret = node_pwrite(file, table, VHDX_TABLE_BYTES, VHDX_REGIONS_A, 0, err);
	if (ret == 0)
		ret = node_pwrite(file, table, VHDX_TABLE_BYTES, VHDX_REGIONS_B, 0, err);
	free(table);
	return ret;
}

struct item {
	const uint8_t *guid;
	uint32_t at, bytes, flags;
	const void *value;
};

static void put_items(uint8_t *region, const struct item *items, uint16_t nr)
{
	struct disk_vhdx_items head = { .nr = le16_of(nr) };

	memcpy(head.signature, "metadata", 8);
	memcpy(region, &head, sizeof(head));
	for (uint32_t i = 0; i < nr; i++) {
		struct disk_vhdx_item d = { .off = le32_of((uint32_t)VHDX_TABLE_BYTES + items[i].at),
					    .bytes = le32_of(items[i].bytes),
					    .flags = le32_of(items[i].flags | VHDX_ITEM_REQUIRED) };

		memcpy(d.guid, items[i].guid, sizeof(d.guid));
		memcpy(region + sizeof(head) + i * sizeof(d), &d, sizeof(d));
		memcpy(region + VHDX_TABLE_BYTES + items[i].at, items[i].value, items[i].bytes);
	}
}

/* text: the locator, or NULL. */
static int write_metadata(struct node *file, const struct vhdx_meta *m, const uint8_t *text, uint32_t text_bytes,
			  struct img_error *err)
{
	const uint32_t flags = (m->leave_blocks ? VHDX_LEAVE_BLOCKS : 0) | (m->has_parent ? VHDX_HAS_PARENT : 0);
	const struct disk_vhdx_parameters parameters = { le32_of((uint32_t)m->block_bytes), le32_of(flags) };
	const struct le64 size = le64_of(m->disk_bytes);
	const struct le32 logical = le32_of(m->sector_bytes), physical = le32_of(m->physical_bytes);
	const struct item items[] = {
		{ vhdx_guid_parameters, AT_PARAMETERS, sizeof(parameters), 0, &parameters },
		{ vhdx_guid_size, AT_SIZE, sizeof(size), VHDX_ITEM_VIRTUAL_DISK, &size },
		{ vhdx_guid_logical, AT_LOGICAL, sizeof(logical), VHDX_ITEM_VIRTUAL_DISK, &logical },
		{ vhdx_guid_physical, AT_PHYSICAL, sizeof(physical), VHDX_ITEM_VIRTUAL_DISK, &physical },
		{ vhdx_guid_page83, AT_PAGE83, sizeof(m->page83), VHDX_ITEM_VIRTUAL_DISK, m->page83 },
		{ vhdx_guid_locator, AT_LOCATOR, text_bytes, 0, text },
	};
	uint64_t bytes = VHDX_TABLE_BYTES + AT_LOCATOR + VHDX_LOCATOR_OURS;
	uint8_t *region = calloc(1, (size_t)bytes);
	int ret;

	if (!region)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	put_items(region, items, (uint16_t)(ARRAY_LEN(items) - (text ? 0 : 1)));
	ret = node_pwrite(file, region, bytes, m->metadata.off, 0, err);
	free(region);
	return ret;
}

static int write_parent(struct node *file, const struct vhdx_meta *m, const struct backing_ref *ref,
			struct img_error *err)
{
	struct vhdx_parent *p = malloc(sizeof(*p));
	uint8_t *text = malloc(VHDX_LOCATOR_OURS);
	uint32_t bytes;
	int ret = p && text ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (ret == 0)
		ret = vhdx_parent_of(ref, m->sector_bytes, p, err);
	if (ret == 0)
		ret = vhdx_locator_make(p, text, &bytes, err);
	if (ret == 0)
		ret = write_metadata(file, m, text, bytes, err);
	free(text);
	free(p);
	return ret;
}

/* All blocks of a fixed image, one behind the other. */
static int write_table(struct node *file, const struct plan *p, struct img_error *err)
{
	const struct vhdx_meta *m = &p->m;
	struct le64 *buf = calloc(BATCH_ENTRIES, sizeof(*buf));
	uint64_t place = p->data_off;
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t first = 0; first < m->nr_slots && ret == 0; first += BATCH_ENTRIES) {
		uint64_t nr = min_u64(m->nr_slots - first, BATCH_ENTRIES);

		for (uint64_t i = 0; i < nr; i++) {
			bool is_bitmap = (first + i) % (m->chunk_ratio + 1) == m->chunk_ratio;

			buf[i] = le64_of(is_bitmap ? 0 : place | VHDX_PRESENT);
			place += is_bitmap ? 0 : m->block_bytes;
		}
		ret = node_pwrite(file, buf, nr * sizeof(*buf), m->bat.off + first * sizeof(*buf), 0, err);
	}
	free(buf);
	return ret;
}

int vhdx_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct vhdx_options o;
	struct plan p;
	uint64_t end;
	int ret = vhdx_options_parse(args->options, &o, err);

	if (ret == 0)
		ret = make_plan(&o, args->size_bytes, args->backing, &p, err);
	if (ret == 0 && o.has_uuid)
		memcpy(p.m.page83, o.uuid, sizeof(o.uuid));
	else if (ret == 0)
		ret = vhdx_guid_new(p.m.page83, err);
	if (ret != 0)
		return ret;
	end = p.data_off + (o.fixed ? p.m.nr_blocks * p.m.block_bytes : 0);
	ret = node_resize(file, end, err);
	if (ret == 0 && o.solid)
		ret = node_allocate(file, end, 0, err);
	if (ret == 0)
		ret = write_identifier(file, err);
	if (ret == 0)
		ret = write_headers(file, &p.h, err);
	if (ret == 0)
		ret = write_regions(file, &p.m, err);
	if (ret == 0 && args->backing)
		ret = write_parent(file, &p.m, args->backing, err);
	else if (ret == 0)
		ret = write_metadata(file, &p.m, NULL, 0, err);
	return ret == 0 && o.fixed ? write_table(file, &p, err) : ret;
}

int vhdx_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct vhdx_options o;
	uint64_t data, full;
	struct plan p;
	int ret = vhdx_options_parse(args->options, &o, err);

	if (ret == 0)
		ret = make_plan(&o, args->size_bytes, NULL, &p, err);
	if (ret == 0)
		ret = blockmap_measure(args, p.m.block_bytes, 0, &data, &full, err);
	if (ret != 0)
		return ret;
	out->fully_allocated_bytes = p.data_off + full;
	out->required_bytes = p.data_off + (o.fixed ? full : data);
	return 0;
}
