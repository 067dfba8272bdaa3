/* SPDX-License-Identifier: MIT */
/* See saver.h. */
#include "saver.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fail.h"

#define PIECE_BYTES  (UINT64_C(1) << 20) /* one write to the image */
#define VERIFY_BYTES (UINT64_C(4) << 20) /* one step of verification */

/* Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)
#define PAGEMAP_ENTRIES 512u

static uint64_t nr_pages(const struct saver *s)
{
	return s->mem->ram_bytes / MEMORY_PAGE;
}

int saver_init(struct saver *s, struct memory *mem, struct vm *vm, struct img *img, struct img_error *err)
{
	*s = (struct saver){ .mem = mem, .vm = vm, .img = img, .pagemap_fd = -1 };
	s->nr_words = (size_t)((nr_pages(s) + 63) / 64);
	s->since = calloc(s->nr_words, sizeof(*s->since));
	s->round = calloc(s->nr_words, sizeof(*s->round));
	if (!s->since || !s->round)
		return fail(err, IMG_E_NOMEM, "out of memory");
	/* opened now: later the sandbox lets nothing be opened */
	s->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	return s->pagemap_fd < 0 ? fail_errno(err, "/proc/self/pagemap") : 0;
}

void saver_done(struct saver *s)
{
	free(s->since);
	free(s->round);
	if (s->pagemap_fd >= 0)
		close(s->pagemap_fd);
	*s = (struct saver){ .pagemap_fd = -1 };
}

/* ---- what to write ----------------------------------------------------------------------------------------------- */

/* A page that nobody touched is not present, and reads as zeros. */
static int collect_present(struct saver *s, struct img_error *err)
{
	uint64_t entry[PAGEMAP_ENTRIES], all = nr_pages(s), first = (uint64_t)(uintptr_t)s->mem->base / MEMORY_PAGE;

	for (uint64_t page = 0; page < all; page += PAGEMAP_ENTRIES) {
		uint64_t nr = all - page < PAGEMAP_ENTRIES ? all - page : PAGEMAP_ENTRIES;
		ssize_t want = (ssize_t)(nr * sizeof(entry[0]));

		if (pread(s->pagemap_fd, entry, (size_t)want, (off_t)((first + page) * sizeof(entry[0]))) != want)
			return fail_errno(err, "reading /proc/self/pagemap");
		for (uint64_t i = 0; i < nr; i++)
			if (entry[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED))
				s->since[(page + i) / 64] |= UINT64_C(1) << ((page + i) % 64);
	}
	return 0;
}

static int start_tracking(struct saver *s, struct img_error *err)
{
	int ret = memory_track(s->mem, err);

	if (ret == 0)
		ret = vm_track(s->vm, true, err);
	s->tracking = ret == 0;
	return ret;
}

int saver_begin(struct saver *s, struct img_error *err)
{
	int ret = 0;

	s->nr_rounds = 0;
	/* recording comes first: what is written between the two is in both, never in none */
	if (!s->tracking)
		ret = start_tracking(s, err);
	if (ret != 0 || s->has_base)
		return ret;
	/* what an earlier machine left in the working state is no base of ours, nor is a failed attempt */
	ret = img_vmstate_resize(s->img, 0, err);
	if (ret == 0)
		ret = img_vmstate_resize(s->img, STATE_AREA_BYTES + s->mem->ram_bytes, err);
	if (ret != 0)
		return ret;
	if (s->all)
		memset(s->since, 0xff, s->nr_words * sizeof(*s->since));
	return s->all ? 0 : collect_present(s, err);
}

