/* SPDX-License-Identifier: MIT */
/*
 * The list. With n volatile entries, in the order of the log:
 *   - every prefix of them (none and all among these), every one lost alone, every one there alone;
 *   - all subsets, where n is at most SUBSET_BITS;
 *   - each write torn at sectors of 512 bytes: its beginning as the last thing that happened, its beginning, its end or
 * a random half while all else is there; the same at 4096 bytes for larger ones;
 *   - each write as rubbish, alone and with all else; all of them as rubbish;
 *   - the length of the file without the data, for each and for all;
 *   - random mixtures of all fates.
 * The fates of a state are made from its number alone, so that one state can be built again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "states.h"

#define SUBSET_BITS   5u
#define NR_RANDOM     16u
#define NR_RANDOM_FEW 3u

static void out_of_memory(void)
{
	fputs("states: out of memory\n", stderr);
	abort();
}

/* ---- the walker -------------------------------------------------------------------------------------------------- */

void walker_init(struct walker *w, const struct memhost *start, const struct crash_log *log, const struct memhost *live)
{
	memset(w, 0, sizeof(*w));
	memhost_clone(&w->durable, start);
	w->log = log;
	w->live = live;
}

void walker_destroy(struct walker *w)
{
	memhost_destroy(&w->durable);
	free(w->loose);
}

static bool is_name(const struct crash_entry *e)
{
	return e->kind == CRASH_CREATE || e->kind == CRASH_RENAME || e->kind == CRASH_UNLINK;
}

/* Nodes on the files of a disk, made when they are needed. */
struct disk_nodes {
	struct memhost *disk;
	struct node *node[MEMHOST_FILES];
};

static void apply(struct disk_nodes *nodes, const struct memhost *live, const struct crash_entry *e,
		  const struct crash_fate *fate)
{
	struct host_open args = { .writable = true };
	struct memhost_file *file = &nodes->disk->file[e->file];
	struct node **node = &nodes->node[e->file];

	if (is_name(e)) {
		if (fate->kind != FATE_DROPPED)
			memhost_apply_name(nodes->disk, e, live);
		return;
	}
	if (file->content == NULL)
		file->content = mem_content_new();
	if (file->content == NULL || (*node == NULL && mem_node_on(file->content, "", &args, node, NULL) != 0))
		out_of_memory();
	if (crash_apply(*node, e, fate) != 0)
		out_of_memory();
}

static void close_nodes(struct disk_nodes *nodes)
{
	for (unsigned i = 0; i < MEMHOST_FILES; i++)
		node_close(nodes->node[i], NULL);
}

/* What this flush or folder sync covers becomes durable, in order. */
static void settle(struct walker *w, const struct crash_entry *sync)
{
	static const struct crash_fate whole = { .kind = FATE_APPLIED };
	struct disk_nodes nodes = { .disk = &w->durable };
	size_t kept = 0;

	for (size_t i = 0; i < w->nr_loose; i++) {
		const struct crash_entry *e = crash_log_at(w->log, w->loose[i]);
		bool covered = sync->kind == CRASH_SYNC_DIR ?
				       is_name(e) :
				       !is_name(e) && e->file == sync->file && w->loose[i] < sync->covers;

		if (covered)
			apply(&nodes, w->live, e, &whole);
		else
			w->loose[kept++] = w->loose[i];
	}
	w->nr_loose = kept;
	close_nodes(&nodes);
}

void walker_advance(struct walker *w, size_t pos)
{
	for (; w->pos < pos; w->pos++) {
		const struct crash_entry *e = crash_log_at(w->log, w->pos);

		if (e->kind == CRASH_FLUSH || e->kind == CRASH_SYNC_DIR) {
			settle(w, e);
			continue;
		}
		if (!crash_is_volatile(e))
			continue;
		if (w->nr_loose == w->cap_loose) {
			w->cap_loose = w->cap_loose != 0 ? w->cap_loose * 2 : 64;
			w->loose = realloc(w->loose, w->cap_loose * sizeof(*w->loose));
			if (w->loose == NULL)
				out_of_memory();
		}
		w->loose[w->nr_loose++] = w->pos;
	}
}

