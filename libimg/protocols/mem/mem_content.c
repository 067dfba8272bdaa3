/* SPDX-License-Identifier: MIT */
/*
 * Bytes in memory: a radix tree of 4 KiB pages, four levels of 512, so that a file of 16 TiB with three blocks in it
 * costs three pages and a few tables. An absent page is zeros.
 *
 * Pages are counted references and are shared between clones; a page with more than one reference is copied before it
 * is written. Tables belong to one content. Each page keeps the hash of its bytes while it is unchanged, so that
 * hashing clones that differ in a few pages costs these pages only.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "mem_int.h"

#define TABLE_BITS   9u
#define TABLE_SLOTS  (1u << TABLE_BITS)
#define TABLE_LEVELS 4u /* 4 * 9 + 12 bits: MEM_MAX_BYTES */

struct mem_page {
	_Atomic unsigned refs;
	_Atomic uint64_t hash; /* of data; 0: not known */
	uint8_t data[MEM_PAGE_BYTES];
};

struct mem_table {
	void *slot[TABLE_SLOTS]; /* struct mem_page at level 0, else struct mem_table */
};

static const uint8_t zero_page[MEM_PAGE_BYTES];

/* Stands for every page that is reserved and not yet written. Its own reference keeps it from being anybody's alone. */
static struct mem_page reserved_page = { .refs = 1 };

static unsigned slot_of(uint64_t index, unsigned level)
{
	return (unsigned)(index >> (level * TABLE_BITS)) & (TABLE_SLOTS - 1);
}

/* ---- pages and tables -------------------------------------------------------------------------------------------- */

static void page_unref(struct mem_page *page)
{
	if (atomic_fetch_sub(&page->refs, 1) == 1)
		free(page);
}

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static void free_table(struct mem_table *table, unsigned level)
{
	for (unsigned i = 0; i < TABLE_SLOTS; i++) {
		if (table->slot[i] == NULL)
			continue;
		if (level == 0)
			page_unref(table->slot[i]);
		else
			free_table(table->slot[i], level - 1);
	}
	free(table);
}

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static struct mem_table *clone_table(const struct mem_table *from, unsigned level)
{
	struct mem_table *table = calloc(1, sizeof(*table));

	if (table == NULL)
		return NULL;
	for (unsigned i = 0; i < TABLE_SLOTS; i++) {
		if (from->slot[i] == NULL)
			continue;
		if (level == 0) {
			struct mem_page *page = from->slot[i];

			atomic_fetch_add(&page->refs, 1);
			table->slot[i] = page;
			continue;
		}
		table->slot[i] = clone_table(from->slot[i], level - 1);
		if (table->slot[i] == NULL) {
			free_table(table, level);
			return NULL;
		}
	}
	return table;
}

static struct mem_page *find_page(const struct mem_content *content, uint64_t index)
{
	const struct mem_table *table = content->root;

	for (unsigned level = TABLE_LEVELS - 1; level > 0 && table != NULL; level--)
		table = table->slot[slot_of(index, level)];
	return table != NULL ? table->slot[slot_of(index, 0)] : NULL;
}

/* The slot of a page, with the tables on the way. NULL: no memory. */
static struct mem_page **make_slot(struct mem_content *content, uint64_t index)
{
	struct mem_table *table;

	if (content->root == NULL)
		content->root = calloc(1, sizeof(*content->root));
	table = content->root;
	for (unsigned level = TABLE_LEVELS - 1; level > 0 && table != NULL; level--) {
		void **slot = &table->slot[slot_of(index, level)];

		if (*slot == NULL)
			*slot = calloc(1, sizeof(*table));
		table = *slot;
	}
	return table != NULL ? (struct mem_page **)&table->slot[slot_of(index, 0)] : NULL;
}

/* A page that belongs to this content alone, with the bytes that were there. NULL: no memory, nothing changed. */
static struct mem_page *own_page(struct mem_content *content, uint64_t index)
{
	struct mem_page **slot = make_slot(content, index);
	struct mem_page *page, *old;

	if (slot == NULL)
		return NULL;
	old = *slot;
	if (old != NULL && atomic_load(&old->refs) == 1) {
		atomic_store(&old->hash, 0);
		return old;
	}
	page = malloc(sizeof(*page));
	if (page == NULL)
		return NULL;
	atomic_init(&page->refs, 1);
	atomic_init(&page->hash, 0);
	memcpy(page->data, old != NULL ? old->data : zero_page, MEM_PAGE_BYTES);
	if (old != NULL)
		page_unref(old);
	else
		content->nr_pages++;
	*slot = page;
	return page;
}

