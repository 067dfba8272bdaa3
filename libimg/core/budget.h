/* SPDX-License-Identifier: MIT */
/* What an open may cost, see budget.c. Functions take a NULL budget for one without limits. */
#ifndef CORE_BUDGET_H
#define CORE_BUDGET_H

#include "libimg.h"

struct node;

enum budget_item {
	BUDGET_VIRTUAL,	   /* bytes of disk, of a layer */
	BUDGET_DEPTH,	   /* layers */
	BUDGET_METADATA,   /* bytes of tables that are held or searched in memory, of a layer */
	BUDGET_EXPANSION,  /* mapped bytes of disk per byte of file, of a layer */
	BUDGET_REFERENCES, /* files that are opened because images name them, of the chain */
	BUDGET_SNAPSHOTS,  /* of a layer */
	BUDGET_CHECK,	   /* seconds of one check */
	BUDGET_ITEMS,
};

/* Of one open with all layers of its chain. */
struct budget {
	uint64_t limit[BUDGET_ITEMS];
	uint64_t metadata_bytes; /* of the present layer */
	uint64_t references;	 /* so far */
};

/* The limits that o asks for, defaults for the rest. IMG_E_INVALID: struct_size is not set; IMG_E_UNSUPPORTED: newer. */
int budget_init(struct budget *b, const struct img_open_options *o, struct img_error *err);
/* The caller's part of it, complete; given may be NULL. */
int budget_complete(struct img_budget *out, const struct img_budget *given, struct img_error *err);

/* IMG_E_LIMIT if wanted is more than the limit; path is the image's. */
int budget_judge(const struct budget *b, enum budget_item item, uint64_t wanted, const char *path,
		 struct img_error *err);

/* ---- for formats, in open; path is node->path ---- */

/* So many bytes more of tables. Before they are allocated. */
int budget_metadata(struct budget *b, const char *path, uint64_t bytes, struct img_error *err);
int budget_snapshots(const struct budget *b, const char *path, uint64_t nr, struct img_error *err);
/*
 * The disk's mapping leads to so many bytes of data in a file of file_bytes. Formats that cannot know without reading
 * all of it first ask with what it can be at most: budget_expansion_fits().
 */
int budget_expansion(const struct budget *b, const char *path, uint64_t mapped_bytes, uint64_t file_bytes,
		     struct img_error *err);
bool budget_expansion_fits(const struct budget *b, uint64_t mapped_bytes, uint64_t file_bytes);

/* ---- for the core ---- */

/* A new layer begins. */
void budget_layer(struct budget *b);
/* One more file is opened because path names it. */
int budget_reference(struct budget *b, const char *path, struct img_error *err);

/* A check that ends in time: hands what is reported on to the caller's progress function, and stops the check when time
 * is over. */
struct budget_timer {
	struct img_progress progress; /* for the driver */
	const struct img_progress *caller;
	uint64_t end_ms;
	bool over;
};
void budget_timer_start(struct budget_timer *t, uint64_t seconds, const struct img_progress *caller);
/* What the check returned, and err: CANCELLED becomes LIMIT where it was the timer that stopped it. */
int budget_timer_end(const struct budget_timer *t, int ret, uint64_t seconds, const char *path, struct img_error *err);
uint64_t budget_now_ms(void);

#endif
