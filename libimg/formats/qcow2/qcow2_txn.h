/* SPDX-License-Identifier: MIT */
/* A change of the whole structure: what there was before, to compare with and to go back to. */
#ifndef QCOW2_TXN_H
#define QCOW2_TXN_H

#include "qcow2_refcount.h"

struct qcow2_deferred {
	uint64_t cluster;
	int delta;
};

struct qcow2_txn {
	/* before */
	struct qcow2_header h; /* a copy by value, which owns nothing */
	uint64_t *reftable;    /* owned */
	uint64_t reftable_entries;
	uint64_t alloc_hint, file_end, packed_off, packed_end, disk_bytes;

	uint8_t *block_is_new; /* by block; of this transaction */
	uint64_t nr_blocks;
	struct qcow2_deferred *deferred;
	size_t nr_deferred, cap_deferred;

	/* to become */
	uint64_t *l1; /* NULL: unchanged */
	uint32_t l1_entries;
	bool new_snapshots;
	struct qcow2_snapshot *snapshots;
	uint32_t nr_snapshots;
	bool whole_header;
};

#endif
