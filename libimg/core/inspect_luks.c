/* SPDX-License-Identifier: MIT */
/*
 * LUKS headers: which version, and what trying a key would cost. Version 1 is judged; version 2 keeps its parameters in
 * JSON, which nobody should parse to find out whether to parse it.
 *
 * Source: LUKS on-disk format 1.2.3, section 2 (PHDR and key slots).
 */
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LUKS_SLOTS	  8u
#define LUKS_SLOT_ACTIVE  0x00ac71f3u
#define LUKS_COST_MAX	  UINT64_C(50000000) /* iterations, of all slots: some ten seconds of a processor for each */
#define LUKS_STRIPES_MAX  100000u	     /* 4000 are usual */
#define LUKS_SECTOR_BYTES 512u

struct disk_luks_slot {
	struct be32 active, iterations;
	uint8_t salt[32];
	struct be32 material_sector, stripes;
};
struct disk_luks {
	uint8_t magic[6];
	struct be16 version;
	uint8_t cipher[32], mode[32], hash[32];
	struct be32 payload_sector, key_bytes;
	uint8_t digest[20], digest_salt[32];
	struct be32 digest_iterations;
	uint8_t uuid[40];
	struct disk_luks_slot slot[LUKS_SLOTS];
};
_Static_assert(sizeof(struct disk_luks) == 592, "LUKS header");

static void judge_slots(struct inspector *in, const struct disk_luks *d, uint64_t off, uint64_t limit)
{
	uint64_t cost = be32_get(d->digest_iterations);
	unsigned used = 0;

	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		const struct disk_luks_slot *s = &d->slot[i];
		uint64_t at = off + offsetof(struct disk_luks, slot) + i * sizeof(*s), material;

		if (be32_get(s->active) != LUKS_SLOT_ACTIVE)
			continue;
		used++;
		cost += be32_get(s->iterations);
		material = (uint64_t)be32_get(s->stripes) * be32_get(d->key_bytes);
		if (be32_get(s->stripes) > LUKS_STRIPES_MAX || be32_get(d->key_bytes) > 1024 ||
		    !range_inside((uint64_t)be32_get(s->material_sector) * LUKS_SECTOR_BYTES, material, limit))
			inspect_found(in, INSPECT_TABLE_BOUNDS, at, "the material of LUKS key slot %u lies outside", i);
	}
	inspect_note(in, INSPECT_ENCRYPTED, off, "LUKS, %u key slots, %" PRIu64 " iterations to try one key on all",
		     used, cost);
	if (cost > LUKS_COST_MAX)
		inspect_found(in, INSPECT_KEY_COST, off, "%" PRIu64 " iterations to try a key, more than %" PRIu64,
			      cost, LUKS_COST_MAX);
}

int inspect_luks(struct inspector *in, struct node *file, uint64_t off, uint64_t bytes, struct img_error *err)
{
	struct disk_luks d;
	int ret = inspect_read(file, &d, sizeof(d), off, err);

	if (ret != 0)
		return ret;
	if (memcmp(d.magic, "LUKS\xba\xbe", 6) != 0 || bytes < sizeof(d)) {
		inspect_found(in, INSPECT_BAD_HEADER, off, "there is no LUKS header where there should be one");
		return 0;
	}
	if (be16_get(d.version) != 1) {
		inspect_found(in, INSPECT_LUKS_VERSION, off + offsetof(struct disk_luks, version),
			      "LUKS version %u: only 1 is judged", be16_get(d.version));
		return 0;
	}
	judge_slots(in, &d, off, bytes);
	return 0;
}
