/* SPDX-License-Identifier: MIT */
/* Reads programs and runs them. See ops.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fixed_host.h"
#include "ops.h"

/* What an operation can be; often wanted ones stand here more than once. Numbers 38 and 39 are crash and fault in all. */
static const uint8_t raw_kinds[] = {
	OP_WRITE,  OP_WRITE_BLOCKS, OP_ZERO,  OP_DISCARD, OP_READ,    OP_FLUSH,	      OP_EXTENTS,    OP_RESIZE,
	OPS_CRASH, OPS_FAULT,	    OP_CHECK, OP_REOPEN,  OP_CONVERT, OP_WRITE_UNITS, OP_CHECKPOINT,
};
static const uint8_t all_kinds[] = {
	OP_WRITE,	  OP_WRITE_BLOCKS, OP_WRITE_UNITS,  OP_ZERO,	    OP_DISCARD,	    OP_READ,
	OP_FLUSH,	  OP_CHECKPOINT,   OP_SNAP_CREATE,  OP_SNAP_DELETE, OP_SNAP_REVERT, OP_SNAP_RENAME,
	OP_SNAP_READ,	  OP_SNAP_HOLD,	   OP_DIFF,	    OP_EXTENTS,	    OP_VM_WRITE,    OP_VM_ZERO,
	OP_VM_READ,	  OP_VM_LOAD,	   OP_VM_RESIZE,    OP_RESIZE,	    OP_OVERLAY,	    OP_POP,
	OP_COMMIT,	  OP_REBASE,	   OP_FLATTEN,	    OP_REOPEN,	    OP_REPLAY,	    OP_CHECK,
	OP_COMPARE,	  OP_CONVERT,	   OP_TOUCH_PARENT, OPS_FAULT,	    OPS_CRASH,	    OP_WRITE,
	OP_SNAP_CREATE,	  OP_WRITE_BLOCKS, OPS_CRASH,	    OPS_FAULT,	    OP_BITMAP_ADD,  OP_BITMAP_REMOVE,
	OP_BITMAP_SWITCH, OP_BITMAP_CLEAR, OP_BITMAP_MERGE,
};
#define NR_BITMAP_KINDS 5u /* the last ones: of formats that have them */

/* Of formats that have parents and no snapshots. */
static const uint8_t plain_kinds[] = {
	OP_WRITE,  OP_WRITE_BLOCKS, OP_ZERO,   OP_DISCARD, OP_READ,    OP_FLUSH,	OP_EXTENTS,    OP_RESIZE,
	OPS_CRASH, OPS_FAULT,	    OP_CHECK,  OP_REOPEN,  OP_CONVERT, OP_WRITE_UNITS,	OP_CHECKPOINT, OP_OVERLAY,
	OP_POP,	   OP_COMMIT,	    OP_REBASE, OP_FLATTEN, OP_REPLAY,  OP_TOUCH_PARENT, OP_WRITE,      OP_WRITE_BLOCKS,
};

/* After these the file that is followed is another one, or was written by other ways. */
static bool moves_on(enum op_kind kind)
{
	return kind == OP_OVERLAY || kind == OP_POP || kind == OP_TOUCH_PARENT || kind == OP_COMMIT ||
	       kind == OP_REBASE || kind == OP_FLATTEN;
}

/* Those whose own judgement of the image goes on after the first failing call, or that move through many files. */
static bool may_fail(enum op_kind kind)
{
	return kind != OP_OVERLAY && kind != OP_POP && kind != OP_TOUCH_PARENT && kind != OP_REPLAY;
}

/* Did the operation, which succeeded, make the head durable? It may have had nothing to do. */
static bool made_durable(const struct ops *o, enum op_kind kind, unsigned snap_seq)
{
	const struct model *m = &o->m;

	if (kind == OP_SNAP_CREATE)
		return m->snap_seq != snap_seq;
	if (kind == OP_SNAP_REVERT) /* which a limit of references may have kept from it */
		return m->files[m->top].nr_snaps > 0 && !m->geometry.refcount_bits;
	return kind == OP_FLUSH || kind == OP_CHECKPOINT || kind == OP_REOPEN;
}

static bool is_bitmap(unsigned kind)
{
	return kind == OP_BITMAP_ADD || kind == OP_BITMAP_REMOVE || kind == OP_BITMAP_SWITCH ||
	       kind == OP_BITMAP_CLEAR || kind == OP_BITMAP_MERGE;
}

static void arm(struct ops *o, const uint32_t *r)
{
	static const unsigned some[] = {
		FAULT_ALL,
		FAULT_ALL,
		1u << FAULT_WRITE,
		1u << FAULT_FLUSH,
		1u << FAULT_READ | 1u << FAULT_STATUS,
		1u << FAULT_WRITE | 1u << FAULT_ALLOCATE | 1u << FAULT_ZERO | 1u << FAULT_RESIZE,
		1u << FAULT_ZERO | 1u << FAULT_DISCARD,
		1u << FAULT_RESIZE | 1u << FAULT_ALLOCATE,
	};

	o->fault.armed = true;
	o->fault.ops = some[r[1] % 8];
	o->fault.nth = 1 + r[0] % 64;
	o->fault.sys_errno = r[1] % 8 == 5 ? ENOSPC : EIO;
	o->fault.for_good = r[1] >> 3 & 1;
	o->fault.stay = r[1] >> 4 & 1;
	o->fault.short_bytes = r[1] >> 5 & 1 ? 512 : 0;
}

