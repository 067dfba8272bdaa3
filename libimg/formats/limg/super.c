/* SPDX-License-Identifier: MIT */
/* The superblock: four copies in two places, two slots by generation parity. format-spec/limg.md sections 4, 5 and 12. */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"

static const uint8_t super_magic[8] = { 'L', 'I', 'M', 'G', 0x0d, 0x0a, 0x1a, 0x00 };

uint64_t super_slot_au(unsigned place, uint64_t generation)
{
	return (place ? SUPER_PLACE_B : SUPER_PLACE_A) + (generation & 1);
}

unsigned volume_levels_for(uint64_t bytes, unsigned block_shift)
{
	uint64_t blocks = (bytes + (UINT64_C(1) << block_shift) - 1) >> block_shift;
	uint64_t leaves = (blocks + LEAF_ENTRIES - 1) >> LEAF_SHIFT;
	unsigned levels = 0;

	while (level_leaves(levels) < leaves)
		levels++;
	return levels;
}

void volume_logical_root(const struct volume *v, uint8_t out[16])
{
	struct {
		struct le64 size, levels;
		uint8_t logical[16];
	} in;

	in.size = le64_of(v->size_bytes);
	in.levels = le64_of(v->levels);
	memcpy(in.logical, v->root.logical, 16);
	xxh128_store(&in, sizeof in, out);
}

void ptr_store(struct disk_ptr *d, const struct ptr *p)
{
	d->word = le64_of(p->word);
	d->csum = le64_of(p->csum);
	memcpy(d->logical, p->logical, 16);
	d->count = le64_of(p->count);
}

int ptr_load(const struct disk_ptr *d, struct ptr *p, struct img_error *err)
{
	p->word = le64_get(d->word);
	p->csum = le64_get(d->csum);
	memcpy(p->logical, d->logical, 16);
	p->count = le64_get(d->count);
	switch (word_state(p->word)) {
	case ST_NONE:
		if (is_zero(d, sizeof *d))
			return 0;
		break;
	case ST_ZERO:
		if (word_addr(p->word) == 0 && p->csum == 0 && p->count == 0 && p->logical[0] == 1 &&
		    is_zero(p->logical + 1, 15))
			return 0;
		break;
	case ST_NODE:
		if (word_addr(p->word) != 0 && word_birth(p->word) != 0)
			return 0;
		break;
	default: break;
	}
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "node pointer 0x%llx is not sound (LIMG-5)",
			 (unsigned long long)p->word);
}

void volume_store(struct disk_volume *d, const struct volume *v)
{
	memset(d, 0, sizeof *d);
	d->size = le64_of(v->size_bytes);
	d->levels = (uint8_t)v->levels;
	ptr_store(&d->root, &v->root);
}

int volume_load(const struct disk_volume *d, struct volume *v, unsigned block_shift, struct img_error *err)
{
	v->size_bytes = le64_get(d->size);
	v->levels = d->levels;
	if (!is_zero(d->zero, sizeof d->zero))
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "reserved bytes of a volume are not zero (LIMG-2)");
	if (v->size_bytes > MAX_VOLUME_BYTES)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "volume of 0x%llx bytes is larger than the format allows (LIMG-1)",
				 (unsigned long long)v->size_bytes);
	if (v->levels > MAX_LEVELS || v->levels < volume_levels_for(v->size_bytes, block_shift))
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "volume of 0x%llx bytes with %u levels (LIMG-1)", (unsigned long long)v->size_bytes,
				 v->levels);
	return ptr_load(&d->root, &v->root, err);
}

/* ---- backing record ---- */

