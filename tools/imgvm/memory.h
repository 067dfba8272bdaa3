/* SPDX-License-Identifier: MIT */
/*
 * The guest's RAM: one private mapping, `base`, in which RAM lies without holes ("linear"), and the slots at which the
 * guest sees parts of it. Below 1 MiB the range 0xa0000 to 0xbffff is no RAM; from 0xc0000000 to 4 GiB is the hole for
 * devices and ROM, and what does not fit below continues at 4 GiB.
 *
 * Addresses that come from the guest become pointers only by memory_at(), which knows no range that leaves a slot.
 *
 * Which pages changed since the last saved state is known in three ways, put together by whoever saves (snapshot.c):
 * the host's page map tells private pages from untouched ones; from memory_track() on KVM's dirty log holds what vCPUs
 * wrote, and `dirty` what devices wrote.
 *
 * Threads: the slots do not change while vCPUs or workers run. memory_wrote() may be called by any thread.
 */
#ifndef IMGVM_MEMORY_H
#define IMGVM_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libimg.h"

#define MEMORY_PAGE	 4096u
#define MEMORY_VGA_START UINT64_C(0xa0000)
#define MEMORY_VGA_END	 UINT64_C(0xc0000)
#define MEMORY_HOLE	 UINT64_C(0xc0000000) /* RAM below it, devices from it to 4 GiB */
#define MEMORY_HIGH	 UINT64_C(0x100000000)
#define MEMORY_MIN_BYTES (UINT64_C(2) << 20)
#define MEMORY_MAX_BYTES (UINT64_C(1) << 40)
#define MEMORY_MAX_SLOTS 3

struct memory_slot {
	uint64_t gpa; /* guest physical address */
	uint64_t bytes;
	uint64_t linear; /* offset in base */
};

struct memory {
	uint8_t *base; /* ram_bytes, page-aligned */
	uint64_t ram_bytes;
	struct memory_slot slot[MEMORY_MAX_SLOTS];
	unsigned nr_slots;
	_Atomic uint64_t
		*dirty; /* a bit a page of base: written by devices since the bits were last taken; NULL: not tracked */
};

/* ram_bytes: a multiple of MEMORY_PAGE, MEMORY_MIN_BYTES to MEMORY_MAX_BYTES; all zeros. */
int memory_init(struct memory *mem, uint64_t ram_bytes, struct img_error *err);
void memory_free(struct memory *mem);

/* The bytes at [gpa, gpa + bytes) if all of them lie in one slot, else NULL. bytes > 0. */
void *memory_at(const struct memory *mem, uint64_t gpa, uint64_t bytes);

/* A device wrote [ptr, ptr + bytes), which memory_at() gave out. To be called after the bytes were written. */
void memory_wrote(struct memory *mem, const void *ptr, uint64_t bytes);

/* Begins to record what devices write; the bits start clean. */
int memory_track(struct memory *mem, struct img_error *err);
/* Bits of base's pages from page_start on (a multiple of 64), moved out of `dirty` and or-ed into words. */
void memory_take_dirty(struct memory *mem, uint64_t page_start, uint64_t *words, size_t nr_words);

#endif
