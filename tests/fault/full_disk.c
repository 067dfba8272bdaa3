/* SPDX-License-Identifier: MIT */
/*
 * A host disk that fills up: with every amount of free space up to some, in steps of 4 KiB, an image is written until
 * the disk is full. Writes then fail with IMG_E_NOSPC and change nothing else; what was flushed is there; a snapshot
 * can still be deleted, which makes room; after that, writing works again; the image closes, opens and checks clean.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "fixed_host.h"
#include "program.h"
#include "verify.h"

#define STEP	      4096u
#define MOST	      (1u << 20)
#define WRITES	      200u /* of 4 KiB each: more than the largest disk here holds */
#define BLOCK_SECTORS 8u

struct test {
	const struct setup *setup;
	struct memhost host;
	struct fault_plan plan;
	struct img *img;
	struct worlds ws;
	char why[WHY_BYTES];
	uint64_t nr_written, nr_opened, nr_flushed_full;
};

static int failed(struct test *t, const char *what, const struct img_error *err)
{
	snprintf(t->why, sizeof(t->why), "%s: %s", what, err->msg);
	return -1;
}

/* Sectors of the write number i: scattered, so that new leaves and nodes are needed too. */
static uint32_t place(unsigned i)
{
	return (i * 37u % 250u) * BLOCK_SECTORS;
}

/* Writes until the disk is full, with a flush now and then. *full: it was. */
static int fill(struct test *t, uint8_t id, bool *full)
{
	uint8_t buf[BLOCK_SECTORS * SECTOR];
	struct img_error err;
	int ret = 0;

	*full = false;
	for (unsigned i = 0; i < WRITES; i++) {
		pattern_fill(buf, sizeof(buf), place(i), id);
		ret = img_pwrite(t->img, buf, sizeof(buf), (uint64_t)place(i) * SECTOR, 0, &err);
		/* After a failure the range may hold either. */
		worlds_write(&t->ws, place(i), BLOCK_SECTORS, id);
		if (ret == 0 && i % 16 == 15) {
			ret = img_flush(t->img, 0, &err);
			if (ret == 0)
				worlds_settle(&t->ws);
			else
				t->nr_flushed_full++;
		}
		if (ret != 0)
			break;
		t->nr_written++;
	}
	if (ret == 0)
		return 0;
	*full = true;
	return ret == IMG_E_NOSPC ? 0 : failed(t, "a write on a full disk does not say NOSPC", &err);
}

static int look(struct test *t, struct observed *seen)
{
	memset(seen, 0, sizeof(*seen));
	return observe(t->img, true, seen, t->why, sizeof(t->why)) == 0 &&
			       worlds_allow(&t->ws, seen, t->why, sizeof(t->why)) ?
		       0 :
		       -1;
}

static int delete_and_go_on(struct test *t)
{
	uint8_t buf[BLOCK_SECTORS * SECTOR];
	struct img_error err;
	struct observed seen;

	/* Both, so that what they held alone is more than what the deletion itself needs. */
	if (img_snapshot_delete(t->img, "A", &err) != 0 || img_snapshot_delete(t->img, "B", &err) != 0)
		return failed(t, "a snapshot cannot be deleted on a full disk", &err);
	world_drop_snap(&t->ws.w[0], "A");
	world_drop_snap(&t->ws.w[0], "B");
	if (look(t, &seen) != 0)
		return -1;
	/* What the handle shows now is what it is to keep. */
	worlds_of_observed(&seen, &t->ws);
	pattern_fill(buf, sizeof(buf), 0, 62);
	if (img_pwrite(t->img, buf, sizeof(buf), 0, 0, &err) != 0)
		return failed(t, "no write after a snapshot was deleted", &err);
	worlds_write(&t->ws, 0, BLOCK_SECTORS, 62);
	if (img_flush(t->img, 0, &err) != 0)
		return failed(t, "no flush after a snapshot was deleted", &err);
	worlds_settle(&t->ws);
	return 0;
}

static int run(struct test *t, const struct memhost *start, const struct worlds *ws, uint64_t free_bytes)
{
	struct observed seen;
	struct img_error err;
	bool full = false;
	int ret = 0, opened;

	fixed_host_reset(free_bytes);
	memhost_clone(&t->host, start);
	fault_plan_init(&t->plan);
	t->plan.disk_full_mode = true;
	t->plan.free_bytes = free_bytes;
	t->host.plan = &t->plan;
	t->ws = *ws;
	t->img = NULL;
	opened = open_image(&t->host, t->setup, IMG_OPEN_WRITE, &t->img, &err);
	if (opened != 0 && opened != IMG_E_NOSPC)
		ret = failed(t, "does not open, and does not say NOSPC", &err);
	if (opened == 0) {
		t->nr_opened++;
		ret = fill(t, 61, &full);
		if (ret == 0)
			ret = look(t, &seen);
		if (ret == 0 && full)
			ret = delete_and_go_on(t);
		if (img_close(t->img, &err) != 0 && ret == 0)
			ret = failed(t, "does not close", &err);
		if (ret == 0)
			worlds_settle(&t->ws);
	}
	/* Judged on a host with room. */
	t->host.plan = NULL;
	if (ret == 0)
		ret = verify_disk(&t->host, t->setup, &t->ws, false, &seen, t->why);
	memhost_destroy(&t->host);
	fault_plan_destroy(&t->plan);
	return ret;
}

int main(void)
{
	const struct setup *s = setup_find('s');
	struct worlds *ws = malloc(sizeof(*ws));
	struct test *t = calloc(1, sizeof(*t));
	struct img_error err = { 0 };
	unsigned nr = 0, bad = 0;
	struct memhost start;

	if (ws == NULL || t == NULL)
		abort();
	if (registry_find(s->format) == NULL) {
		printf("SKIPPED: full disk: this build has no format %s\n", s->format);
		free(t);
		free(ws);
		return 77;
	}
	fixed_host_reset(1);
	memhost_init(&start);
	t->setup = s;
	if (s->make(&start, ws, &err) != 0) {
		printf("FAILED: setup cannot be made: %s\n", err.msg);
		bad++;
	}
	for (uint64_t free_bytes = 0; bad == 0 || free_bytes != 0; free_bytes += STEP) {
		if (free_bytes > MOST)
			break;
		nr++;
		if (run(t, &start, ws, free_bytes) != 0 && bad++ < 8)
			printf("FAILED with 0x%llx bytes free: %s\n", (unsigned long long)free_bytes, t->why);
	}
	printf("full disk: %u sizes, %llu opened, %llu blocks written, %llu flushes without room, %u failures\n", nr,
	       (unsigned long long)t->nr_opened, (unsigned long long)t->nr_written,
	       (unsigned long long)t->nr_flushed_full, bad);
	memhost_destroy(&start);
	free(t);
	free(ws);
	return bad != 0;
}
