/* SPDX-License-Identifier: MIT */
/* See oracle.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "oracle.h"

#define CHUNK (64u << 10)

/* ---- patterns ---------------------------------------------------------------------------------------------------- */

/* One word repeated: compresses well, and a sector that is a mixture of two is seen. */
static uint64_t pattern_word(uint32_t sector, uint8_t id)
{
	uint64_t h = (UINT64_C(1) << 32 | sector) * UINT64_C(0x9e3779b97f4a7c15);

	return id == 0 ? 0 : (h ^ (uint64_t)id << 40) >> 16 << 8 | id;
}

void pattern_fill(void *buf, uint64_t bytes, uint32_t first_sector, uint8_t id)
{
	uint8_t *p = buf;

	for (uint64_t s = 0; s < bytes / SECTOR; s++) {
		uint64_t word = pattern_word(first_sector + (uint32_t)s, id);

		for (unsigned i = 0; i < SECTOR / 8; i++)
			memcpy(p + s * SECTOR + i * 8, &word, 8);
	}
}

/* The id of the write that this sector is from, -1 if it is none's. */
static int pattern_id(const uint8_t *p, uint32_t sector)
{
	uint64_t word;

	memcpy(&word, p, 8);
	if (word != pattern_word(sector, (uint8_t)word) || (uint8_t)word > 63)
		return -1;
	return memcmp(p, p + 8, SECTOR - 8) == 0 ? (int)(uint8_t)word : -1;
}

/* ---- observing --------------------------------------------------------------------------------------------------- */

static const uint8_t zeros[CHUNK];

static int parse(const uint8_t *buf, uint64_t bytes, uint64_t off, uint32_t seed, uint8_t *ids, const char *what,
		 char *why, size_t why_bytes)
{
	if (memcmp(buf, zeros, (size_t)bytes) == 0) {
		memset(ids + off / SECTOR, 0, (size_t)(bytes / SECTOR));
		return 0;
	}
	for (uint64_t at = 0; at < bytes; at += SECTOR) {
		uint32_t sector = (uint32_t)((off + at) / SECTOR);
		int id = pattern_id(buf + at, seed + sector);

		if (id < 0) {
			snprintf(why, why_bytes, "%s: sector %u holds what was never written there", what, sector);
			return -1;
		}
		ids[sector] = (uint8_t)id;
	}
	return 0;
}

int observe_disk(struct img *img, struct content *out, char *why, size_t why_bytes)
{
	uint64_t size = img_size(img);
	uint8_t buf[CHUNK];
	struct img_error err;

	if (size > (uint64_t)MAX_SECTORS * SECTOR || size % SECTOR != 0) {
		snprintf(why, why_bytes, "disk: size 0x%llx", (unsigned long long)size);
		return -1;
	}
	out->sectors = (uint32_t)(size / SECTOR);
	for (uint64_t off = 0; off < size; off += sizeof(buf)) {
		uint64_t n = min_u64(size - off, sizeof(buf));

		if (img_pread(img, buf, n, off, 0, &err) != 0) {
			snprintf(why, why_bytes, "disk: cannot be read: %s", err.msg);
			return -1;
		}
		if (parse(buf, n, off, 0, out->id, "disk", why, why_bytes) != 0)
			return -1;
	}
	return 0;
}

static int observe_vm(struct img *img, const char *snapshot, struct content *out, char *why, size_t why_bytes)
{
	uint8_t buf[CHUNK];
	struct img_error err;
	uint64_t bytes;

	if (img_vmstate_size(img, snapshot, &bytes, &err) != 0) {
		snprintf(why, why_bytes, "vm state: no size: %s", err.msg);
		return -1;
	}
	if (bytes > (uint64_t)MAX_VM * SECTOR || bytes % SECTOR != 0) {
		snprintf(why, why_bytes, "vm state: size 0x%llx", (unsigned long long)bytes);
		return -1;
	}
	out->vm_sectors = (uint32_t)(bytes / SECTOR);
	if (bytes > 0 && img_vmstate_read(img, snapshot, buf, bytes, 0, &err) != 0) {
		snprintf(why, why_bytes, "vm state: cannot be read: %s", err.msg);
		return -1;
	}
	return bytes > 0 ? parse(buf, bytes, 0, VM_SEED, out->vm, "vm state", why, why_bytes) : 0;
}

