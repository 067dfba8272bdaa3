/* SPDX-License-Identifier: MIT */
/* The verbs; each is defined in cmd_<verb>.c. */
#ifndef IMGTOOL_VERBS_H
#define IMGTOOL_VERBS_H

#include "args.h"

extern const struct cli_verb verb_amend;
extern const struct cli_verb verb_bench;
extern const struct cli_verb verb_bitmap_add;
extern const struct cli_verb verb_bitmap_clear;
extern const struct cli_verb verb_bitmap_disable;
extern const struct cli_verb verb_bitmap_enable;
extern const struct cli_verb verb_bitmap_list;
extern const struct cli_verb verb_bitmap_merge;
extern const struct cli_verb verb_bitmap_remove;
extern const struct cli_verb verb_check;
extern const struct cli_verb verb_checksum;
extern const struct cli_verb verb_commit;
extern const struct cli_verb verb_compare;
extern const struct cli_verb verb_convert;
extern const struct cli_verb verb_create;
extern const struct cli_verb verb_doctor;
extern const struct cli_verb verb_flatten;
extern const struct cli_verb verb_info;
extern const struct cli_verb verb_inspect;
extern const struct cli_verb verb_lock;
extern const struct cli_verb verb_map;
extern const struct cli_verb verb_measure;
extern const struct cli_verb verb_read;
extern const struct cli_verb verb_rebase;
extern const struct cli_verb verb_resize;
extern const struct cli_verb verb_revert;
extern const struct cli_verb verb_snapshot_create;
extern const struct cli_verb verb_snapshot_delete;
extern const struct cli_verb verb_snapshot_diff;
extern const struct cli_verb verb_snapshot_list;
extern const struct cli_verb verb_snapshot_rename;
extern const struct cli_verb verb_write;

#endif
