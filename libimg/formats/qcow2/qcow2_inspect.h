/* SPDX-License-Identifier: MIT */
/* What the two files of an inspection share: inspect.c, the header; inspect_map.c, the mapping. */
#ifndef QCOW2_INSPECT_H
#define QCOW2_INSPECT_H

#include "inspect.h"
#include "qcow2_engine.h"

int qcow2_inspect(struct node *file, struct inspector *in, struct img_error *err);
/* Snapshots by name; data that several places of a disk share, or more than the file has room for. h is a sound header.
 */
int qcow2_inspect_map(struct node *file, struct inspector *in, const struct qcow2_header *h, struct img_error *err);

#endif
