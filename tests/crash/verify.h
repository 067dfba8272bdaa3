/* SPDX-License-Identifier: MIT */
/* Judging one disk as a crash left it. */
#ifndef TESTS_VERIFY_H
#define TESTS_VERIFY_H

#include "program.h"

#define WHY_BYTES 640u

struct verify_counts {
	uint64_t states;   /* post-crash disks that were built */
	uint64_t distinct; /* of which judged: the others equalled one that was judged under the same worlds */
	uint64_t foreign;  /* of the distinct ones, judged by others too */
	uint64_t nested;   /* disks after a second crash, while the first was being recovered from */
	uint64_t nested_distinct;
};

/*
 * The image opens read-only and shows one of the worlds; opens for writing; check finds nothing (or only leaks, where
 * the format has them, and nothing at all after a repair); closes; shows exactly the same again. commit: one that was
 * interrupted, until which nothing else may open the image for writing, is run again in between. 0, or -1 with why
 * filled.
 */
int verify_disk(struct memhost *disk, const struct setup *s, const struct worlds *ws, bool commit,
		struct observed *seen, char *why);
/*
 * Crashes once more, in the open for writing that recovers, and in a write and flush after it; judges the outcomes.
 * seen: what the disk shows, which must not change. at: which of them failed.
 */
int verify_recovery(const struct memhost *disk, const struct setup *s, const struct observed *seen,
		    struct verify_counts *counts, char *why);

/* Hashes seen so far. */
struct hash_set {
	uint64_t (*slot)[2];
	size_t nr, cap;
};
/* Adds; false where it was there already. */
bool hash_set_add(struct hash_set *set, const uint64_t hash[2]);
void hash_set_clear(struct hash_set *set);
void hash_set_free(struct hash_set *set);

#endif