/* ---- the fates of a state ---------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	uint64_t pair[2] = { a, b };

	return XXH3_64bits(pair, sizeof(pair));
}

static void all(struct crash_fate *f, size_t n, enum crash_fate_kind kind)
{
	for (size_t i = 0; i < n; i++)
		f[i] = (struct crash_fate){ .kind = kind, .tear_bytes = 512, .seed = i + 1 };
}

static struct crash_fate random_fate(uint64_t r)
{
	struct crash_fate f = { .kind = FATE_APPLIED, .tear_bytes = r >> 32 & 1 ? 512 : 4096, .seed = r };
	uint64_t pick = r % 100;

	if (pick < 40)
		f.kind = FATE_DROPPED;
	else if (pick < 52)
		f.kind = FATE_TORN;
	else if (pick < 57)
		f.kind = FATE_GARBAGE;
	else if (pick < 62)
		f.kind = FATE_LENGTH;
	return f;
}

enum tear { TEAR_LAST, TEAR_PREFIX, TEAR_SUFFIX, TEAR_RANDOM, TEAR_PREFIX_4K, TEAR_RANDOM_4K, NR_TEARS };

/* false: this entry does not tear like that. */
static bool tear(const struct walker *w, struct crash_fate *f, size_t i, unsigned kind)
{
	const struct crash_entry *e = crash_log_at(w->log, w->loose[i]);
	uint32_t unit = kind >= TEAR_PREFIX_4K ? 4096 : 512;
	uint64_t sectors = e->bytes / unit;

	if (e->kind > CRASH_DISCARD || sectors < 2)
		return false;
	all(f, w->nr_loose, FATE_APPLIED);
	if (kind == TEAR_LAST)
		all(f + i, w->nr_loose - i, FATE_DROPPED);
	f[i] = (struct crash_fate){ .kind = FATE_PREFIX, .tear_bytes = unit, .seed = mix(i, kind) };
	f[i].sectors = 1 + mix(f[i].seed, e->off) % (sectors - 1);
	if (kind == TEAR_SUFFIX)
		f[i].kind = FATE_SUFFIX;
	if (kind == TEAR_RANDOM || kind == TEAR_RANDOM_4K)
		f[i].kind = FATE_TORN;
	return true;
}

/*
 * Fates of state `number`. Returns 1; 0 where the number stands for nothing here (go on with the next); -1 past the
 * last. Each block takes its numbers off the front.
 */
static int fates(const struct walker *w, enum states_effort effort, bool garbage, uint64_t number, struct crash_fate *f)
{
	size_t n = w->nr_loose;
	bool few = effort == STATES_FEW;
	uint64_t k = number;

	if (k <= n) { /* prefixes */
		all(f, n, FATE_DROPPED);
		all(f, (size_t)k, FATE_APPLIED);
		return 1;
	}
	k -= n + 1;
	if (k < n) { /* one lost */
		all(f, n, FATE_APPLIED);
		f[k].kind = FATE_DROPPED;
		return 1;
	}
	k -= n;
	if (k < n) { /* torn as the last */
		return tear(w, f, (size_t)k, TEAR_LAST);
	}
	k -= n;
	if (k < (few ? NR_RANDOM_FEW : NR_RANDOM)) {
		if (n < 2)
			return 0;
		for (size_t i = 0; i < n; i++) {
			f[i] = random_fate(mix(number, i));
			if (f[i].kind == FATE_GARBAGE && !garbage)
				f[i].kind = FATE_TORN;
		}
		return 1;
	}
	k -= few ? NR_RANDOM_FEW : NR_RANDOM;
	if (few)
		return -1;
	if (k < n) { /* one kept */
		all(f, n, FATE_DROPPED);
		f[k].kind = FATE_APPLIED;
		return 1;
	}
	k -= n;
	if (n <= SUBSET_BITS && k < UINT64_C(1) << n) {
		for (size_t i = 0; i < n; i++)
			f[i] = (struct crash_fate){ .kind = k >> i & 1 ? FATE_APPLIED : FATE_DROPPED };
		return 1;
	}
	k -= n <= SUBSET_BITS ? UINT64_C(1) << n : 0;
	if (k < n * (NR_TEARS - 1))
		return tear(w, f, (size_t)(k / (NR_TEARS - 1)), 1 + (unsigned)(k % (NR_TEARS - 1)));
	k -= n * (NR_TEARS - 1);
	if (k < 2) { /* all lengths, all rubbish */
		all(f, n, k == 0 ? FATE_LENGTH : FATE_GARBAGE);
		return n > 0 && (k == 0 || garbage);
	}
	k -= 2;
	if (k < n) { /* one as length only */
		all(f, n, FATE_APPLIED);
		f[k].kind = FATE_LENGTH;
		return 1;
	}
	k -= n;
	if (k < 2 * n) { /* one as rubbish */
		all(f, n, k % 2 ? FATE_APPLIED : FATE_DROPPED);
		f[k / 2] = (struct crash_fate){ .kind = FATE_GARBAGE, .seed = k + 1 };
		return garbage && crash_log_at(w->log, w->loose[k / 2])->kind == CRASH_WRITE;
	}
	return -1;
}

