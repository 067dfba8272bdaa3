/* SPDX-License-Identifier: MIT */
/* What the files about snapshots share among themselves. */
#ifndef QCOW2_SNAPSHOT_H
#define QCOW2_SNAPSHOT_H

#include "qcow2_engine.h"

/* A deep copy of the list with room for `more` entries behind it, zeroed. The caller's, by qcow2_snapshots_free(). */
int qcow2_snapshots_copy(const struct qcow2_snapshot *list, uint32_t n, uint32_t more, struct qcow2_snapshot **out,
			 struct img_error *err);
/* Takes one entry out of the list and frees what it owns; n is the number before. */
void qcow2_snapshots_remove(struct qcow2_snapshot *list, uint32_t n, uint32_t at);
/* IMG_E_CORRUPT where the table could not be read whole. map held. */
int qcow2_snapshots_writable(const struct qcow2_engine *e, struct img_error *err);
/* A copy (malloc) of the first n entries of l1, which has have; what it lacks is empty. */
int qcow2_l1_copy(const uint64_t *l1, uint64_t have, uint64_t n, uint64_t **out, struct img_error *err);
/* L1 entries that machine state of so many bytes needs. */
uint64_t qcow2_l1_entries_vm(const struct qcow2_engine *e, uint64_t vm_bytes);

#endif