static void backing_store(struct disk_backing *d, const struct super *sb)
{
	const struct backing_ref *r = &sb->backing;
	uint32_t flags = BACKING_PRESENT;

	memset(d, 0, sizeof *d);
	if (!sb->has_backing)
		return;
	if (r->snapshot[0])
		flags |= BACKING_SNAPSHOT;
	if (r->committing)
		flags |= BACKING_COMMITTING;
	d->flags = le32_of(flags);
	d->name_bytes = le32_of((uint32_t)strlen(r->name));
	memcpy(d->name, r->name, strlen(r->name));
	memcpy(d->format, r->format, strnlen(r->format, sizeof d->format));
	memcpy(d->uuid, r->pin.uuid, 16);
	memcpy(d->snapshot_uuid, r->pin.snapshot_uuid, 16);
	memcpy(d->hash, r->pin.hash, 16);
	d->size = le64_of(r->pin.size_bytes);
	d->mtime = le64_of((uint64_t)r->pin.mtime_ns);
	d->pin = le32_of((uint32_t)r->pin.kind);
	d->snapshot_bytes = le32_of((uint32_t)strlen(r->snapshot));
	memcpy(d->snapshot, r->snapshot, strlen(r->snapshot));
}

/* A text field: len bytes without NUL, then zeros only. */
static bool text_load(const char *field, size_t room, uint32_t len, char *out)
{
	if (len >= room || memchr(field, 0, len) || !is_zero(field + len, room - len))
		return false;
	memcpy(out, field, len);
	out[len] = 0;
	return true;
}

static int backing_load(const struct disk_backing *d, struct super *sb, struct img_error *err)
{
	struct backing_ref *r = &sb->backing;
	uint32_t flags = le32_get(d->flags);
	size_t format_bytes = strnlen(d->format, sizeof d->format);
	uint32_t pin = le32_get(d->pin);

	memset(r, 0, sizeof *r);
	sb->has_backing = flags & BACKING_PRESENT;
	if (!sb->has_backing) {
		if (!is_zero(d, sizeof *d))
			goto bad;
		return 0;
	}
	if (flags & ~(BACKING_PRESENT | BACKING_SNAPSHOT | BACKING_COMMITTING) || pin > PIN_WEAK)
		goto bad;
	if (le32_get(d->name_bytes) == 0 || !text_load(d->name, sizeof d->name, le32_get(d->name_bytes), r->name))
		goto bad;
	if (!text_load(d->snapshot, sizeof d->snapshot, le32_get(d->snapshot_bytes), r->snapshot))
		goto bad;
	if (!(flags & BACKING_SNAPSHOT) != !r->snapshot[0])
		goto bad;
	if (format_bytes == 0 || !text_load(d->format, sizeof d->format, (uint32_t)format_bytes, r->format))
		goto bad;
	r->committing = flags & BACKING_COMMITTING;
	r->pin.kind = (enum pin_kind)pin;
	memcpy(r->pin.uuid, d->uuid, 16);
	memcpy(r->pin.snapshot_uuid, d->snapshot_uuid, 16);
	memcpy(r->pin.hash, d->hash, 16);
	r->pin.size_bytes = le64_get(d->size);
	r->pin.mtime_ns = (int64_t)le64_get(d->mtime);
	return 0;
bad:
	return error_set(err, IMG_E_CORRUPT, 0, 512, LAYER, "the backing record is not sound (LIMG-14)");
}

/* ---- superblock ---- */

void super_encode(const struct super *sb, uint8_t *page)
{
	struct disk_super *d = (struct disk_super *)page;

	memset(page, 0, AU_BYTES);
	memcpy(d->magic, super_magic, 8);
	d->version = le32_of(1);
	d->header_bytes = le32_of(AU_BYTES);
	d->rocompat = le64_of(sb->rocompat);
	d->compat = le64_of(sb->compat);
	memcpy(d->uuid, sb->uuid, 16);
	d->generation = le64_of(sb->generation);
	d->block_shift = (uint8_t)sb->block_shift;
	d->unit_shift = (uint8_t)sb->unit_shift;
	d->codec = (uint8_t)sb->codec;
	d->level = (uint8_t)sb->level;
	d->file_bytes = le64_of(sb->file_bytes);
	d->epoch = le64_of(sb->epoch);
	d->head_parent = le64_of(sb->head_parent);
	d->next_id = le64_of(sb->next_id);
	d->nr_slots = le64_of(sb->nr_slots);
	d->salt = le64_of(sb->salt);
	d->ring_addr = le64_of(sb->ring_addr);
	d->ring_aus = le64_of(sb->ring_aus);
	d->ring_tail = le64_of(sb->ring_tail);
	d->ring_seq = le64_of(sb->ring_seq);
	memcpy(d->ring_prev, sb->ring_prev, 16);
	volume_store(&d->disk, &sb->disk);
	volume_store(&d->vm, &sb->vm);
	volume_store(&d->catalog, &sb->catalog);
	d->space = sb->space;
	d->nr_groups = le64_of(sb->nr_groups);
	d->used_aus = le64_of(sb->used_aus);
	d->hint = le64_of(sb->hint);
	d->created = le64_of((uint64_t)sb->created_ns);
	backing_store(&d->backing, sb);
	xxh128_store(page, offsetof(struct disk_super, csum), d->csum);
}

