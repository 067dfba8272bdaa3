/* SPDX-License-Identifier: MIT */
/* Creation options of qcow2, and what they make of an image: for create, measure and amend. */
#ifndef QCOW2_OPTIONS_H
#define QCOW2_OPTIONS_H

#include "qcow2_engine.h"

enum qcow2_preallocation { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

struct qcow2_options {
	unsigned version;
	unsigned cluster_bits, refcount_order;
	bool lazy_refcounts, extended_l2;
	enum qcow2_compression compression;
	enum qcow2_preallocation preallocation;
	char data_file[QCOW2_NAME_MAX + 1]; /* "": none */
	bool data_file_raw;
};

#define QCOW2_OPTIONS_HELP                                                                          \
	"compat=VERSION 0.10 (or v2) or 1.1 (or v3, the default)\n"                                 \
	"cluster_size=SIZE    512 to 2M, a power of two (default 64K)\n"                            \
	"refcount_bits=N       1 to 64, a power of two (default 16)\n"                              \
	"lazy_refcounts=BOOL    mark the image so that QEMU may postpone refcounts (default off)\n" \
	"extended_l2=BOOL    32 subclusters per cluster, from cluster_size=16K (default off)\n"     \
	"compression_type=TYPE    zlib (default) or zstd\n"                                         \
	"compression=TYPE    the same; none for the default\n"                                      \
	"preallocation=MODE    off (default), metadata, falloc or full\n"                           \
	"data_file=NAME    keep the guest's data in a new file of this name, beside the image\n"    \
	"data_file_raw=BOOL    keep the data file readable as a raw image (default off)\n"

/* IMG_E_INVALID for what does not exist or does not go together. */
int qcow2_options_parse(const char *text, bool has_backing, struct qcow2_options *out, struct img_error *err);
/* One key of *ctx, a struct qcow2_options (option_list.h); amend changes with it what an image has. */
int qcow2_option_set(void *ctx, const char *key, const char *value, struct img_error *err);
/* Combinations that version 2, the clusters' size or a backing file rule out. */
int qcow2_options_check(const struct qcow2_options *o, bool has_backing, struct img_error *err);
/* The header's fields that follow from options and size; tables have no place yet. */
void qcow2_options_header(const struct qcow2_options *o, uint64_t size_bytes, struct qcow2_header *h);

/*
 * Clusters of refcount blocks and table that count `clusters` others and themselves; at least one each. Neither can
 * be computed from the other's absence, so they are raised until they suffice.
 */
void qcow2_refcount_clusters(uint64_t clusters, unsigned cluster_bits, unsigned refcount_order, uint64_t *blocks,
			     uint64_t *table);

#endif
