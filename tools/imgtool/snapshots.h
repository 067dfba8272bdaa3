/* SPDX-License-Identifier: MIT */
/* Lists of snapshots, as info and snapshot list show them. */
#ifndef IMGTOOL_SNAPSHOTS_H
#define IMGTOOL_SNAPSHOTS_H

#include <jansson.h>

#include "args.h"

struct snapshot_list {
	struct img_snapshot *at; /* malloc()ed; NULL if none */
	size_t nr;
};

/* All snapshots of img; *list must be zeroed. Returns an exit status; failures are reported. */
int snapshots_load(struct snapshot_list *list, struct img *img);
void snapshots_free(struct snapshot_list *list);
void snapshots_print(const struct snapshot_list *list);
json_t *snapshots_json(const struct snapshot_list *list);

#endif
