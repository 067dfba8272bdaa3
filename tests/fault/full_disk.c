/* SPDX-License-Identifier: MIT */
/*
 *   full_disk [SETUP]
 *
 * A host disk that fills up: with every amount of free space up to some, in steps of 8 KiB, blocks are written, a
 * snapshot is taken (where the format has any), the same blocks are written again, until the disk is full. What fails then says IMG_E_NOSPC and
 * changes nothing else. What was flushed is there; snapshots can still be deleted (where a flush failed: after the
 * image was opened again), which makes room, after which writing works again where the snapshot held enough alone; the
 * image closes, opens and checks clean. So it does where the program is killed when the disk is full, or after it wrote
 * again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "fixed_host.h"
#include "program.h"
#include "verify.h"

#define STEP	      8192u
#define MOST	      (3u << 20)
#define BLOCKS	      96u /* written, and written again */
#define BLOCK_SECTORS 8u
#define ENOUGH	      80u /* blocks of a snapshot's own, from which its deletion makes room for a write and what that needs */

struct test {
	const struct setup *setup;
	struct memhost host;
	struct fault_plan plan;
	struct img *img;
	struct worlds ws, filled; /* filled: when the disk had become full */
	bool durable;		  /* something was flushed since */
	char why[WHY_BYTES];
	unsigned nr_again; /* blocks written again over the snapshot */
	uint64_t nr_written, nr_poisoned, nr_deleted, nr_wrote_again;
};

static int failed(struct test *t, const char *what, const struct img_error *err)
{
	snprintf(t->why, sizeof(t->why), "%s: %s", what, err->msg);
	return -1;
}

/* Sectors of block number i: scattered, so that new leaves and nodes are needed too. */
static uint32_t place(unsigned i)
{
	return (i * 37u % 250u) * BLOCK_SECTORS;
}

/* Writes the blocks, with a flush now and then. Returns what failed. */
static int write_blocks(struct test *t, uint8_t id, unsigned *nr, struct img_error *err)
{
	uint8_t buf[BLOCK_SECTORS * SECTOR];
	int ret = 0;

	for (*nr = 0; *nr < BLOCKS && ret == 0; (*nr)++) {
		uint32_t first = place(*nr);

		/* After a failure the range may hold either. */
		worlds_write(&t->ws, first, BLOCK_SECTORS, id);
		pattern_fill(buf, sizeof(buf), first, id);
		ret = img_pwrite(t->img, buf, sizeof(buf), (uint64_t)first * SECTOR, 0, err);
		if (ret == 0 && *nr % 16 == 15) {
			ret = img_flush(t->img, 0, err);
			if (ret == 0)
				worlds_settle(&t->ws);
		}
		t->nr_written += ret == 0;
	}
	return ret;
}

/* *full: the disk is. */
static int fill(struct test *t, bool *full)
{
	struct img_error err;
	int ret = write_blocks(t, 61, &t->nr_again, &err);
	struct world after;

	t->nr_again = 0;
	if (ret == 0 && img_caps(t->img) & IMG_CAP_SNAPSHOTS) {
		after = *worlds_latest(&t->ws);
		world_settle(&after);
		after.snap[after.nr_snaps] = (struct snap_content){ .name = "C", .content = after.latest };
		after.snap[after.nr_snaps++].content.vm_sectors = 0;
		ret = img_snapshot_create(t->img, "C", 0, &err);
		if (ret == 0)
			t->ws.nr = 0;
		worlds_append(&t->ws, &after);
	}
	if (ret == 0)
		ret = write_blocks(t, 62, &t->nr_again, &err);
	*full = ret != 0;
	return ret == 0 || ret == IMG_E_NOSPC ? 0 : failed(t, "a full disk is not said to be full", &err);
}

static int look(struct test *t, struct observed *seen)
{
	memset(seen, 0, sizeof(*seen));
	return observe(t->img, t->setup->vm, seen, t->why, sizeof(t->why)) == 0 &&
			       worlds_allow(&t->ws, seen, t->why, sizeof(t->why)) ?
		       0 :
		       -1;
}

/* A change that shows nowhere: this block is zeros all the time. */
static bool is_poisoned(struct test *t)
{
	return img_zero(t->img, BLOCK_SECTORS * SECTOR, 251ull * BLOCK_SECTORS * SECTOR, 0, NULL) == IMG_E_POISONED;
}

/* A failed flush or commit forbids changes until the image is opened again: then that is done. */
static int reopen_if_poisoned(struct test *t)
{
	struct img_error err;

	if (!is_poisoned(t))
		return 0;
	t->nr_poisoned++;
	img_close(t->img, NULL);
	t->img = NULL;
	return open_image(&t->host, t->setup, IMG_OPEN_WRITE, &t->img, &err) == 0 ?
		       0 :
		       failed(t, "does not open again", &err);
}

/* The files as they are now, on a host with room: what a kill at this moment leaves. */
static int look_as_killed(struct test *t)
{
	struct memhost left;
	struct observed seen;
	int ret;

	memhost_clone(&left, &t->host);
	ret = verify_disk(&left, t->setup, &t->ws, false, &seen, t->why);
	memhost_destroy(&left);
	return ret;
}

