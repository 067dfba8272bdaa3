/* SPDX-License-Identifier: MIT */
/* What the files of the engine share. */
#ifndef FORMATS_LOOKUP_INT_H
#define FORMATS_LOOKUP_INT_H

#include "disk_int.h"
#include "lookup.h"

#define LAYER "lookup"
#define BATCH 512u /* entries that are read at once */

static inline uint32_t lookup_entry_bytes(const struct lookup *l)
{
	return l->ops->entry_bytes ? l->ops->entry_bytes : 8;
}

/* Where the table of the second level is that entry `index` of the first leads to; 0: there is none. */
int lookup_table(struct lookup *l, uint64_t index, uint64_t *off, struct img_error *err);
/* The same of an entry that was read already, at `at` of the file. */
int lookup_table_of(struct lookup *l, const uint8_t *raw, uint64_t at, uint64_t *off, struct img_error *err);
/* An entry of the second level as it stands, at `at` of the file. */
int lookup_decode(struct lookup *l, const uint8_t *raw, uint64_t at, struct lookup_entry *out, struct img_error *err);
/* A packed cluster, of disk_off, to out, which has room for one. *rule: the one that it broke, if it is CORRUPT. */
int lookup_expand(struct lookup *l, struct codec_ctx *codec, const struct lookup_entry *e, uint64_t disk_off,
		  uint8_t *out, const char **rule, struct img_error *err);

#endif