static void drop_page(struct mem_content *content, uint64_t index)
{
	struct mem_page **slot;

	if (find_page(content, index) == NULL)
		return;
	slot = make_slot(content, index); /* every table exists: no allocation */
	page_unref(*slot);
	*slot = NULL;
	content->nr_pages--;
}

/* Depth first, with whole absent subtrees skipped. base: index of the table's first page. */
/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static uint64_t next_in_table(const struct mem_table *table, unsigned level, uint64_t base, uint64_t index,
			      uint64_t end)
{
	uint64_t span = UINT64_C(1) << (level * TABLE_BITS);
	unsigned first = index > base ? (unsigned)min_u64((index - base) / span, TABLE_SLOTS) : 0;

	for (unsigned i = first; i < TABLE_SLOTS; i++) {
		uint64_t at = base + i * span;
		uint64_t found;

		if (at >= end)
			break;
		if (table->slot[i] == NULL)
			continue;
		if (level == 0)
			return at;
		found = next_in_table(table->slot[i], level - 1, at, index, end);
		if (found < end)
			return found;
	}
	return end;
}

uint64_t mem_next_present(const struct mem_content *content, uint64_t index, uint64_t end)
{
	if (content->root == NULL || index >= end)
		return end;
	return next_in_table(content->root, TABLE_LEVELS - 1, 0, index, end);
}

uint64_t mem_next_absent(const struct mem_content *content, uint64_t index, uint64_t end)
{
	while (index < end && find_page(content, index) != NULL)
		index++;
	return index;
}

/* ---- contents ---------------------------------------------------------------------------------------------------- */

struct mem_content *mem_content_new(void)
{
	struct mem_content *content = calloc(1, sizeof(*content));

	if (content == NULL)
		return NULL;
	atomic_init(&content->refs, 1);
	pthread_rwlock_init(&content->lock, NULL);
	pthread_mutex_init(&content->openers_lock, NULL);
	return content;
}

struct mem_content *mem_content_ref(struct mem_content *content)
{
	atomic_fetch_add(&content->refs, 1);
	return content;
}

void mem_content_unref(struct mem_content *content)
{
	if (content == NULL || atomic_fetch_sub(&content->refs, 1) != 1)
		return;
	if (content->root != NULL)
		free_table(content->root, TABLE_LEVELS - 1);
	pthread_rwlock_destroy(&content->lock);
	pthread_mutex_destroy(&content->openers_lock);
	free(content);
}

struct mem_content *mem_content_clone(struct mem_content *content)
{
	struct mem_content *copy = mem_content_new();
	bool failed = false;

	if (copy == NULL)
		return NULL;
	pthread_rwlock_rdlock(&content->lock);
	copy->size = content->size;
	copy->changes = content->changes;
	copy->nr_pages = content->nr_pages;
	if (content->root != NULL) {
		copy->root = clone_table(content->root, TABLE_LEVELS - 1);
		failed = copy->root == NULL;
	}
	pthread_rwlock_unlock(&content->lock);
	if (failed) {
		mem_content_unref(copy);
		return NULL;
	}
	return copy;
}

uint64_t mem_content_size(struct mem_content *content)
{
	uint64_t size;

	pthread_rwlock_rdlock(&content->lock);
	size = content->size;
	pthread_rwlock_unlock(&content->lock);
	return size;
}

uint64_t mem_content_allocated(struct mem_content *content)
{
	uint64_t bytes;

	pthread_rwlock_rdlock(&content->lock);
	bytes = content->nr_pages * MEM_PAGE_BYTES;
	pthread_rwlock_unlock(&content->lock);
	return bytes;
}

void mem_content_read(struct mem_content *content, void *buf, uint64_t bytes, uint64_t off)
{
	uint8_t *p = buf;

	pthread_rwlock_rdlock(&content->lock);
	while (bytes > 0) {
		uint64_t in_page = off % MEM_PAGE_BYTES;
		uint64_t n = min_u64(bytes, MEM_PAGE_BYTES - in_page);
		const struct mem_page *page = find_page(content, off / MEM_PAGE_BYTES);

		memcpy(p, (page != NULL ? page->data : zero_page) + in_page, (size_t)n);
		p += n;
		off += n;
		bytes -= n;
	}
	pthread_rwlock_unlock(&content->lock);
}

int mem_content_write(struct mem_content *content, const void *buf, uint64_t bytes, uint64_t off)
{
	const uint8_t *p = buf;
	int ret = 0;

	if (!range_inside(off, bytes, MEM_MAX_BYTES))
		return IMG_E_LIMIT;
	pthread_rwlock_wrlock(&content->lock);
	content->changes++;
	while (bytes > 0) {
		uint64_t in_page = off % MEM_PAGE_BYTES;
		uint64_t n = min_u64(bytes, MEM_PAGE_BYTES - in_page);
		struct mem_page *page = own_page(content, off / MEM_PAGE_BYTES);

		if (page == NULL) {
			ret = IMG_E_NOMEM;
			break;
		}
		memcpy(page->data + in_page, p, (size_t)n);
		p += n;
		off += n;
		bytes -= n;
		content->size = max_u64(content->size, off);
	}
	pthread_rwlock_unlock(&content->lock);
	return ret;
}