static int observe_snaps(struct img *img, bool machine_state, struct observed *out, char *why, size_t why_bytes)
{
	struct img_snapshot list[MAX_SNAPS];
	struct img_error err;
	size_t nr = 0;

	if (img_snapshot_list(img, list, MAX_SNAPS, &nr, &err) != 0 || nr > MAX_SNAPS) {
		snprintf(why, why_bytes, "snapshots: %zu, %s", nr, err.msg);
		return -1;
	}
	out->nr_snaps = (unsigned)nr;
	for (size_t i = 0; i < nr; i++) {
		struct snap_content *snap = &out->snap[i];
		struct img *view;
		int ret;

		snprintf(snap->name, sizeof(snap->name), "%.15s", list[i].name);
		if (img_snapshot_open(img, list[i].name, &view, &err) != 0) {
			snprintf(why, why_bytes, "snapshot %s: cannot be opened: %s", snap->name, err.msg);
			return -1;
		}
		ret = observe_disk(view, &snap->content, why, why_bytes);
		img_close(view, NULL);
		if (ret == 0 && machine_state)
			ret = observe_vm(img, list[i].name, &snap->content, why, why_bytes);
		if (ret != 0) {
			size_t n = strlen(why);

			snprintf(why + n, why_bytes - n, " (snapshot %s)", snap->name);
			return -1;
		}
	}
	return 0;
}

int observe(struct img *img, enum machine_state vm, struct observed *out, char *why, size_t why_bytes)
{
	memset(out, 0, sizeof(*out));
	if (observe_disk(img, &out->head, why, why_bytes) != 0)
		return -1;
	if (vm == VM_EVERYWHERE && observe_vm(img, NULL, &out->head, why, why_bytes) != 0)
		return -1;
	if (vm == VM_IN_SNAPSHOTS)
		out->head.vm_sectors = VM_NOT_SEEN;
	/* A read-only handle has no such capability, and may have snapshots. */
	if (strcmp(img_format(img), "raw") == 0)
		return 0;
	return observe_snaps(img, vm != VM_NOWHERE, out, why, why_bytes);
}

static bool content_equal(const struct content *a, const struct content *b)
{
	if (a->sectors != b->sectors || memcmp(a->id, b->id, a->sectors) != 0)
		return false;
	if (a->vm_sectors == VM_NOT_SEEN || b->vm_sectors == VM_NOT_SEEN)
		return true;
	return a->vm_sectors == b->vm_sectors && memcmp(a->vm, b->vm, a->vm_sectors) == 0;
}