static int geometry_load(const struct disk_super *d, struct super *out, struct img_error *err)
{
	unsigned lowest_unit = d->block_shift > 16 ? d->block_shift : 16;

	if (d->block_shift != 12 && d->block_shift != 14 && d->block_shift != 16)
		return error_set(err, IMG_E_CORRUPT, 0, 64, LAYER, "block_shift %u (LIMG-1)", d->block_shift);
	if (d->unit_shift < lowest_unit || d->unit_shift > 20)
		return error_set(err, IMG_E_CORRUPT, 0, 65, LAYER, "unit_shift %u (LIMG-1)", d->unit_shift);
	if (d->codec != CODEC_NONE && d->codec != CODEC_ZSTD && d->codec != CODEC_DEFLATE)
		return error_set(err, IMG_E_CORRUPT, 0, 66, LAYER, "codec %u (LIMG-1)", d->codec);
	out->block_shift = d->block_shift;
	out->unit_shift = d->unit_shift;
	out->codec = (enum codec_id)d->codec;
	out->level = (int8_t)d->level;
	return 0;
}

static int counters_load(const struct disk_super *d, struct super *out, struct img_error *err)
{
	out->generation = le64_get(d->generation);
	out->file_bytes = le64_get(d->file_bytes);
	out->epoch = le64_get(d->epoch);
	out->head_parent = le64_get(d->head_parent);
	out->next_id = le64_get(d->next_id);
	out->nr_slots = le64_get(d->nr_slots);
	out->salt = le64_get(d->salt);
	out->ring_addr = le64_get(d->ring_addr);
	out->ring_aus = le64_get(d->ring_aus);
	out->ring_tail = le64_get(d->ring_tail);
	out->ring_seq = le64_get(d->ring_seq);
	memcpy(out->ring_prev, d->ring_prev, 16);
	out->nr_groups = le64_get(d->nr_groups);
	out->used_aus = le64_get(d->used_aus);
	out->hint = le64_get(d->hint);
	out->created_ns = (int64_t)le64_get(d->created);

	if (out->generation == 0 || out->generation > MAX_COUNTER || out->epoch == 0 || out->epoch > MAX_EPOCH ||
	    out->next_id == 0 || out->next_id > MAX_COUNTER || out->ring_seq > MAX_COUNTER ||
	    out->head_parent >= out->next_id || out->nr_slots > MAX_SNAPSHOTS + 1)
		return error_set(err, IMG_E_CORRUPT, 0, 56, LAYER,
				 "generation, epoch or ids are out of range (LIMG-1)");
	if (out->file_bytes < MIN_FILE_AUS * AU_BYTES || out->file_bytes % AU_BYTES ||
	    out->file_bytes >> AU_SHIFT > WORD_ADDR_MASK)
		return error_set(err, IMG_E_CORRUPT, 0, 72, LAYER, "file_bytes 0x%llx (LIMG-3)",
				 (unsigned long long)out->file_bytes);
	if (out->nr_groups != ((out->file_bytes >> AU_SHIFT) + GROUP_AUS - 1) / GROUP_AUS)
		return error_set(err, IMG_E_CORRUPT, 0, 352, LAYER, "%llu groups for a file of 0x%llx bytes (LIMG-10)",
				 (unsigned long long)out->nr_groups, (unsigned long long)out->file_bytes);
	if (out->ring_aus > MAX_RING_AUS || (out->ring_aus && out->ring_aus < 2) ||
	    !range_inside(out->ring_addr, out->ring_aus, out->file_bytes >> AU_SHIFT) || out->ring_tail % AU_BYTES ||
	    (out->ring_aus && (out->ring_tail >= out->ring_aus << AU_SHIFT || out->ring_seq == 0)))
		return error_set(err, IMG_E_CORRUPT, 0, 120, LAYER, "the journal ring is out of range (LIMG-16)");
	return 0;
}