/* Zeros [off, end) without changing the size: whole pages go, partial ones are written. */
static int zero_locked(struct mem_content *content, uint64_t off, uint64_t end)
{
	while (off < end) {
		uint64_t index = off / MEM_PAGE_BYTES;
		uint64_t in_page = off % MEM_PAGE_BYTES;
		uint64_t n = min_u64(end - off, MEM_PAGE_BYTES - in_page);

		if (n == MEM_PAGE_BYTES) {
			drop_page(content, index);
		} else if (find_page(content, index) != NULL) {
			struct mem_page *page = own_page(content, index);

			if (page == NULL)
				return IMG_E_NOMEM;
			memset(page->data + in_page, 0, (size_t)n);
		}
		/* On to the next page that exists. */
		off += n;
		if (off < end && off % MEM_PAGE_BYTES == 0)
			off = min_u64(end, mem_next_present(content, off / MEM_PAGE_BYTES, end / MEM_PAGE_BYTES + 1) *
						   MEM_PAGE_BYTES);
	}
	return 0;
}

int mem_content_zero(struct mem_content *content, uint64_t bytes, uint64_t off)
{
	int ret;

	if (!range_inside(off, bytes, MEM_MAX_BYTES))
		return IMG_E_LIMIT;
	pthread_rwlock_wrlock(&content->lock);
	content->changes++;
	ret = zero_locked(content, off, off + bytes);
	if (ret == 0)
		content->size = max_u64(content->size, off + bytes);
	pthread_rwlock_unlock(&content->lock);
	return ret;
}

int mem_content_allocate(struct mem_content *content, uint64_t bytes, uint64_t off)
{
	int ret = 0;

	if (!range_inside(off, bytes, MEM_MAX_BYTES))
		return IMG_E_LIMIT;
	pthread_rwlock_wrlock(&content->lock);
	content->changes++;
	for (uint64_t i = off / MEM_PAGE_BYTES; ret == 0 && i * MEM_PAGE_BYTES < off + bytes; i++) {
		struct mem_page **slot = make_slot(content, i);

		if (slot == NULL) {
			ret = IMG_E_NOMEM;
		} else if (*slot == NULL) {
			atomic_fetch_add(&reserved_page.refs, 1);
			*slot = &reserved_page;
			content->nr_pages++;
		}
	}
	if (ret == 0)
		content->size = max_u64(content->size, off + bytes);
	pthread_rwlock_unlock(&content->lock);
	return ret;
}

int mem_content_resize(struct mem_content *content, uint64_t bytes)
{
	int ret = 0;

	if (bytes > MEM_MAX_BYTES)
		return IMG_E_LIMIT;
	pthread_rwlock_wrlock(&content->lock);
	content->changes++;
	if (bytes < content->size)
		ret = zero_locked(content, bytes, content->size);
	if (ret == 0)
		content->size = bytes;
	pthread_rwlock_unlock(&content->lock);
	return ret;
}

static uint64_t page_hash(struct mem_page *page)
{
	uint64_t hash = atomic_load(&page->hash);

	if (hash == 0) {
		hash = XXH3_64bits(page->data, MEM_PAGE_BYTES);
		hash = hash != 0 ? hash : 1;
		atomic_store(&page->hash, hash);
	}
	return hash;
}

void mem_content_hash(struct mem_content *content, uint64_t out[2])
{
	uint64_t zero_hash = XXH3_64bits(zero_page, sizeof(zero_page));
	uint64_t end;

	pthread_rwlock_rdlock(&content->lock);
	end = round_up(content->size, MEM_PAGE_BYTES) / MEM_PAGE_BYTES;
	out[0] = content->size;
	out[1] = ~content->size;
	for (uint64_t i = mem_next_present(content, 0, end); i < end; i = mem_next_present(content, i + 1, end)) {
		uint64_t pair[2] = { i, page_hash(find_page(content, i)) };
		XXH128_hash_t h;

		/* A page of zeros is as good as none. The sum does not depend on the order. */
		if (pair[1] == zero_hash)
			continue;
		h = XXH3_128bits(pair, sizeof(pair));
		out[0] += h.low64;
		out[1] += h.high64;
	}
	pthread_rwlock_unlock(&content->lock);
}
