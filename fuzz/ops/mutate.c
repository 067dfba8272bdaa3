/* SPDX-License-Identifier: MIT */
/*
 * Changes programs as such: operations come, go, move, are repeated, and have one of their numbers changed. Bytes alone
 * would shift all that follows an inserted one. The same seed does the same.
 */
#include <string.h>

#include "ops.h"

#define CRASH_BYTE 38u /* see the lists of ops.c */
#define FAULT_BYTE 39u

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes, uint8_t *out,
				 size_t max, unsigned seed);

static uint8_t *record(uint8_t *data, size_t i)
{
	return data + 1 + i * OPS_RECORD;
}

static void fill(uint8_t *to, uint64_t *rng)
{
	for (unsigned i = 0; i < OPS_RECORD; i++)
		to[i] = (uint8_t)rng_next(rng);
}

/* One number of an operation: another, a small one, or next to what it was. */
static void change(uint8_t *at, uint64_t *rng)
{
	static const uint8_t first[] = { 0, 1, 4, 6, 8 }, width[] = { 1, 3, 2, 2, 2 };
	uint64_t r = rng_next(rng);
	unsigned which = (unsigned)(r % 5);

	for (unsigned i = 0; i < width[which]; i++) {
		uint8_t *p = &at[first[which] + i];

		switch (r >> 8 & 3) {
		case 0: *p = (uint8_t)rng_next(rng); break;
		case 1: *p = (uint8_t)(i == 0 ? r >> 16 & 15 : 0); break;
		case 2: *p = (uint8_t)(i == 0 ? *p + 1 - (r >> 16 & 2) : *p); break;
		default: *p ^= (uint8_t)(i == (r >> 24) % width[which] ? 1u << (r >> 16 & 7) : 0); break;
		}
	}
}

static size_t insert(uint8_t *data, size_t nr, size_t at, const uint8_t *from)
{
	uint8_t copy[OPS_RECORD];

	memcpy(copy, from, OPS_RECORD);
	memmove(record(data, at + 1), record(data, at), (nr - at) * OPS_RECORD);
	memcpy(record(data, at), copy, OPS_RECORD);
	return nr + 1;
}

static size_t mutate(uint8_t *data, size_t nr, size_t most, uint64_t *rng)
{
	uint64_t r = rng_next(rng);
	size_t at = nr ? (size_t)(r >> 16) % nr : 0, to = (size_t)(r >> 32) % (nr + 1);
	uint8_t fresh[OPS_RECORD];

	switch (nr ? r % 12 : 0) {
	case 0:
	case 1: fill(fresh, rng); return nr < most ? insert(data, nr, to, fresh) : nr;
	case 2: /* a host that fails, or crashes */
		fill(fresh, rng);
		fresh[0] = r >> 8 & 1 ? FAULT_BYTE : CRASH_BYTE;
		return nr < most ? insert(data, nr, to, fresh) : nr;
	case 3:
	case 4: return nr < most ? insert(data, nr, to, record(data, at)) : nr;
	case 5:
	case 6: memmove(record(data, at), record(data, at + 1), (nr - at - 1) * OPS_RECORD); return nr - 1;
	case 7:
		memcpy(fresh, record(data, at), OPS_RECORD);
		memmove(record(data, at), record(data, at + 1), (nr - at - 1) * OPS_RECORD);
		return insert(data, nr - 1, to < nr ? to : nr - 1, fresh);
	default: change(record(data, at), rng); return nr;
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed)
{
	size_t most = (max - 1) / OPS_RECORD < OPS_MAX ? (max - 1) / OPS_RECORD : OPS_MAX;
	size_t nr = bytes > 1 ? (bytes - 1) / OPS_RECORD : 0;
	uint64_t rng = seed;

	if (max < 1 + OPS_RECORD)
		return bytes;
	if (bytes == 0 || rng_next(&rng) % 32 == 0)
		data[0] = (uint8_t)(rng_next(&rng) % 16);
	nr = nr < most ? nr : most;
	for (uint64_t i = 1 + rng_next(&rng) % 4; i > 0; i--)
		nr = mutate(data, nr, most, &rng);
	return 1 + nr * OPS_RECORD;
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes, uint8_t *out,
				 size_t max, unsigned seed)
{
	size_t nr_a = a_bytes > 1 ? (a_bytes - 1) / OPS_RECORD : 0, nr_b = b_bytes > 1 ? (b_bytes - 1) / OPS_RECORD : 0;
	size_t from, head;
	uint64_t rng = seed;

	if (max == 0 || a_bytes == 0)
		return 0;
	/* The beginning of one, then the end of the other. */
	head = rng_next(&rng) % (nr_a + 1) * OPS_RECORD;
	from = rng_next(&rng) % (nr_b + 1);
	head = head + 1 < max ? head : 0;
	memcpy(out, a, head + 1);
	nr_b -= from;
	if (1 + head + nr_b * OPS_RECORD > max)
		nr_b = (max - 1 - head) / OPS_RECORD;
	if (nr_b)
		memcpy(out + 1 + head, b + 1 + from * OPS_RECORD, nr_b * OPS_RECORD);
	return 1 + head + nr_b * OPS_RECORD;
}
