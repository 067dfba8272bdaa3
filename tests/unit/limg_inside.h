/* SPDX-License-Identifier: MIT */
/* For tests of limg's inside: one small image "a", and the engine under an open one. */
#ifndef TESTS_UNIT_LIMG_INSIDE_H
#define TESTS_UNIT_LIMG_INSIDE_H

#include "inside.h"

#include "checkpoint.h"
#include "engine.h"
#include "space.h"

#define BLOCK	   4096u
#define UNIT	   (64 * KIB)
#define LEAF_BYTES MIB /* 256 blocks */

static struct engine *engine_of(struct img *img)
{
	struct limg_state *st = img->top->state;

	return st->e;
}

static struct img *limg_new(uint64_t size_bytes)
{
	inside_create("a", "limg", size_bytes, "block_size=4K,unit_size=64K,compression=zstd");
	return inside_open("a", IMG_OPEN_WRITE);
}

/* Lets something happen when the engine syncs its file. */
static void (*limg_at_flush)(struct engine *e);
static struct engine *limg_flushed;

static int limg_hooked_flush(struct node *node, unsigned flags, struct img_error *err)
{
	void (*now)(struct engine * e) = limg_at_flush;

	limg_at_flush = NULL;
	if (now)
		now(limg_flushed);
	return fault_driver.flush(node, flags, err);
}

static void limg_hook(struct engine *e, void (*at_flush)(struct engine *e))
{
	static struct img_driver hooked;

	hooked = fault_driver;
	hooked.flush = limg_hooked_flush;
	limg_flushed = e;
	limg_at_flush = at_flush;
	e->file->drv = &hooked;
}

static int plain_checkpoint(struct engine *e)
{
	struct ckpt_req req = { .action = CKPT_PLAIN };

	return engine_checkpoint(e, &req, ERR);
}

#endif
