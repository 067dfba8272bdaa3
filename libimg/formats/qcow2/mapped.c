/* SPDX-License-Identifier: MIT */
/*
 * How much data an L1 table leads to, against the budget. A few clusters can be all of a huge disk, when many entries
 * lead to one table, and all of that table's to one cluster; refcounts may even be right then.
 *
 * Knowing it exactly takes reading every L2 table. That is left out where L1 alone shows that the limit cannot be
 * reached, which is so for all but nearly empty and very sparse images: these have few tables. Each is read once,
 * however often L1 leads to it, and the walk ends as soon as the answer is certain.
 */
#include <stdlib.h>

#include "budget.h"
#include "qcow2_io.h"

struct l1_refs {
	uint64_t *off; /* of L2 tables, ascending, with repetitions */
	uint64_t nr;
};

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static bool l1_sort(const uint64_t *l1, uint32_t entries, uint64_t nr, struct l1_refs *out)
{
	*out = (struct l1_refs){ .off = calloc((size_t)nr + 1, sizeof(*out->off)) };
	if (!out->off)
		return false;
	for (uint32_t i = 0; i < entries; i++)
		if (l1[i] & QCOW2_OFFSET_MASK)
			out->off[out->nr++] = l1[i] & QCOW2_OFFSET_MASK;
	qsort(out->off, (size_t)out->nr, sizeof(*out->off), by_value);
	return true;
}

static int table_mapped(struct qcow2_engine *e, uint64_t off, uint8_t *buf, uint64_t *mapped, struct img_error *err)
{
	uint64_t size = node_size(e->file), there = off < size ? min_u64(e->cluster_bytes, size - off) : 0;
	int ret = there ? node_pread(e->file, buf, there, off, 0, err) : 0;

	*mapped = 0;
	for (uint64_t at = 0; ret == 0 && at + e->entry_bytes <= there; at += e->entry_bytes) {
		const struct qcow2_entry en = qcow2_entry_load(e, buf + at);

		*mapped += qcow2_entry_mapped(e, &en);
	}
	return ret;
}

static int count(struct qcow2_engine *e, const struct l1_refs *refs, uint64_t span, struct budget *b,
		 struct img_error *err)
{
	uint8_t *buf = malloc((size_t)e->cluster_bytes);
	uint64_t file_bytes = node_size(e->file), mapped = 0, of_table;
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t i = 0, next; i < refs->nr && ret == 0; i = next) {
		for (next = i + 1; next < refs->nr && refs->off[next] == refs->off[i];)
			next++;
		ret = table_mapped(e, refs->off[i], buf, &of_table, err);
		mapped += of_table * (next - i);
		if (ret == 0)
			ret = budget_expansion(b, e->node->path, mapped, file_bytes, err);
		if (budget_expansion_fits(b, mapped + (refs->nr - next) * span, file_bytes))
			break;
	}
	free(buf);
	return ret;
}

int qcow2_judge_expansion(struct qcow2_engine *e, const uint64_t *l1, uint32_t entries, struct budget *b,
			  struct img_error *err)
{
	uint64_t span = e->cluster_bytes << e->l2_shift, nr = 0;
	struct l1_refs refs;
	int ret;

	for (uint32_t i = 0; i < entries; i++)
		nr += (l1[i] & QCOW2_OFFSET_MASK) != 0;
	if (!b || e->external || budget_expansion_fits(b, nr * span, node_size(e->file)))
		return 0;
	if (!l1_sort(l1, entries, nr, &refs))
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = count(e, &refs, span, b, err);
	free(refs.off);
	return ret;
}
