/* SPDX-License-Identifier: MIT */
/* What the files of the engine share. */
#ifndef FORMATS_LOOKUP_INT_H
#define FORMATS_LOOKUP_INT_H

#include "disk_int.h"
#include "lookup.h"

#define LAYER "lookup"
#define BATCH 512u /* entries that are read at once */

/* Where the table of the second level is that entry `index` of the first leads to; 0: there is none. */
int lookup_table(struct lookup *l, uint64_t index, uint64_t *off, struct img_error *err);
/* An entry of the second level as it stands, at `at` of the file. */
int lookup_decode(struct lookup *l, const uint8_t *raw, uint64_t at, struct lookup_entry *out, struct img_error *err);
int lookup_pread(struct lookup *l, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int lookup_status(struct lookup *l, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err);
/* A packed cluster to out, which has room for one. */
int lookup_expand(struct lookup *l, struct codec_ctx *codec, const struct lookup_entry *e, uint8_t *out,
		  struct img_error *err);

#endif