static int delete_all(struct test *t, struct observed *seen)
{
	static const char *const names[] = { "C", "A", "B" };
	struct img_error err;
	int ret;

	t->filled = t->ws;
	worlds_of_observed(seen, &t->ws);
	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		if (world_snap(&t->ws.w[0], names[i]) == NULL)
			continue;
		ret = img_snapshot_delete(t->img, names[i], &err);
		/* qcow2 writes counts and tables anew before it gives up the old ones: that may be more than there is. */
		if (ret == IMG_E_NOSPC && t->setup->may_leak)
			continue;
		if (ret != 0)
			return failed(t, "a snapshot cannot be deleted on a full disk", &err);
		world_drop_snap(&t->ws.w[0], names[i]);
		t->durable = true;
		t->nr_deleted++;
	}
	return 0;
}

static int write_again(struct test *t)
{
	uint8_t buf[BLOCK_SECTORS * SECTOR];
	struct img_error err;
	int ret;

	worlds_write(&t->ws, 0, BLOCK_SECTORS, 63);
	pattern_fill(buf, sizeof(buf), 0, 63);
	ret = img_pwrite(t->img, buf, sizeof(buf), 0, 0, &err);
	if (ret == 0)
		ret = img_flush(t->img, 0, &err);
	if (ret == 0) {
		worlds_settle(&t->ws);
		t->durable = true;
		t->nr_wrote_again++;
		return 0;
	}
	return ret == IMG_E_NOSPC && (t->nr_again < ENOUGH || t->setup->may_leak) ?
		       0 :
		       failed(t, "no write after snapshots were deleted", &err);
}

static int use(struct test *t)
{
	struct observed seen;
	struct img_error err;
	bool full = false;
	int closed, ret = fill(t, &full);

	if (ret == 0)
		ret = look_as_killed(t);
	if (ret == 0)
		ret = look(t, &seen);
	if (ret == 0 && full) {
		ret = reopen_if_poisoned(t);
		if (ret == 0)
			ret = look(t, &seen);
		if (ret == 0)
			ret = delete_all(t, &seen);
		if (ret == 0)
			ret = write_again(t);
		if (ret == 0 && t->durable)
			ret = look_as_killed(t);
		if (ret == 0)
			ret = look(t, &seen);
	}
	if (t->img == NULL)
		return -1;
	/* The last write may have failed its flush. */
	if (is_poisoned(t)) {
		img_close(t->img, NULL);
		return ret;
	}
	closed = img_close(t->img, &err);
	/* Other formats than limg put their tables where they belong when they flush: there may be no room then, which they say. */
	if (closed == IMG_E_NOSPC && t->setup->may_leak) {
		if (full && !t->durable) {
			t->ws = t->filled;
			worlds_write(&t->ws, 0, BLOCK_SECTORS, 63);
		}
		return ret;
	}
	if (closed != 0 && ret == 0)
		ret = failed(t, "does not close", &err);
	/* What the handle showed last, whatever failed before, is on the disk now. */
	if (ret == 0)
		worlds_of_observed(&seen, &t->ws);
	return ret;
}

static int run(struct test *t, const struct memhost *start, const struct worlds *ws, uint64_t free_bytes)
{
	struct observed seen;
	struct img_error err;
	int ret;

	fixed_host_reset(free_bytes);
	memhost_clone(&t->host, start);
	fault_plan_init(&t->plan);
	t->plan.disk_full_mode = true;
	t->plan.free_bytes = free_bytes;
	t->host.plan = &t->plan;
	t->ws = *ws;
	t->img = NULL;
	t->durable = false;
	if (open_image(&t->host, t->setup, IMG_OPEN_WRITE, &t->img, &err) == 0)
		ret = use(t);
	else
		ret = failed(t, "does not open", &err);
	/* Judged on a host with room. */
	t->host.plan = NULL;
	if (ret == 0)
		ret = verify_disk(&t->host, t->setup, &t->ws, false, &seen, t->why);
	memhost_destroy(&t->host);
	fault_plan_destroy(&t->plan);
	return ret;
}

int main(int argc, char **argv)
{
	const struct setup *s = setup_find(argc > 1 ? *argv[1] : 's');
	struct worlds *ws = malloc(sizeof(*ws));
	struct test *t = calloc(1, sizeof(*t));
	struct img_error err = { 0 };
	unsigned nr = 0, bad = 0;
	struct memhost start;

	if (ws == NULL || t == NULL || s == NULL)
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
	if (s->make(s, &start, ws, &err) != 0) {
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
	printf("full disk (%s): %u sizes, %llu blocks written, %llu times opened again after a failed flush, %llu snapshots deleted, %llu times "
	       "written after that, %u failures\n",
	       s->what, nr, (unsigned long long)t->nr_written, (unsigned long long)t->nr_poisoned,
	       (unsigned long long)t->nr_deleted, (unsigned long long)t->nr_wrote_again, bad);
	memhost_destroy(&start);
	free(t);
	free(ws);
	return bad != 0;
}