/* One operation of the model, under what was armed. */
static int step(struct ops *o, const struct op *op)
{
	struct model *m = &o->m;
	unsigned snap_seq = m->snap_seq;
	uint64_t injected;
	int ret;

	o->kind = op->kind;
	o->r = op->r;
	m->touched_bytes = m->touched_off = 0;
	m->refused = 0;
	if (o->fault.armed && may_fail(op->kind)) {
		o->plan.short_bytes = o->fault.short_bytes;
		fault_plan_arm(&o->plan, o->fault.ops, o->fault.nth, o->fault.sys_errno, o->fault.for_good);
	}
	o->fault.armed = false;
	m->host_fails = o->plan.nth != 0;
	m->bitmaps_may_break |= m->host_fails;
	ret = model_step(m, op);
	m->host_fails = false;
	injected = o->plan.failed;
	fault_plan_disarm(&o->plan);
	if (injected) /* what is tidied up at the end of a change may have failed without a word */
		m->files[m->top].leaks = m->files[m->top].format->may_leak;
	if (injected && m->verbose)
		printf("      %llu calls of the host failed\n", (unsigned long long)injected);
	if (ret != 0 && injected && m->refused) {
		if (m->verbose)
			printf("      failed as the host did: %s\n", m->failure), fflush(stdout);
		return settle_fault(o);
	}
	if (ret != 0)
		return -1;
	if (!moves_on(op->kind))
		history_add(o, made_durable(o, op->kind, snap_seq));
	else if (m->bitmaps_may_break && bitmaps_adopt(m) != 0)
		return -1;
	if (injected && survive_fault(o) != 0)
		return -1;
	return moves_on(op->kind) ? history_restart(o) : 0;
}

static int run_one(struct ops *o, unsigned kind, const uint32_t *r)
{
	static const char *const names[] = { "fault", "crash" };
	struct op op = { .kind = (enum op_kind)kind };
	int ret;

	if (o->m.verbose)
		printf("%s 0x%x 0x%x 0x%x 0x%x\n", kind < NR_OPS ? op_name(op.kind) : names[kind - NR_OPS], r[0], r[1],
		       r[2], r[3]),
			fflush(stdout);
	if (kind == OPS_FAULT) {
		arm(o, r);
		return 0;
	}
	if (kind == OPS_CRASH) {
		o->m.bitmaps_may_break = true;
		return settle_crash(o, r);
	}
	memcpy(op.r, r, sizeof(op.r));
	if (!is_bitmap(kind))
		return step(o, &op);
	/* A host that fails or crashes in these is left to tests/crash/crash_bitmaps. */
	ret = model_step(&o->m, &op);
	return ret == 0 ? history_restart(o) : ret;
}

static int run_program(struct ops *o, const char *format, struct fuzz_input *in)
{
	bool raw = strcmp(format, "raw") == 0 || o->m.geometry.format->alone;
	bool bitmaps = o->m.geometry.format->bitmaps;
	bool plain = o->m.geometry.format->plain;
	const uint8_t *kinds = raw ? raw_kinds : plain ? plain_kinds : all_kinds;
	unsigned nr_kinds = raw	    ? sizeof(raw_kinds) :
			    plain   ? sizeof(plain_kinds) :
			    bitmaps ? sizeof(all_kinds) :
				      sizeof(all_kinds) - NR_BITMAP_KINDS;

	for (unsigned i = 0; i < OPS_MAX && in->at < in->end; i++) {
		unsigned kind = kinds[fuzz_take(in, 1) % nr_kinds];
		uint32_t r[4] = { (uint32_t)fuzz_take(in, 3), 0, 0, 0 };

		for (unsigned j = 1; j < 4; j++)
			r[j] = (uint32_t)fuzz_take(in, 2);
		if (run_one(o, kind, r) != 0)
			return -1;
	}
	return model_end(&o->m);
}

void ops_run(const char *format, const uint8_t *data, size_t bytes)
{
	struct fuzz_input in = { data, data + bytes };
	struct ops *o = calloc(1, sizeof(*o));
	struct geometry geometry;
	static uint8_t buf[IO_BYTES], buf2[IO_BYTES];

	FUZZ_CHECK(o != NULL);
	fixed_host_reset(1);
	ops_template(format, (unsigned)fuzz_take(&in, 1), &geometry);
	o->m.verbose = getenv("FUZZ_VERBOSE") != NULL;
	o->m.one_thread = true;
	o->m.buf = buf;
	o->m.buf2 = buf2;
	fault_plan_init(&o->plan);
	o->log = crash_log_new();
	FUZZ_CHECK(o->log && model_init(&o->m, &geometry) == 0);
	o->m.fs.wrap = ops_wrap;
	o->m.fs.wrap_ctx = o;
	if (model_begin(&o->m) != 0 || history_restart(o) != 0 || run_program(o, format, &in) != 0) {
		fprintf(stderr, "%s, %s: %s\n", format, geometry.options, o->m.failure);
		abort();
	}
	o->m.buf = o->m.buf2 = NULL;
	model_free(&o->m);
	history_free(o);
	fault_plan_destroy(&o->plan);
	free(o);
}
