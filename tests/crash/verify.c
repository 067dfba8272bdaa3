/* SPDX-License-Identifier: MIT */
/* See verify.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "states.h"
#include "verify.h"

/* ---- one disk ---------------------------------------------------------------------------------------------------- */

struct first_finding {
	char text[240];
};

static void take_finding(void *ctx, const struct img_finding *f)
{
	struct first_finding *first = ctx;

	if (f->kind != IMG_FINDING_NOTE && first->text[0] == '\0')
		snprintf(first->text, sizeof(first->text), "%s %.200s", f->rule, f->msg);
}

enum strict { LEAKS_OK, SPARES_OK, SPOTLESS };

static int check_clean(struct img *img, unsigned flags, enum strict strict, const char *when, char *why)
{
	struct first_finding first = { "" };
	struct img_check_result result;
	struct img_error err;
	bool repair = flags & IMG_CHECK_REPAIR;

	if (strcmp(img_format(img), "raw") == 0)
		return 0;
	if (img_check(img, flags, take_finding, &first, NULL, &result, &err) != 0) {
		snprintf(why, WHY_BYTES, "check %s: %s", when, err.msg);
		return -1;
	}
	if (result.damage != 0 || (!repair && strict > LEAKS_OK && result.leaks != 0) ||
	    (strict == SPOTLESS && result.redundancy != 0)) {
		snprintf(why, WHY_BYTES, "check %s finds %llu damage, %llu leaks, %llu spare: %s", when,
			 (unsigned long long)result.damage, (unsigned long long)result.leaks,
			 (unsigned long long)result.redundancy, first.text);
		return -1;
	}
	return 0;
}

/* Leaks are what a crash may leave in some formats; a repair takes them all away. */
static int check_recovered(struct img *img, const struct setup *s, char *why)
{
	int ret = check_clean(img, 0, s->may_leak ? LEAKS_OK : SPARES_OK, "while recovered", why);

	if (ret != 0 || !s->may_leak)
		return ret;
	ret = check_clean(img, IMG_CHECK_REPAIR, LEAKS_OK, "with repair", why);
	return ret == 0 ? check_clean(img, 0, SPOTLESS, "after repair", why) : ret;
}

static int observe_new(struct memhost *disk, const struct setup *s, struct observed *seen, char *why)
{
	struct setup made = { .format = s->new_format ? s->new_format : s->format, .file = NEW_FILE };
	struct img_error err;
	struct img *img;
	int ret;

	if (memhost_find(disk, NEW_FILE) == NULL)
		return 0;
	seen->has_new = true;
	if (open_image(disk, &made, 0, &img, &err) != 0) {
		snprintf(why, WHY_BYTES, "the converted file does not open: %s", err.msg);
		return -1;
	}
	ret = observe_disk(img, &seen->made, why, WHY_BYTES);
	if (ret == 0)
		ret = check_clean(img, 0, SPOTLESS, "of the converted file", why);
	img_close(img, NULL);
	return ret;
}

/* Is it an overlay whose commit was interrupted? */
static int find_committing(struct img *img, bool *committing, char *why)
{
	struct img_info info;
	struct img_error err;
	int ret = img_info(img, &info, &err);

	*committing = ret == 0 && info.backing_committing;
	if (ret != 0)
		snprintf(why, WHY_BYTES, "info fails: %s", err.msg);
	return ret;
}

/* Then nothing but commit changes it. */
static int refuses_writers(struct memhost *disk, const struct setup *s, char *why)
{
	struct img_error err;
	struct img *img;
	int ret = open_image(disk, s, IMG_OPEN_WRITE, &img, &err);

	if (ret == IMG_E_REFUSED)
		return 0;
	snprintf(why, WHY_BYTES, "waits for its commit, and opens for writing%s%s", ret == 0 ? "" : ": ",
		 ret == 0 ? "" : err.msg);
	if (ret == 0)
		img_close(img, NULL);
	return -1;
}