static void build(const struct walker *w, const struct crash_fate *f, struct memhost *disk)
{
	struct disk_nodes nodes = { .disk = disk };

	memhost_clone(disk, &w->durable);
	for (size_t i = 0; i < w->nr_loose; i++)
		apply(&nodes, w->live, crash_log_at(w->log, w->loose[i]), &f[i]);
	close_nodes(&nodes);
}

int walker_states(struct walker *w, enum states_effort effort, bool garbage, state_fn fn, void *ctx)
{
	struct crash_fate *f = calloc(w->nr_loose + 1, sizeof(*f));
	int ret = 0;

	if (f == NULL)
		out_of_memory();
	for (uint64_t number = 0; ret == 0; number++) {
		int kind = fates(w, effort, garbage, number, f);
		struct memhost disk;

		if (kind < 0)
			break;
		if (kind == 0)
			continue;
		build(w, f, &disk);
		ret = fn(ctx, number, &disk);
		memhost_destroy(&disk);
	}
	free(f);
	return ret;
}

void walker_describe(struct walker *w, enum states_effort effort, bool garbage, uint64_t number, char *out,
		     size_t out_bytes)
{
	static const char *const kinds[] = { "write", "zero",	"discard", "truncate", "allocate",
					     "flush", "create", "rename",  "unlink" };
	static const char *const fate_names[] = {
		"dropped", "applied", "torn", "prefix", "suffix", "garbage", "length"
	};
	struct crash_fate *f = calloc(w->nr_loose + 1, sizeof(*f));
	size_t at = 0;

	if (f == NULL)
		out_of_memory();
	out[0] = '\0';
	if (fates(w, effort, garbage, number, f) == 1) {
		for (size_t i = 0; i < w->nr_loose && at < out_bytes; i++) {
			const struct crash_entry *e = crash_log_at(w->log, w->loose[i]);
			int n = snprintf(out + at, out_bytes - at, "  %-8s file %u 0x%llx+0x%llx: %s", kinds[e->kind],
					 e->file, (unsigned long long)e->off, (unsigned long long)e->bytes,
					 fate_names[f[i].kind]);

			at += n > 0 ? (size_t)n : 0;
			if (f[i].kind >= FATE_TORN && f[i].kind <= FATE_SUFFIX && at < out_bytes) {
				n = snprintf(out + at, out_bytes - at, " (%u, %llu)", f[i].tear_bytes,
					     (unsigned long long)f[i].sectors);
				at += n > 0 ? (size_t)n : 0;
			}
			if (at + 1 < out_bytes) {
				out[at++] = '\n';
				out[at] = '\0';
			}
		}
	}
	free(f);
}