int super_decode(const uint8_t *page, struct super *out, struct img_error *err)
{
	const struct disk_super *d = (const struct disk_super *)page;
	uint8_t csum[16];
	int rc;

	memset(out, 0, sizeof *out);
	if (memcmp(d->magic, super_magic, 8))
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "no limg magic");
	xxh128_store(page, offsetof(struct disk_super, csum), csum);
	if (memcmp(csum, d->csum, 16))
		return error_set(err, IMG_E_CORRUPT, 0, 0, LAYER, "the superblock's checksum does not hold (LIMG-1)");
	if (le32_get(d->version) != 1 || le32_get(d->header_bytes) != AU_BYTES)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 8, LAYER, "limg version %u is not known to this build",
				 le32_get(d->version));
	if (le64_get(d->incompat))
		return error_set(err, IMG_E_UNSUPPORTED, 0, 16, LAYER,
				 "incompatible features 0x%llx are not known to this build",
				 (unsigned long long)le64_get(d->incompat));
	if (le32_get(d->zero) || !is_zero(d->zero2, sizeof d->zero2) || !is_zero(d->zero3, sizeof d->zero3))
		return error_set(err, IMG_E_CORRUPT, 0, 0, LAYER,
				 "reserved bytes of the superblock are not zero (LIMG-2)");
	out->rocompat = le64_get(d->rocompat);
	out->compat = le64_get(d->compat);
	memcpy(out->uuid, d->uuid, 16);
	out->space = d->space;
	rc = geometry_load(d, out, err);
	if (!rc)
		rc = counters_load(d, out, err);
	if (!rc)
		rc = volume_load(&d->disk, &out->disk, out->block_shift, err);
	if (!rc)
		rc = volume_load(&d->vm, &out->vm, out->block_shift, err);
	if (!rc)
		rc = volume_load(&d->catalog, &out->catalog, AU_SHIFT, err);
	if (!rc)
		rc = backing_load(&d->backing, out, err);
	if (!rc &&
	    (out->disk.size_bytes % 512 || out->nr_slots > out->catalog.size_bytes / sizeof(struct disk_snapshot)))
		rc = error_set(err, IMG_E_CORRUPT, 0, 168, LAYER, "sizes of the volumes do not fit (LIMG-1)");
	return rc;
}