/* settled: this is after a writer: spare copies are whole too. */
static int look(struct memhost *disk, const struct setup *s, bool settled, struct observed *seen, char *why)
{
	struct img_error err;
	struct img *img;
	int ret;

	memset(seen, 0, sizeof(*seen));
	if (memhost_find(disk, s->file) == NULL) {
		seen->absent = true;
		return 0;
	}
	if (open_image(disk, s, 0, &img, &err) != 0) {
		snprintf(why, WHY_BYTES, "does not open read-only%s: %s", settled ? " after recovery" : "", err.msg);
		return -1;
	}
	ret = observe(img, s->vm, seen, why, WHY_BYTES);
	if (ret == 0)
		ret = find_committing(img, &seen->committing, why);
	if (ret == 0 && settled)
		ret = check_clean(img, 0, SPOTLESS, "after recovery", why);
	if (img_close(img, &err) != 0 && ret == 0) {
		snprintf(why, WHY_BYTES, "does not close read-only: %s", err.msg);
		ret = -1;
	}
	if (ret == 0 && seen->committing)
		ret = refuses_writers(disk, s, why);
	return ret == 0 ? observe_new(disk, s, seen, why) : -1;
}

static int recover(struct memhost *disk, const struct setup *s, bool commit, bool committing, char *why)
{
	struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 1 };
	struct img_error err;
	struct img *img;
	int ret;

	if (open_image(disk, s, IMG_OPEN_WRITE | (committing ? IMG_OPEN_NO_BACKING : 0), &img, &err) != 0) {
		snprintf(why, WHY_BYTES, "does not open for writing: %s", err.msg);
		return -1;
	}
	ret = check_recovered(img, s, why);
	if (ret == 0 && commit && (committing || img_backing(img) != NULL) && img_commit(img, &copy, &err) != 0) {
		snprintf(why, WHY_BYTES, "commit cannot be run again: %s", err.msg);
		ret = -1;
	}
	if (img_close(img, &err) != 0 && ret == 0) {
		snprintf(why, WHY_BYTES, "does not close after recovery: %s", err.msg);
		ret = -1;
	}
	return ret;
}

int verify_disk(struct memhost *disk, const struct setup *s, const struct worlds *ws, bool commit,
		struct observed *seen, char *why)
{
	struct observed again;
	bool committing;

	if (look(disk, s, false, seen, why) != 0)
		return -1;
	committing = seen->committing;
	if (!worlds_allow(ws, seen, why, WHY_BYTES))
		return -1;
	if (committing && !commit) {
		snprintf(why, WHY_BYTES, "waits for a commit that nobody began");
		return -1;
	}
	if (seen->absent)
		return 0;
	if (recover(disk, s, commit, committing, why) != 0 || look(disk, s, true, &again, why) != 0)
		return -1;
	if (again.committing) {
		snprintf(why, WHY_BYTES, "waits for its commit after it was run again");
		return -1;
	}
	if (!observed_equal(seen, &again)) {
		snprintf(why, WHY_BYTES, "shows something else after recovery than before");
		return -1;
	}
	return 0;
}

/* ---- crashes in recovery ----------------------------------------------------------------------------------------- */

struct nested {
	const struct setup *setup;
	const struct worlds *ws;
	struct hash_set *seen;
	struct verify_counts *counts;
	size_t point;
	char *why;
};

static int nested_state(void *ctx, uint64_t number, struct memhost *disk)
{
	struct nested *n = ctx;
	struct observed seen;
	uint64_t hash[2];

	n->counts->nested++;
	memhost_hash(disk, hash);
	if (!hash_set_add(n->seen, hash))
		return 0;
	n->counts->nested_distinct++;
	if (verify_disk(disk, n->setup, n->ws, false, &seen, n->why) == 0)
		return 0;
	snprintf(n->why + strlen(n->why), WHY_BYTES - strlen(n->why), " (crashed again at entry %zu, state %llu)",
		 n->point, (unsigned long long)number);
	return -1;
}