int saver_collect(struct saver *s, uint64_t *bytes, struct img_error *err)
{
	uint64_t pages = 0;
	int ret;

	memset(s->round, 0, s->nr_words * sizeof(*s->round));
	ret = vm_take_dirty(s->vm, s->round, err);
	memory_take_dirty(s->mem, 0, s->round, s->nr_words);
	for (size_t i = 0; i < s->nr_words; i++) {
		if (s->nr_rounds == 0)
			s->round[i] |= s->since[i];
		s->since[i] |= s->round[i];
		pages += (uint64_t)__builtin_popcountll(s->round[i]);
	}
	s->nr_rounds++;
	*bytes = pages * MEMORY_PAGE;
	return ret;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static bool is_set(const struct saver *s, const uint64_t *bits, uint64_t page)
{
	return page < nr_pages(s) && bits[page / 64] >> (page % 64) & 1;
}

static bool is_zero_page(const uint8_t *p)
{
	return p[0] == 0 && memcmp(p, p + 1, MEMORY_PAGE - 1) == 0;
}

/* `bytes` of pages that are all zeros, or none of which is. */
static int write_run(struct saver *s, const uint8_t *data, uint64_t bytes, uint64_t linear, bool zeros,
		     struct img_error *err)
{
	if (!zeros)
		return img_vmstate_write(s->img, data, bytes, STATE_AREA_BYTES + linear, err);
	/* without a base the state is empty at first: there is nothing that would have to become zero */
	if (!s->has_base && s->nr_rounds == 1)
		return 0;
	return img_vmstate_zero(s->img, bytes, STATE_AREA_BYTES + linear, err);
}

/* Pages in a row; data is what they hold. */
static int write_piece(struct saver *s, const uint8_t *data, uint64_t bytes, uint64_t linear, struct img_error *err)
{
	int ret = 0;

	for (uint64_t at = 0, end; ret == 0 && at < bytes; at = end) {
		bool zeros = is_zero_page(data + at);

		for (end = at + MEMORY_PAGE; end < bytes && is_zero_page(data + end) == zeros;)
			end += MEMORY_PAGE;
		ret = write_run(s, data + at, end - at, linear + at, zeros, err);
	}
	return ret;
}

/*
 * What a round writes leaves the block that it was mapped from to the snapshots that hold it, and these may be deleted.
 * A page that was written is a copy already; one that the log names and that nobody wrote becomes one here.
 */
static void copy_mapped(struct saver *s, uint64_t linear, uint64_t bytes)
{
	uint8_t *at = s->mem->base + linear;

	if (!s->mapped || madvise(at, bytes, MADV_POPULATE_WRITE) == 0)
		return;
	/* Linux before 5.14, or no memory for all at once: a write that changes nothing, whoever writes beside it */
	for (uint64_t off = 0; off < bytes; off += MEMORY_PAGE)
		__atomic_fetch_or(at + off, 0, __ATOMIC_RELAXED);
}

int saver_write(struct saver *s, bool guest_runs, struct img_error *err)
{
	uint8_t *copy = NULL;
	int ret = 0;

	if (guest_runs) {
		copy = mmap(NULL, PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (copy == MAP_FAILED)
			return fail_errno(err, "a buffer");
	}
	for (uint64_t page = 0; ret == 0 && page < nr_pages(s);) {
		uint64_t end = page, linear = page * MEMORY_PAGE;

		if (page % 64 == 0 && s->round[page / 64] == 0) {
			page += 64;
			continue;
		}
		while (end - page < PIECE_BYTES / MEMORY_PAGE && is_set(s, s->round, end))
			end++;
		if (end > page)
			copy_mapped(s, linear, (end - page) * MEMORY_PAGE);
		if (end > page && copy)
			memcpy(copy, s->mem->base + linear, (end - page) * MEMORY_PAGE);
		if (end > page)
			ret = write_piece(s, copy ? copy : s->mem->base + linear, (end - page) * MEMORY_PAGE, linear,
					  err);
		page = end > page ? end : page + 1;
	}
	if (copy)
		munmap(copy, PIECE_BYTES);
	return ret;
}

/* All pages of `since`, a run at a time. */
static void zero_since(struct saver *s)
{
	for (uint64_t page = 0; page < nr_pages(s);) {
		uint64_t end = page;

		if (page % 64 == 0 && s->since[page / 64] == 0) {
			page += 64;
			continue;
		}
		while (is_set(s, s->since, end))
			end++;
		if (end > page)
			img_vmstate_zero(s->img, (end - page) * MEMORY_PAGE, STATE_AREA_BYTES + page * MEMORY_PAGE,
					 NULL);
		page = end > page ? end : page + 1;
	}
}

void saver_abandon(struct saver *s)
{
	if (s->has_base)
		zero_since(s);
	/* what the image does not need any more can be used again when it says so on disk: a change of size does that */
	img_vmstate_resize(s->img, s->has_base ? STATE_AREA_BYTES + s->mem->ram_bytes : 0, NULL);
}

void saver_commit(struct saver *s)
{
	s->has_base = true;
	s->all = false;
	memset(s->since, 0, s->nr_words * sizeof(*s->since));
}

/* ---- back again -------------------------------------------------------------------------------------------------- */

int saver_load(struct saver *s, struct img *img, const char *snapshot, bool same, struct img_error *err)
{
	int ret = img_vmstate_load(img, snapshot, s->mem->base, s->mem->ram_bytes, STATE_AREA_BYTES, IMG_VMSTATE_MAP,
				   err);

	if (ret != 0)
		return ret;
	madvise(s->mem->base, s->mem->ram_bytes, MADV_DONTDUMP);
	s->mapped = true;
	s->has_base = same;
	s->all = !same;
	s->verify_img = img;
	s->verify_snapshot = same ? NULL : snapshot;
	s->verify_off = 0;
	memset(s->since, 0, s->nr_words * sizeof(*s->since));
	if (!s->tracking)
		return same ? start_tracking(s, err) : 0;
	ret = memory_track(s->mem, err);
	return ret ? ret : vm_forget_dirty(s->vm, err);
}

int saver_forget(struct saver *s, struct img_error *err)
{
	void *fresh = mmap(s->mem->base, s->mem->ram_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

	if (fresh == MAP_FAILED)
		return fail_errno(err, "fresh memory for the guest");
	madvise(fresh, s->mem->ram_bytes, MADV_DONTDUMP);
	s->mapped = s->has_base = s->all = false;
	s->verify_img = NULL;
	memset(s->since, 0, s->nr_words * sizeof(*s->since));
	return 0;
}

int saver_verify_step(struct saver *s, struct img_error *err)
{
	uint64_t bytes;
	int ret;

	if (!s->verify_img)
		return 0;
	bytes = s->mem->ram_bytes - s->verify_off;
	bytes = bytes < VERIFY_BYTES ? bytes : VERIFY_BYTES;
	ret = img_vmstate_verify(s->verify_img, s->verify_snapshot, bytes, STATE_AREA_BYTES + s->verify_off, err);
	if (ret != 0)
		return ret;
	s->verify_off += bytes;
	if (s->verify_off < s->mem->ram_bytes)
		return 1;
	s->verify_img = NULL;
	return 0;
}