int super_read(struct node *file, struct super *out, unsigned *damaged_copies, struct img_error *err)
{
	uint8_t *page = malloc(AU_BYTES);
	struct super *sb = malloc(sizeof *sb);
	struct img_error first = { 0 }, this;
	bool found = false;

	*damaged_copies = 0;
	if (!page || !sb) {
		free(page);
		free(sb);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	for (unsigned i = 0; i < 4; i++) {
		uint64_t au = super_slot_au(i >> 1, i & 1);
		int rc;

		error_clear(&this);
		if (au_off(au + 1) > node_size(file)) {
			rc = error_set(&this, IMG_E_CORRUPT, 0, au_off(au), LAYER,
				       "the file ends before this superblock (LIMG-3)");
		} else {
			rc = node_pread(file, page, AU_BYTES, au_off(au), 0, &this);
			if (!rc)
				rc = super_decode(page, sb, &this);
		}
		if (rc == IMG_E_UNSUPPORTED) {
			/* Sound, but of a later format: an older slot beside it is not the image. */
			free(page);
			free(sb);
			if (err)
				*err = this;
			return rc;
		}
		if (rc) {
			/* The unused slot of a new image is blank: that is not damage. */
			if (rc != IMG_E_FORMAT || !is_zero(page, AU_BYTES))
				*damaged_copies |= 1u << i;
			if (first.code == 0 || (first.code == IMG_E_FORMAT && rc != IMG_E_FORMAT))
				first = this;
			continue;
		}
		if ((sb->generation & 1) != (i & 1)) {
			*damaged_copies |= 1u << i;
			continue;
		}
		if (!found || sb->generation > out->generation)
			*out = *sb;
		found = true;
	}
	free(page);
	free(sb);
	if (!found) {
		if (err)
			*err = first.code ? first :
					    (struct img_error){ .code = IMG_E_CORRUPT,
								.msg = "no valid superblock (LIMG-1)" };
		return err ? err->code : (first.code ? first.code : IMG_E_CORRUPT);
	}
	if (node_size(file) < out->file_bytes)
		return error_set(
			err, IMG_E_CORRUPT, 0, node_size(file), LAYER,
			"the file is cut short: 0x%llx bytes of 0x%llx are here: copy it again, whole (LIMG-3)",
			(unsigned long long)node_size(file), (unsigned long long)out->file_bytes);
	return 0;
}

int super_write(struct node *file, const struct super *sb, struct img_error *err)
{
	uint8_t *page = malloc(AU_BYTES);
	int rc;

	if (!page)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	super_encode(sb, page);
	rc = node_pwrite(file, page, AU_BYTES, au_off(super_slot_au(0, sb->generation)), 0, err);
	if (!rc)
		rc = node_pwrite(file, page, AU_BYTES, au_off(super_slot_au(1, sb->generation)), 0, err);
	free(page);
	return rc;
}

enum super_copy super_copy_state(struct node *file, unsigned place, const struct super *sb, struct img_error *err)
{
	uint8_t *page = malloc(AU_BYTES), *want = malloc(AU_BYTES);
	struct super *found = malloc(sizeof *found);
	enum super_copy state = SUPER_COPY_DAMAGED;

	if (page && want && found &&
	    !node_pread(file, page, AU_BYTES, au_off(super_slot_au(place, sb->generation)), 0, err)) {
		super_encode(sb, want);
		if (!memcmp(page, want, AU_BYTES))
			state = SUPER_COPY_GOOD;
		else if (sb->generation <= 2 && is_zero(page, AU_BYTES))
			state = SUPER_COPY_OLD; /* the slot's first use did not get this far */
		else if (!super_decode(page, found, NULL) && found->generation < sb->generation &&
			 !memcmp(found->uuid, sb->uuid, 16))
			state = SUPER_COPY_OLD;
	}
	free(page);
	free(want);
	free(found);
	return state;
}

bool super_other_slot_lost(struct node *file, const struct super *sb, uint64_t *claims)
{
	uint8_t *page = malloc(AU_BYTES);
	struct super *found = malloc(sizeof *found);
	unsigned bad = 0;

	*claims = 0;
	for (unsigned place = 0; page && found && place < 2; place++) {
		const struct disk_super *d = (const struct disk_super *)page;

		if (node_pread(file, page, AU_BYTES, au_off(super_slot_au(place, sb->generation + 1)), 0, NULL)) {
			bad++;
			continue;
		}
		if (sb->generation == 1 && is_zero(page, AU_BYTES))
			continue; /* not used yet */
		if (super_decode(page, found, NULL) == 0)
			continue;
		bad++;
		if (!memcmp(d->uuid, sb->uuid, 16) && le64_get(d->generation) > sb->generation)
			*claims = le64_get(d->generation);
	}
	free(page);
	free(found);
	return bad == 2;
}

int super_mend(struct node *file, const struct super *sb, bool *damaged, struct img_error *err)
{
	uint8_t *page = malloc(AU_BYTES);
	int rc = page ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	/* Only a copy that is not good is written: the good one must not be at risk. */
	for (unsigned place = 0; !rc && place < 2; place++) {
		enum super_copy state = super_copy_state(file, place, sb, NULL);

		if (state == SUPER_COPY_GOOD)
			continue;
		*damaged |= state == SUPER_COPY_DAMAGED;
		super_encode(sb, page);
		rc = node_pwrite(file, page, AU_BYTES, au_off(super_slot_au(place, sb->generation)), 0, err);
	}
	free(page);
	/* Also where both are good: they may be in the host's cache alone, if the last writer was killed before it had
	 * them synced, and this one is about to overwrite what only the state before them holds. */
	return rc ? rc : node_flush(file, 0, err);
}