/* Opens, writes, flushes and closes with a log; *flushed: position in the log from which the write is durable. */
static int run_recovery(struct memhost *host, const struct setup *s, size_t *flushed, char *why)
{
	uint8_t buf[2 * SECTOR];
	struct img_error err;
	struct img *img;
	int ret;

	pattern_fill(buf, sizeof(buf), 2, FRESH_WRITE_ID);
	ret = open_image(host, s, IMG_OPEN_WRITE, &img, &err);
	if (ret == 0) {
		ret = img_pwrite(img, buf, sizeof(buf), 2 * SECTOR, 0, &err);
		if (ret == 0)
			ret = img_flush(img, 0, &err);
		*flushed = crash_log_nr(host->log);
		if (ret == 0)
			ret = img_close(img, &err);
		else
			img_close(img, NULL);
	}
	if (ret != 0)
		snprintf(why, WHY_BYTES, "cannot be used after recovery: %s", err.msg);
	return ret;
}

int verify_recovery(const struct memhost *disk, const struct setup *s, const struct observed *seen,
		    struct verify_counts *counts, char *why)
{
	struct memhost host;
	struct hash_set set = { 0 };
	struct worlds *ws = malloc(sizeof(*ws));
	struct nested n = { .setup = s, .ws = ws, .seen = &set, .counts = counts, .why = why };
	struct walker w;
	size_t flushed = 0, nr;
	int ret;

	memhost_clone(&host, disk);
	host.log = crash_log_new();
	if (ws == NULL || host.log == NULL)
		abort();
	worlds_of_observed(seen, ws);
	worlds_write(ws, 2, 2, FRESH_WRITE_ID);
	ret = run_recovery(&host, s, &flushed, why);
	walker_init(&w, disk, host.log, &host);
	nr = crash_log_nr(host.log);
	for (size_t i = 0; i <= nr && ret == 0; i++) {
		bool sync = i < nr && (crash_log_at(host.log, i)->kind == CRASH_FLUSH ||
				       crash_log_at(host.log, i)->kind == CRASH_SYNC_DIR);

		walker_advance(&w, i);
		n.point = i;
		if (i == flushed) {
			worlds_settle(ws);
			hash_set_clear(&set);
		}
		if (sync || i == nr || i == flushed)
			ret = walker_states(&w, STATES_FEW, s->garbage, nested_state, &n);
	}
	walker_destroy(&w);
	crash_log_free(host.log);
	memhost_destroy(&host);
	hash_set_free(&set);
	free(ws);
	return ret;
}

/* ---- hashes ------------------------------------------------------------------------------------------------------ */

static void insert(struct hash_set *set, const uint64_t hash[2])
{
	size_t i = (size_t)hash[0] & (set->cap - 1);

	while (set->slot[i][0] | set->slot[i][1])
		i = (i + 1) & (set->cap - 1);
	set->slot[i][0] = hash[0];
	set->slot[i][1] = hash[1];
}

static void grow(struct hash_set *set)
{
	struct hash_set old = *set;

	set->cap = old.cap != 0 ? old.cap * 2 : 256;
	set->slot = calloc(set->cap, sizeof(*set->slot));
	if (set->slot == NULL)
		abort();
	for (size_t i = 0; i < old.cap; i++) {
		if (old.slot[i][0] | old.slot[i][1])
			insert(set, old.slot[i]);
	}
	free(old.slot);
}

bool hash_set_add(struct hash_set *set, const uint64_t hash[2])
{
	if (set->nr * 2 >= set->cap)
		grow(set);
	for (size_t i = (size_t)hash[0] & (set->cap - 1); set->slot[i][0] | set->slot[i][1];
	     i = (i + 1) & (set->cap - 1)) {
		if (set->slot[i][0] == hash[0] && set->slot[i][1] == hash[1])
			return false;
	}
	insert(set, hash);
	set->nr++;
	return true;
}

void hash_set_clear(struct hash_set *set)
{
	if (set->slot != NULL)
		memset(set->slot, 0, set->cap * sizeof(*set->slot));
	set->nr = 0;
}

void hash_set_free(struct hash_set *set)
{
	free(set->slot);
}
