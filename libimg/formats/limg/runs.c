/* SPDX-License-Identifier: MIT */
/* Lists of runs of AUs. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

void runs_add(struct runs *r, uint64_t addr, uint64_t aus)
{
	if (r->nr && r->v[r->nr - 1].addr + r->v[r->nr - 1].aus == addr) {
		r->v[r->nr - 1].aus += aus;
		return;
	}
	if (r->nr == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 8;
		struct run *v = realloc(r->v, cap * sizeof(*v));

		if (!v)
			return;
		r->v = v;
		r->cap = cap;
	}
	r->v[r->nr++] = (struct run){ addr, aus };
}

void runs_move(struct runs *to, struct runs *from)
{
	if (!to->nr) {
		struct runs empty = *to;

		*to = *from;
		*from = empty;
		return;
	}
	for (size_t i = 0; i < from->nr; i++)
		runs_add(to, from->v[i].addr, from->v[i].aus);
	from->nr = 0;
}

static int by_addr(const void *a, const void *b)
{
	const struct run *x = a, *y = b;

	return (x->addr > y->addr) - (x->addr < y->addr);
}

void runs_sort_merge(struct runs *r)
{
	size_t out = 0;

	if (!r->nr)
		return;
	qsort(r->v, r->nr, sizeof(*r->v), by_addr);
	for (size_t i = 1; i < r->nr; i++) {
		if (r->v[out].addr + r->v[out].aus == r->v[i].addr)
			r->v[out].aus += r->v[i].aus;
		else
			r->v[++out] = r->v[i];
	}
	r->nr = out + 1;
}

void runs_free(struct runs *r)
{
	free(r->v);
	memset(r, 0, sizeof *r);
}
