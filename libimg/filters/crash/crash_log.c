/* SPDX-License-Identifier: MIT */
/*
 * The log of the crash filter, and how an entry is replayed. A write is logged when it has returned, a flush likewise
 * with the position at which it began: a write that was under way beside it is not covered. That errs to the side of
 * losing more.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "crash_int.h"

struct crash_log {
	pthread_mutex_t lock;
	struct crash_entry *entries; /* lock, while nodes write */
	size_t nr, cap;		     /* lock, likewise */
};

struct crash_log *crash_log_new(void)
{
	struct crash_log *log = calloc(1, sizeof(*log));

	if (log != NULL)
		pthread_mutex_init(&log->lock, NULL);
	return log;
}

void crash_log_free(struct crash_log *log)
{
	if (log == NULL)
		return;
	for (size_t i = 0; i < log->nr; i++)
		free(log->entries[i].data);
	free(log->entries);
	pthread_mutex_destroy(&log->lock);
	free(log);
}

int crash_log_take(struct crash_log *log, const struct crash_entry *entry)
{
	int ret = 0;

	pthread_mutex_lock(&log->lock);
	if (log->nr == log->cap) {
		size_t cap = log->cap != 0 ? log->cap * 2 : 64;
		struct crash_entry *grown = realloc(log->entries, cap * sizeof(*grown));

		if (grown != NULL) {
			log->entries = grown;
			log->cap = cap;
		} else {
			ret = IMG_E_NOMEM;
		}
	}
	if (ret == 0)
		log->entries[log->nr++] = *entry;
	pthread_mutex_unlock(&log->lock);
	return ret;
}

int crash_log_add(struct crash_log *log, const struct crash_entry *entry)
{
	struct crash_entry copy = *entry;

	copy.data = NULL;
	return crash_log_take(log, &copy);
}

size_t crash_log_position(struct crash_log *log)
{
	size_t nr;

	pthread_mutex_lock(&log->lock);
	nr = log->nr;
	pthread_mutex_unlock(&log->lock);
	return nr;
}

size_t crash_log_nr(const struct crash_log *log)
{
	return log->nr;
}

const struct crash_entry *crash_log_at(const struct crash_log *log, size_t i)
{
	return &log->entries[i];
}

static bool is_name_entry(const struct crash_entry *entry)
{
	return entry->kind == CRASH_CREATE || entry->kind == CRASH_RENAME || entry->kind == CRASH_UNLINK;
}

bool crash_is_volatile(const struct crash_entry *entry)
{
	return entry->kind <= CRASH_ALLOCATE || is_name_entry(entry);
}

bool crash_is_durable(const struct crash_log *log, size_t i, size_t nr)
{
	const struct crash_entry *entry = &log->entries[i];

	for (size_t j = i + 1; j < nr; j++) {
		const struct crash_entry *sync = &log->entries[j];

		if (is_name_entry(entry) && sync->kind == CRASH_SYNC_DIR)
			return true;
		if (!is_name_entry(entry) && sync->kind == CRASH_FLUSH && sync->file == entry->file && i < sync->covers)
			return true;
	}
	return false;
}

/* ---- replay ------------------------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t seed, uint64_t x)
{
	return XXH3_64bits_withSeed(&x, sizeof(x), seed);
}

static int write_garbage(struct node *target, const struct crash_entry *entry, uint64_t seed)
{
	uint64_t words[64];
	int ret = 0;

	for (uint64_t done = 0; done < entry->bytes && ret == 0; done += sizeof(words)) {
		for (size_t i = 0; i < ARRAY_LEN(words); i++)
			words[i] = mix(seed, done + i);
		ret = node_pwrite(target, words, min_u64(sizeof(words), entry->bytes - done), entry->off + done, 0,
				  NULL);
	}
	return ret;
}

/* The part [at, at + n) of an entry, as if it were all of it. */
static int apply_part(struct node *target, const struct crash_entry *entry, uint64_t at, uint64_t n)
{
	uint64_t size = node_size(target);

	switch (entry->kind) {
	case CRASH_WRITE: return node_pwrite(target, entry->data + at, n, entry->off + at, 0, NULL);
	case CRASH_ZERO: return node_zero(target, n, entry->off + at, 0, NULL);
	case CRASH_DISCARD:
		if (entry->off + at >= size)
			return 0;
		return node_zero(target, min_u64(n, size - entry->off - at), entry->off + at, 0, NULL);
	default: return 0;
	}
}

static int apply_whole(struct node *target, const struct crash_entry *entry)
{
	uint64_t size = node_size(target);

	if (entry->kind == CRASH_TRUNCATE)
		return node_resize(target, entry->bytes, NULL);
	if (entry->kind == CRASH_ALLOCATE)
		return entry->off + entry->bytes > size ? node_resize(target, entry->off + entry->bytes, NULL) : 0;
	return apply_part(target, entry, 0, entry->bytes);
}

/* Sectors are those of the disk: a write that does not start on one tears at its boundaries all the same. */
static int apply_torn(struct node *target, const struct crash_entry *entry, const struct crash_fate *fate)
{
	uint64_t first = entry->off / fate->tear_bytes;
	uint64_t at = 0;
	int ret = 0;

	while (at < entry->bytes && ret == 0) {
		uint64_t sector = (entry->off + at) / fate->tear_bytes;
		uint64_t n = min_u64(entry->bytes - at, (sector + 1) * fate->tear_bytes - entry->off - at);
		bool kept;

		if (fate->kind == FATE_TORN)
			kept = mix(fate->seed, sector) & 1;
		else
			kept = (sector - first < fate->sectors) == (fate->kind == FATE_PREFIX);
		if (kept)
			ret = apply_part(target, entry, at, n);
		at += n;
	}
	return ret;
}

static int apply_length(struct node *target, const struct crash_entry *entry)
{
	uint64_t end = entry->off + entry->bytes;

	if (entry->kind == CRASH_TRUNCATE)
		return node_resize(target, entry->bytes, NULL);
	if (entry->kind == CRASH_DISCARD || end <= node_size(target))
		return 0;
	return node_resize(target, end, NULL);
}

int crash_apply(struct node *target, const struct crash_entry *entry, const struct crash_fate *fate)
{
	bool tears = entry->kind == CRASH_WRITE || entry->kind == CRASH_ZERO || entry->kind == CRASH_DISCARD;

	if (entry->kind > CRASH_ALLOCATE)
		return 0;
	switch (fate->kind) {
	case FATE_DROPPED: return 0;
	case FATE_APPLIED: return apply_whole(target, entry);
	case FATE_TORN:
	case FATE_PREFIX:
	case FATE_SUFFIX: return tears ? apply_torn(target, entry, fate) : 0;
	case FATE_GARBAGE:
		return entry->kind == CRASH_WRITE ? write_garbage(target, entry, fate->seed) :
						    apply_whole(target, entry);
	case FATE_LENGTH: return apply_length(target, entry);
	}
	return IMG_E_INVALID;
}
