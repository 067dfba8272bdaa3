/* SPDX-License-Identifier: MIT */
/*
 * What an image may show after the host failed or crashed. What was found becomes the truth: the program goes on from
 * there. The judgement is by sector of the head, exact for snapshots.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

static struct mfile *top(struct ops *o)
{
	return &o->m.files[o->m.top];
}

/* ---- what is found ----------------------------------------------------------------------------------------------- */

static int read_head(struct model *m, struct img *img, struct flat *out, const char *what)
{
	struct img_error err = { 0 };
	uint64_t size = img_size(img);

	if (size > (uint64_t)OPS_SECTORS * OPS_SECTOR)
		return fail(m, "%s: size %" PRIu64, what, size);
	flat_init(out, size);
	for (uint64_t off = 0; off < size; off += IO_BYTES) {
		uint64_t n = size - off < IO_BYTES ? size - off : IO_BYTES;

		if (expect(m, img_pread(img, m->buf, n, off, 0, &err), 0, &err, what) != 0)
			return -1;
		flat_write(out, m->buf, n, off);
	}
	return 0;
}

static int read_vm(struct model *m, struct img *img, struct flat *out, const char *what)
{
	struct img_error err = { 0 };
	uint64_t bytes = 0;

	if (expect(m, img_vmstate_size(img, NULL, &bytes, &err), 0, &err, what) != 0)
		return -1;
	if (bytes > IO_BYTES)
		return fail(m, "%s: %" PRIu64 " bytes of machine state", what, bytes);
	if (bytes && expect(m, img_vmstate_read(img, NULL, m->buf, bytes, 0, &err), 0, &err, what) != 0)
		return -1;
	flat_init(out, bytes);
	if (bytes)
		flat_write(out, m->buf, bytes, 0);
	return 0;
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static bool same_content(const struct flat *a, const struct flat *b)
{
	return a->size_bytes == b->size_bytes && flat_diff(a, b, a->size_bytes, 0) == UINT64_MAX;
}

/*
 * Each byte is somebody's. A format that writes in place passes on writes of less than a sector, of which one may be
 * there and an older one may not.
 */
static bool bytes_allowed(const struct allowed *a, const struct flat *seen, uint64_t n, uint64_t off)
{
	for (uint64_t i = 0; i < n; i++) {
		unsigned h = 0;

		while (h < a->nr_heads && flat_diff(seen, a->head[h], 1, off + i) != UINT64_MAX)
			h++;
		if (h == a->nr_heads && (off + i < a->off || off + i >= a->off + a->bytes))
			return false;
	}
	return true;
}

static bool sector_allowed(struct ops *o, const struct allowed *a, const struct flat *seen, uint64_t off)
{
	uint64_t n = seen->size_bytes - off < OPS_SECTOR ? seen->size_bytes - off : OPS_SECTOR;
	uint64_t from = a->off > off ? a->off - off : 0, to = a->off + a->bytes > off ? a->off + a->bytes - off : 0;

	if (a->wild && o->wild[off / OPS_SECTOR])
		return true;
	for (unsigned i = 0; i < a->nr_heads; i++) {
		if (flat_diff(seen, a->head[i], n, off) == UINT64_MAX)
			return true;
	}
	if (!top(o)->format->strong_pins)
		return bytes_allowed(a, seen, n, off);
	if (a->bytes == 0 || from >= n || to == 0)
		return false;
	/* The bytes of the sector that the range leaves are still somebody's. */
	to = to < n ? to : n;
	for (unsigned i = 0; i < a->nr_heads; i++) {
		if ((from == 0 || flat_diff(seen, a->head[i], from, off) == UINT64_MAX) &&
		    (to == n || flat_diff(seen, a->head[i], n - to, off + to) == UINT64_MAX))
			return true;
	}
	return false;
}

static int judge_head(struct ops *o, const struct allowed *a, const struct flat *seen, const char *what)
{
	uint64_t least = UINT64_MAX, most = 0;
	bool size_known = false;

	for (unsigned i = 0; i < a->nr_heads; i++) {
		uint64_t size = a->head[i]->size_bytes;

		size_known |= size == seen->size_bytes;
		least = size < least ? size : least;
		most = size > most ? size : most;
	}
	/* Where the length of the file is the size, a write to the new end may be there before that end is. */
	if (top(o)->format->raw && seen->size_bytes >= least && seen->size_bytes <= most)
		size_known = true;
	if (!size_known)
		return fail(&o->m, "%s: the head has %" PRIu64 " bytes, which it never had", what, seen->size_bytes);
	for (uint64_t off = 0; off < seen->size_bytes; off += OPS_SECTOR) {
		if (!sector_allowed(o, a, seen, off))
			return fail(&o->m, "%s: the sector at 0x%" PRIx64 " holds neither old nor new", what, off);
	}
	return 0;
}

/* Are these just the snapshots of f? */
static bool has_list(const struct mfile *f, const struct img_snapshot *list, size_t nr)
{
	if (nr != f->nr_snaps)
		return false;
	for (size_t i = 0; i < nr; i++) {
		if (strcmp(list[i].name, f->snaps[i].name) != 0 || list[i].size_bytes != f->snaps[i].disk.size_bytes ||
		    list[i].vmstate_bytes != (f->snaps[i].has_vm ? f->snaps[i].vm.size_bytes : 0))
			return false;
	}
	return true;
}

/* head_parent: on which snapshot the head stands, which a list does not say where a revert did not come to its end. */
static int find_list(struct ops *o, struct img *img, const struct allowed *a, const struct mfile **out,
		     unsigned *head_parent, const char *what)
{
	struct img_snapshot list[MODEL_MAX_SNAPS + 1];
	struct img_error err = { 0 };
	size_t nr = 0;

	*out = a->list[0];
	*head_parent = a->list[0]->head_parent;
	if (top(o)->format->raw || top(o)->format->plain)
		return 0;
	if (expect(&o->m, img_snapshot_list(img, list, MODEL_MAX_SNAPS + 1, &nr, &err), 0, &err, what) != 0)
		return -1;
	*out = NULL;
	for (unsigned i = 0; i < a->nr_lists; i++) {
		if (!has_list(a->list[i], list, nr))
			continue;
		if (!*out)
			*head_parent = a->list[i]->head_parent;
		else if (*head_parent != a->list[i]->head_parent)
			*head_parent = MODEL_ANY_PARENT;
		*out = *out ? *out : a->list[i];
	}
	return *out ? 0 : fail(&o->m, "%s: %zu snapshots, which are neither those before nor those after", what, nr);
}

int judge_and_adopt(struct ops *o, struct img *img, const struct allowed *a, const char *what)
{
	const struct mfile *found = NULL;
	struct flat head = { 0 }, vm = { 0 };
	struct mfile next;
	unsigned head_parent = 0;
	bool raw = top(o)->format->raw || top(o)->format->plain; /* no machine state */
	int ret = find_list(o, img, a, &found, &head_parent, what);

	if (ret == 0)
		ret = read_head(&o->m, img, &head, what);
	if (ret == 0)
		ret = judge_head(o, a, &head, what);
	if (ret == 0 && !raw)
		ret = read_vm(&o->m, img, &vm, what);
	if (ret == 0 && !raw && a->exact_vm && !same_content(&vm, &found->vm))
		ret = fail(&o->m, "%s: the machine state has changed", what);
	if (ret != 0) {
		flat_free(&head);
		flat_free(&vm);
		return -1;
	}
	if (raw)
		flat_init(&vm, 0);
	mfile_copy(&next, found);
	flat_free(&next.head);
	flat_free(&next.vm);
	next.head = head;
	next.vm = vm;
	next.head_parent = head_parent;
	mfile_free(top(o));
	*top(o) = next;
	bitmaps_resized(&o->m, o->m.top, next.head.size_bytes);
	return 0;
}

/* ---- the state after an operation -------------------------------------------------------------------------------- */

/* What the truth would be had the operation that failed succeeded. Only those that are one step have such a state. */
static void make_after(struct ops *o, struct mfile *after)
{
	struct model *m = &o->m;
	struct mfile before;
	struct msnap *s = top(o)->nr_snaps ? &top(o)->snaps[o->r[0] % top(o)->nr_snaps] : NULL;
	unsigned seq = m->snap_seq;
	char name[24];

	mfile_copy(&before, top(o));
	if (o->kind == OP_SNAP_CREATE && top(o)->nr_snaps < MODEL_MAX_SNAPS) {
		snprintf(name, sizeof(name), "s%u", seq);
		snap_created(m, name, o->r[0] & 1);
	} else if (o->kind == OP_SNAP_DELETE && s) {
		snap_deleted(m, s);
	} else if (o->kind == OP_SNAP_RENAME && s) {
		snprintf(name, sizeof(name), "r%u", seq);
		snap_renamed(m, s, name);
	} else if (o->kind == OP_SNAP_REVERT && s) {
		snap_reverted(m, s);
	} else if (o->kind == OP_RESIZE) {
		flat_resize(&top(o)->head, m->touched_bytes);
	}
	*after = *top(o);
	*top(o) = before;
}

/* ---- after a failure of the host --------------------------------------------------------------------------------- */

/* Reads go on; changes are taken as before, or refused as poisoned. */
static int probe_handle(struct ops *o, bool *poisoned)
{
	struct model *m = &o->m;
	struct img_error err = { 0 };
	uint64_t n = img_size(m->img) < OPS_SECTOR ? img_size(m->img) : OPS_SECTOR;
	int ret = 0;

	if (n > 0) {
		ret = img_pread(m->img, m->buf, n, 0, 0, &err);
		/* The host that failed the commit did not give the parent back either. */
		if (o->kind == OP_COMMIT && ret == IMG_E_REFUSED) {
			*poisoned = true;
			return 0;
		}
		if (expect(m, ret, 0, &err, "read after a failure") != 0)
			return -1;
		ret = img_pwrite(m->img, m->buf, n, 0, 0, &err);
	}
	if (ret == 0)
		ret = img_flush(m->img, 0, &err);
	/* A format with a place for each block, and no more, has none left where some are lost: that wants a repair. */
	*poisoned = ret == IMG_E_POISONED || (ret == IMG_E_NOSPC && top(o)->leaks);
	return *poisoned ? 0 : expect(m, ret, 0, &err, "a change after a failure");
}

static void keep_first(void *ctx, const struct img_finding *finding)
{
	struct img_finding *first = ctx;

	if (first->kind == 0 && finding->kind != IMG_FINDING_NOTE)
		*first = *finding;
}

/* A writer that recovers finds no damage, and no leaks where the format has none; a repair takes them away. */
static int check_recovered(struct ops *o)
{
	bool may_leak = top(o)->format->may_leak;
	struct model *m = &o->m;
	struct img_check_result result = { 0 };
	struct img_finding first = { 0 };
	struct img_error err = { 0 };

	if (!(img_caps(m->img) & IMG_CAP_CHECK))
		return 0;
	if (expect(m, img_check(m->img, 0, keep_first, &first, NULL, &result, &err), 0, &err, "check") != 0)
		return -1;
	if (result.damage || (result.leaks && !may_leak))
		return fail(m, "after recovery: %" PRIu64 " damage, %" PRIu64 " leaks: %s %s", result.damage,
			    result.leaks, first.rule, first.msg);
	top(o)->leaks = false;
	if (result.leaks == 0)
		return 0;
	return expect(m, img_check(m->img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, &err), 0, &err, "repair");
}

/* The disk as it is: opens for reading and shows what is allowed, opens for writing, is clean, and shows the same
 * again. */
static int judge_disk(struct ops *o, const struct allowed *a, const char *what)
{
	struct model *m = &o->m;
	struct img_open_options opts = { .struct_size = sizeof(opts), .refs = IMG_REFS_ANY };
	struct img_error err = { 0 };
	struct img *img = NULL;
	struct allowed same = { .list = { top(o) }, .nr_lists = 1, .nr_heads = 1 };
	int ret;

	opts.format = top(o)->format->raw ? "raw" : NULL;
	if (expect(m, image_open_env(top(o)->name, &opts, &m->fs.env, &img, &err), 0, &err, what) != 0)
		return -1;
	ret = judge_and_adopt(o, img, a, what);
	if (expect(m, img_close(img, &err), 0, &err, "close") != 0 || ret != 0 || open_top(m) != 0)
		return -1;
	if (bitmaps_adopt(m) != 0)
		return -1;
	same.head[0] = &top(o)->head;
	if (judge_and_adopt(o, m->img, &same, "recovered") != 0 || check_recovered(o) != 0 || close_top(m) != 0 ||
	    open_top(m) != 0)
		return -1;
	same.head[0] = &top(o)->head;
	if (judge_and_adopt(o, m->img, &same, "opened again") != 0 ||
	    check_everything(m, m->img, top(o), "after recovery") != 0)
		return -1;
	return 0;
}

static void drop_handle(struct ops *o)
{
	if (o->m.held)
		img_close(o->m.held, NULL);
	if (o->m.img)
		img_close(o->m.img, NULL);
	o->m.held = o->m.img = NULL;
}

static void allow_heads(struct ops *o, struct allowed *a, size_t from, size_t to)
{
	for (size_t i = from; i <= to && i < o->nr_versions; i++)
		a->head[a->nr_heads++] = &o->version[i]->truth.head;
}

/* The last durable version that was complete at entry `at`. */
static size_t durable_before(const struct ops *o, size_t at)
{
	size_t last = 0;

	for (size_t i = 0; i < o->nr_versions; i++) {
		if (o->version[i]->durable && o->version[i]->log_end <= at)
			last = i;
	}
	return last;
}

/* What a handle that is poisoned, or gone, leaves on disk: what was durable last, or anything later. */
static int judge_left(struct ops *o, const char *what)
{
	struct allowed a = { .list = { top(o) }, .nr_lists = 1, .head = { &top(o)->head }, .nr_heads = 1, .wild = true };

	allow_heads(o, &a, durable_before(o, SIZE_MAX), SIZE_MAX);
	drop_handle(o);
	return judge_disk(o, &a, what);
}

/* A commit that got so far that nothing but commit changes the image. It can be read: what it held was durable before,
 * and is there whatever the parent has got. */
static int commit_began(struct ops *o, bool *began)
{
	struct model *m = &o->m;
	struct img_open_options opts = { .struct_size = sizeof(opts), .refs = IMG_REFS_ANY };
	struct img_error err = { 0 };
	struct img_info info;
	struct img *img = NULL;
	int ret;

	*began = false;
	if (o->kind != OP_COMMIT)
		return 0;
	opts.format = top(o)->format->raw ? "raw" : NULL;
	if (expect(m, image_open_env(top(o)->name, &opts, &m->fs.env, &img, &err), 0, &err,
		   "open for reading after a commit that failed") != 0)
		return -1;
	ret = expect(m, img_info(img, &info, &err), 0, &err, "info");
	*began = ret == 0 && info.backing_committing;
	if (*began)
		ret = check_image(m, img, &top(o)->head, "read after a commit that failed");
	return expect(m, img_close(img, &err), 0, &err, "close") != 0 ? -1 : ret;
}

/* Commit, rebase and flatten may be run again, and then succeed. */
static int run_again(struct ops *o, bool poisoned)
{
	struct model *m = &o->m;
	struct img_open_options opts = { .struct_size = sizeof(opts),
					 .flags = IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING,
					 .refs = IMG_REFS_ANY };
	struct op op = { .kind = o->kind };
	struct img_error err = { 0 };
	bool began;

	memcpy(op.r, o->r, sizeof(op.r));
	/* The parent was written to, and its writer's end may be what failed; who repairs it is not here. */
	if (o->kind == OP_COMMIT && top(o)->parent >= 0)
		m->files[top(o)->parent].leaks = m->files[top(o)->parent].format->may_leak;
	if (poisoned || !m->img) {
		drop_handle(o);
		if (commit_began(o, &began) != 0)
			return -1;
		if (!began) {
			if (judge_left(o, "opened after a failure") != 0)
				return -1;
		} else {
			if (!top(o)->format->keeps_vm)
				flat_resize(&top(o)->vm, 0);
			if (expect(m, image_open_env(top(o)->name, &opts, &m->fs.env, &m->img, &err), 0, &err,
				   "open after a commit that failed") != 0)
				return -1;
		}
	}
	return model_step(m, &op) != 0 || close_top(m) != 0 || open_top(m) != 0 ? -1 : 0;
}

static void mark_wild(struct ops *o, uint64_t bytes, uint64_t off)
{
	for (uint64_t at = off / OPS_SECTOR; bytes && at <= (off + bytes - 1) / OPS_SECTOR && at < OPS_SECTORS; at++)
		o->wild[at] = 1;
}

static bool changes_range(enum op_kind kind)
{
	return kind == OP_WRITE || kind == OP_WRITE_BLOCKS || kind == OP_WRITE_UNITS || kind == OP_ZERO ||
	       kind == OP_DISCARD;
}

int settle_fault(struct ops *o)
{
	struct model *m = &o->m;
	bool range = changes_range(o->kind), poisoned = false, usable = m->img != NULL;
	bool again = o->kind == OP_COMMIT || o->kind == OP_REBASE || o->kind == OP_FLATTEN;
	struct mfile before, after;
	struct allowed a = {
		.list = { &before, &after }, .nr_lists = 2, .head = { &before.head, &after.head }, .nr_heads = 2
	};
	int ret = 0;

	m->failure[0] = '\0';
	m->no_vm = false;
	memfs_remove(&m->fs, "conv"); /* it was made, and could not be looked at */
	if (usable && probe_handle(o, &poisoned) != 0)
		return -1;
	if (again)
		return run_again(o, poisoned) != 0 || history_restart(o) != 0 ? -1 : 0;
	make_after(o, &after);
	mfile_copy(&before, top(o));
	if (range) {
		a.off = m->touched_off;
		a.bytes = m->touched_bytes;
		mark_wild(o, a.bytes, a.off);
	}
	/* Through the handle: as before, or as after; poisoned or not, it reads. */
	a.exact_vm = !poisoned && (o->kind < OP_VM_WRITE || o->kind > OP_VM_RESIZE) && o->kind != OP_SNAP_REVERT;
	if (usable)
		ret = judge_and_adopt(o, m->img, &a, "after a failure");
	if (ret == 0 && (poisoned || !usable || !o->fault.stay || top(o)->format->may_leak)) {
		if (poisoned || !usable) {
			allow_heads(o, &a, durable_before(o, SIZE_MAX), SIZE_MAX);
			a.wild = true;
			a.exact_vm = false;
		} else {
			ret = close_top(m);
			a = (struct allowed){
				.list = { top(o) }, .nr_lists = 1, .head = { &top(o)->head }, .nr_heads = 1
			};
		}
		drop_handle(o);
		m->failure[0] = ret == 0 ? '\0' : m->failure[0];
		if (ret == 0)
			ret = judge_disk(o, &a, "opened after a failure");
		if (ret == 0)
			ret = history_restart(o);
	} else if (ret == 0) {
		history_add(o, false);
	}
	mfile_free(&before);
	mfile_free(&after);
	return ret;
}

int survive_fault(struct ops *o)
{
	bool poisoned;

	if (!o->m.img || probe_handle(o, &poisoned) != 0)
		return -1;
	if (!poisoned)
		return 0;
	return judge_left(o, "opened after a failure that did not show") != 0 || history_restart(o) != 0 ? -1 : 0;
}

/* ---- after a crash ----------------------------------------------------------------------------------------------- */

/* A raw file that is cut within a sector is an image of odd size, which the model does not know. */
static int whole_sectors(struct ops *o)
{
	uint64_t size = top(o)->head.size_bytes, more = (OPS_SECTOR - size % OPS_SECTOR) % OPS_SECTOR;
	struct img_error err = { 0 };

	if (more == 0)
		return 0;
	flat_resize(&top(o)->head, size + more);
	return expect(&o->m, img_resize(o->m.img, size + more, 0, &err), 0, &err, "resize to whole sectors");
}

int settle_crash(struct ops *o, const uint32_t *r)
{
	struct model *m = &o->m;
	size_t last = o->nr_versions - 1, now = crash_log_nr(o->log), at = now, done = last;
	struct allowed a = { .wild = true };
	struct mem_content *content;

	/* Now, or while the last operation ran. */
	if (last > 0 && r[0] % 2) {
		size_t begin = o->version[last - 1]->log_end;

		at = begin + r[0] / 2 % (now - begin + 1);
		done = at < o->version[last]->log_end ? last - 1 : last;
	}
	content = history_crash(o, at, r);
	a.list[a.nr_lists++] = &o->version[done]->truth;
	if (done < last)
		a.list[a.nr_lists++] = &o->version[last]->truth;
	allow_heads(o, &a, durable_before(o, done == last ? SIZE_MAX : o->version[done]->log_end), last);
	drop_handle(o);
	memfs_put(&m->fs, top(o)->name, content);
	if (judge_disk(o, &a, "after a crash") != 0 || whole_sectors(o) != 0)
		return -1;
	return history_restart(o);
}
