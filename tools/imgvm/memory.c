/* SPDX-License-Identifier: MIT */
/* See memory.h. */
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fail.h"

static void add_slot(struct memory *mem, uint64_t gpa, uint64_t linear, uint64_t end)
{
	mem->slot[mem->nr_slots++] = (struct memory_slot){ .gpa = gpa, .bytes = end - linear, .linear = linear };
}

int memory_init(struct memory *mem, uint64_t ram_bytes, struct img_error *err)
{
	void *base;

	*mem = (struct memory){ .ram_bytes = ram_bytes };
	if (ram_bytes % MEMORY_PAGE || ram_bytes < MEMORY_MIN_BYTES || ram_bytes > MEMORY_MAX_BYTES)
		return fail(err, IMG_E_INVALID, "memory is a multiple of 4 KiB from 2 MiB to 1 TiB");
	base = mmap(NULL, ram_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return fail_errno(err, "%llu MiB for the guest", (unsigned long long)(ram_bytes >> 20));
	/* a core dump of a guest helps nobody and holds its secrets */
	madvise(base, ram_bytes, MADV_DONTDUMP);
	mem->base = base;
	add_slot(mem, 0, 0, MEMORY_VGA_START);
	if (ram_bytes <= MEMORY_HOLE) {
		add_slot(mem, MEMORY_VGA_END, MEMORY_VGA_END, ram_bytes);
		return 0;
	}
	add_slot(mem, MEMORY_VGA_END, MEMORY_VGA_END, MEMORY_HOLE);
	add_slot(mem, MEMORY_HIGH, MEMORY_HOLE, ram_bytes);
	return 0;
}

void memory_free(struct memory *mem)
{
	if (mem->base)
		munmap(mem->base, mem->ram_bytes);
	free(mem->dirty);
	*mem = (struct memory){ 0 };
}

void *memory_at(const struct memory *mem, uint64_t gpa, uint64_t bytes)
{
	for (unsigned i = 0; i < mem->nr_slots; i++) {
		const struct memory_slot *s = &mem->slot[i];

		if (gpa >= s->gpa && gpa - s->gpa < s->bytes && bytes <= s->bytes - (gpa - s->gpa))
			return mem->base + s->linear + (gpa - s->gpa);
	}
	return NULL;
}

void memory_wrote(struct memory *mem, const void *ptr, uint64_t bytes)
{
	uint64_t at = (uint64_t)((const uint8_t *)ptr - mem->base);
	uint64_t first = at / MEMORY_PAGE, last = (at + bytes - 1) / MEMORY_PAGE;

	if (!mem->dirty || !bytes)
		return;
	for (uint64_t page = first; page <= last; page++) {
		uint64_t bit = UINT64_C(1) << (page % 64);

		if (!(atomic_load_explicit(&mem->dirty[page / 64], memory_order_relaxed) & bit))
			atomic_fetch_or(&mem->dirty[page / 64], bit);
	}
}

static size_t nr_words(const struct memory *mem)
{
	return (size_t)((mem->ram_bytes / MEMORY_PAGE + 63) / 64);
}

int memory_track(struct memory *mem, struct img_error *err)
{
	if (!mem->dirty) {
		mem->dirty = calloc(nr_words(mem), sizeof(*mem->dirty));
		return mem->dirty ? 0 : fail(err, IMG_E_NOMEM, "out of memory");
	}
	for (size_t i = 0; i < nr_words(mem); i++)
		atomic_store(&mem->dirty[i], 0);
	return 0;
}

void memory_take_dirty(struct memory *mem, uint64_t page_start, uint64_t *words, size_t nr)
{
	size_t first = (size_t)(page_start / 64), all = nr_words(mem);

	for (size_t i = 0; mem->dirty && i < nr && first + i < all; i++)
		words[i] |= atomic_exchange(&mem->dirty[first + i], 0);
}