bool observed_equal(const struct observed *a, const struct observed *b)
{
	if (a->absent || b->absent)
		return a->absent == b->absent;
	if (!content_equal(&a->head, &b->head) || a->nr_snaps != b->nr_snaps || a->has_new != b->has_new)
		return false;
	for (unsigned i = 0; i < a->nr_snaps; i++) {
		if (strcmp(a->snap[i].name, b->snap[i].name) != 0 ||
		    !content_equal(&a->snap[i].content, &b->snap[i].content))
			return false;
	}
	return !a->has_new || content_equal(&a->made, &b->made);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static bool head_allowed(const struct world *w, const struct content *seen, char *why, size_t why_bytes)
{
	bool vm_seen = seen->vm_sectors != VM_NOT_SEEN;

	if (seen->sectors != w->latest.sectors || (vm_seen && seen->vm_sectors != w->latest.vm_sectors)) {
		snprintf(why, why_bytes, "the head has %u+%u sectors, not %u+%u", seen->sectors, seen->vm_sectors,
			 w->latest.sectors, w->latest.vm_sectors);
		return false;
	}
	for (uint32_t s = 0; s < seen->sectors; s++) {
		if (!(w->allowed[s] >> seen->id[s] & 1)) {
			snprintf(why, why_bytes, "sector %u of the head is of write %u, allowed are 0x%llx", s,
				 seen->id[s], (unsigned long long)w->allowed[s]);
			return false;
		}
	}
	for (uint32_t s = 0; vm_seen && s < seen->vm_sectors; s++) {
		if (!(w->vm_allowed[s] >> seen->vm[s] & 1)) {
			snprintf(why, why_bytes, "sector %u of the vm state is of write %u, allowed are 0x%llx", s,
				 seen->vm[s], (unsigned long long)w->vm_allowed[s]);
			return false;
		}
	}
	return true;
}

static bool world_allows(const struct world *w, const struct observed *seen, char *why, size_t why_bytes)
{
	if (w->absent || seen->absent) {
		snprintf(why, why_bytes, "the image is %s", seen->absent ? "missing" : "there too early");
		return w->absent == seen->absent;
	}
	if (!head_allowed(w, &seen->head, why, why_bytes))
		return false;
	if (seen->nr_snaps != w->nr_snaps) {
		snprintf(why, why_bytes, "%u snapshots instead of %u", seen->nr_snaps, w->nr_snaps);
		return false;
	}
	for (unsigned i = 0; i < w->nr_snaps; i++) {
		const struct snap_content *want = &w->snap[i];
		const struct snap_content *got = NULL;

		for (unsigned j = 0; j < seen->nr_snaps; j++) {
			if (strcmp(seen->snap[j].name, want->name) == 0)
				got = &seen->snap[j];
		}
		if (got == NULL || !content_equal(&got->content, &want->content)) {
			snprintf(why, why_bytes, "snapshot %s %s", want->name,
				 got == NULL ? "is missing" : "has changed");
			return false;
		}
	}
	if (seen->has_new != w->has_new || (w->has_new && !content_equal(&seen->made, &w->made))) {
		snprintf(why, why_bytes, "the converted file is %s",
			 !seen->has_new ? "missing" :
			 w->has_new	? "wrong" :
					  "there too early");
		return false;
	}
	return true;
}

bool worlds_allow(const struct worlds *ws, const struct observed *seen, char *why, size_t why_bytes)
{
	for (unsigned i = 0; i < ws->nr; i++) {
		if (world_allows(&ws->w[i], seen, why, why_bytes))
			return true;
	}
	return false;
}

/* ---- changing ---------------------------------------------------------------------------------------------------- */

struct world *worlds_latest(struct worlds *ws)
{
	return &ws->w[ws->nr - 1];
}

void worlds_append(struct worlds *ws, const struct world *w)
{
	if (ws->nr == MAX_WORLDS) {
		fputs("oracle: too many worlds\n", stderr);
		abort();
	}
	ws->w[ws->nr++] = *w;
}

void world_settle(struct world *w)
{
	for (uint32_t s = 0; s < MAX_SECTORS; s++)
		w->allowed[s] = UINT64_C(1) << w->latest.id[s];
	for (uint32_t s = 0; s < MAX_VM; s++)
		w->vm_allowed[s] = UINT64_C(1) << w->latest.vm[s];
}

void worlds_settle(struct worlds *ws)
{
	if (ws->nr > 1)
		ws->w[0] = ws->w[ws->nr - 1];
	ws->nr = 1;
	world_settle(&ws->w[0]);
}

void worlds_settle_disk(struct worlds *ws)
{
	const struct content *latest = &worlds_latest(ws)->latest;
	unsigned nr = 0;

	for (unsigned i = 0; i < ws->nr; i++) {
		struct world *w = &ws->w[i];
		bool again = false;

		w->latest.sectors = latest->sectors;
		memmove(w->latest.id, latest->id, sizeof(latest->id));
		for (uint32_t s = 0; s < MAX_SECTORS; s++)
			w->allowed[s] = UINT64_C(1) << latest->id[s];
		/* Worlds that differed in the disk only are now one; the last stays the last. */
		for (unsigned j = i + 1; j < ws->nr && !again; j++)
			again = ws->w[j].latest.vm_sectors == w->latest.vm_sectors &&
				memcmp(ws->w[j].vm_allowed, w->vm_allowed, sizeof(w->vm_allowed)) == 0;
		if (!again && nr++ != i)
			ws->w[nr - 1] = *w;
	}
	ws->nr = nr;
}

void worlds_write(struct worlds *ws, uint32_t first, uint32_t nr, uint8_t id)
{
	for (unsigned i = 0; i < ws->nr; i++) {
		struct world *w = &ws->w[i];

		for (uint32_t s = first; s < first + nr && s < w->latest.sectors; s++) {
			w->allowed[s] |= UINT64_C(1) << id;
			w->latest.id[s] = id;
		}
	}
}

void worlds_write_vm(struct worlds *ws, uint32_t first, uint32_t nr, uint8_t id)
{
	for (unsigned i = 0; i < ws->nr; i++) {
		struct world *w = &ws->w[i];

		for (uint32_t s = first; s < first + nr && s < w->latest.vm_sectors; s++) {
			w->vm_allowed[s] |= UINT64_C(1) << id;
			w->latest.vm[s] = id;
		}
	}
}

struct snap_content *world_snap(struct world *w, const char *name)
{
	for (unsigned i = 0; i < w->nr_snaps; i++) {
		if (strcmp(w->snap[i].name, name) == 0)
			return &w->snap[i];
	}
	return NULL;
}

void world_drop_snap(struct world *w, const char *name)
{
	struct snap_content *snap = world_snap(w, name);

	if (snap != NULL)
		*snap = w->snap[--w->nr_snaps];
}

void world_set_size(struct world *w, uint32_t sectors)
{
	/* What is cut off, and what is new, is zeros. */
	for (uint32_t s = (uint32_t)min_u64(sectors, w->latest.sectors); s < MAX_SECTORS; s++) {
		w->allowed[s] = 1;
		w->latest.id[s] = 0;
	}
	w->latest.sectors = sectors;
}

void world_set_head(struct world *w, const struct content *c)
{
	w->latest = *c;
	world_settle(w);
}

void worlds_of_observed(const struct observed *seen, struct worlds *ws)
{
	struct world *w = &ws->w[0];

	memset(ws, 0, sizeof(*ws));
	ws->nr = 1;
	world_set_head(w, &seen->head);
	if (w->latest.vm_sectors == VM_NOT_SEEN)
		w->latest.vm_sectors = 0;
	w->nr_snaps = seen->nr_snaps;
	memcpy(w->snap, seen->snap, sizeof(w->snap));
	w->has_new = seen->has_new;
	w->made = seen->made;
}
