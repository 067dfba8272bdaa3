/* SPDX-License-Identifier: MIT */
/*
 * Machine state: guest space behind the disk, from the first boundary of an L2 table on, so that no table holds entries
 * of both. A snapshot with machine state has the L1 entries of both, and says how many bytes it is.
 *
 * The working machine state stands there in the active tree. How long it is, is recorded nowhere: it belongs to the
 * handle that wrote it, or reverted to it, and is freed when that closes. What is found behind the disk at another time
 * is the rest of a crash, or of another program: it is dropped before the first write.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_snapshot.h"

static struct qcow2_state *state_of(const struct node *n)
{
	return n->state;
}

/* ---- where it is -------------------------------------------------------------------------------------------------- */

/* Guest bytes that one L1 entry covers. */
static uint64_t table_reach(const struct qcow2_engine *e)
{
	return e->cluster_bytes << e->l2_shift;
}

uint64_t qcow2_l1_entries_for(const struct qcow2_engine *e, uint64_t disk_bytes)
{
	return disk_bytes / table_reach(e) + (disk_bytes % table_reach(e) != 0);
}

uint64_t qcow2_l1_entries_vm(const struct qcow2_engine *e, uint64_t vm_bytes)
{
	return qcow2_l1_entries_for(e, vm_bytes);
}

uint64_t qcow2_vmstate_off(const struct qcow2_engine *e, uint64_t disk_bytes)
{
	return qcow2_l1_entries_for(e, disk_bytes) * table_reach(e);
}

/* ---- the L1 entries behind the disk ------------------------------------------------------------------------------- */

/* map held. The first entry behind the disk, and how many of them are for the working machine state, written or about
 * to be. */
static void tail_of(const struct qcow2_engine *e, uint64_t *first, uint64_t *nr)
{
	*first = min_u64(qcow2_l1_entries_for(e, e->h.size), e->h.l1_entries);
	*nr = min_u64(qcow2_l1_entries_vm(e, atomic_load(&e->vm_reach)), e->h.l1_entries - *first);
}

static bool has_leftovers(struct qcow2_engine *e)
{
	uint64_t first, nr;
	bool found = false;

	pthread_rwlock_rdlock(&e->map);
	tail_of(e, &first, &nr);
	for (uint64_t i = first + nr; i < e->h.l1_entries; i++)
		found = found || (e->l1[i] & QCOW2_OFFSET_MASK) != 0;
	pthread_rwlock_unlock(&e->map);
	return found;
}

int qcow2_vmstate_move(struct qcow2_engine *e, uint64_t disk_bytes, uint64_t **l1, uint32_t *n, struct img_error *err)
{
	uint64_t disk = qcow2_l1_entries_for(e, disk_bytes), first, nr, rest;
	int r;

	tail_of(e, &first, &nr);
	r = qcow2_l1_copy(e->l1, min_u64(first, disk), disk + nr, l1, err);
	if (r < 0)
		return r;
	if (nr)
		memcpy(*l1 + disk, e->l1 + first, (size_t)(nr * 8));
	*n = (uint32_t)(disk + nr);
	rest = e->h.l1_entries - first - nr;
	if (rest)
		r = qcow2_txn_walk(e, e->l1 + first + nr, (uint32_t)rest, -1, err);
	if (r < 0) {
		free(*l1);
		*l1 = NULL;
	}
	return r;
}

/*
 * One transaction that leaves an L1 of at least `entries`, in which nothing stands behind the disk but the working
 * machine state. No locks held.
 */
static int rebuild_tail(struct qcow2_engine *e, uint64_t entries, struct img_error *err)
{
	uint64_t *l1 = NULL, *longer;
	uint32_t n = 0;
	int r = qcow2_txn_begin(e, err);

	if (r < 0)
		return r;
	r = qcow2_vmstate_move(e, e->h.size, &l1, &n, err);
	if (r == 0) {
		entries = max_u64(max_u64(entries, e->h.l1_entries), n);
		r = qcow2_l1_copy(l1, n, entries, &longer, err);
		free(l1);
	}
	if (r == 0) {
		/* What was cut off may have shared tables with a snapshot, but nothing with the disk: flags stay true. */
		qcow2_txn_set_l1(e, longer, (uint32_t)entries);
		return qcow2_txn_commit(e, err);
	}
	qcow2_txn_abort(e);
	return r;
}

/* ---- the driver's members ----------------------------------------------------------------------------------------- */

static int head_of(struct node *n, struct qcow2_engine **e, struct img_error *err)
{
	int r = qcow2_head(n, e, err);

	if (r == 0 && (*e)->external)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "an image with an external data file has no machine state");
	return r;
}

/* Everything up to end can be written: the L1 reaches there, and what nobody owns is gone. */
static int make_reach(struct qcow2_engine *e, uint64_t end, struct img_error *err)
{
	uint64_t need = qcow2_l1_entries_for(e, atomic_load(&e->disk_bytes)) + qcow2_l1_entries_vm(e, end), have;
	bool leftovers = has_leftovers(e);
	int r;

	pthread_rwlock_rdlock(&e->map);
	have = e->h.l1_entries;
	pthread_rwlock_unlock(&e->map);
	if (have >= need && !leftovers)
		return 0;
	if (need > QCOW2_L1_MAX_BYTES / 8)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "machine state of 0x%llx bytes: the L1 table would exceed 32 MiB",
				 (unsigned long long)end);
	r = qcow2_touch(e, err);
	/* A little more each time, as state is written in small pieces. */
	return r < 0 ? r : rebuild_tail(e, have >= need ? 0 : min_u64(need + need / 8, QCOW2_L1_MAX_BYTES / 8), err);
}

static void raise_to(_Atomic uint64_t *v, uint64_t least)
{
	uint64_t have = atomic_load(v);

	while (have < least && !atomic_compare_exchange_weak(v, &have, least))
		;
}

/* The working machine state is about to reach [off, off + bytes). */
static int reach_for(struct qcow2_engine *e, uint64_t bytes, uint64_t off, uint64_t *base, struct img_error *err)
{
	uint64_t end;
	int r;

	*base = qcow2_vmstate_off(e, atomic_load(&e->disk_bytes));
	if (add_overflows(off, bytes, &end) || end > INT64_MAX - *base)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "machine state at 0x%llx lies beyond all limits", (unsigned long long)off);
	r = make_reach(e, end, err);
	if (r == 0)
		raise_to(&e->vm_reach, end); /* before there is anything to be taken for a leftover */
	return r;
}

int qcow2_vmstate_write(struct node *n, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct qcow2_engine *e;
	uint64_t base;
	int r = head_of(n, &e, err);

	if (r == 0)
		r = reach_for(e, bytes, off, &base, err);
	if (r == 0)
		r = qcow2_write(e, buf, bytes, base + off, 0, err);
	if (r == 0)
		raise_to(&e->vm_bytes, off + bytes);
	return r;
}

/* Behind its end there is nothing but zeros. */
int qcow2_vmstate_zero(struct node *n, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct qcow2_engine *e;
	uint64_t base, have;
	int r = head_of(n, &e, err);

	if (r == 0)
		r = reach_for(e, bytes, off, &base, err);
	if (r != 0)
		return r;
	have = atomic_load(&e->vm_bytes);
	if (off < have)
		r = qcow2_zero(e, min_u64(bytes, have - off), base + off, true, false, err);
	if (r == 0)
		raise_to(&e->vm_bytes, off + bytes);
	return r;
}

int qcow2_vmstate_size(struct node *n, const char *snap, uint64_t *bytes, struct img_error *err)
{
	struct qcow2_engine *e = state_of(n)->view.e;
	const struct qcow2_snapshot *s;

	if (!snap) {
		*bytes = state_of(n)->view.is_snapshot ? 0 : atomic_load(&e->vm_bytes);
		return 0;
	}
	pthread_rwlock_rdlock(&e->map);
	s = qcow2_snapshot_find(e, snap, err);
	*bytes = s ? s->vm_state_bytes : 0;
	pthread_rwlock_unlock(&e->map);
	return s ? 0 : IMG_E_NOENT;
}

/* Where machine state [off, off + bytes) of a snapshot, or the working one, is found: to be released where snap is
 * given. */
static int view_of_state(struct node *n, const char *snap, uint64_t bytes, uint64_t off, struct qcow2_view *v,
			 uint64_t *base, struct img_error *err)
{
	struct qcow2_engine *e = state_of(n)->view.e;
	uint64_t size, last;
	int r = qcow2_vmstate_size(n, snap, &size, err);

	if (r == 0 && !range_inside(off, bytes, size))
		r = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "the machine state ends at 0x%llx",
			      (unsigned long long)size);
	if (r < 0)
		return r;
	*v = qcow2_head_view(e);
	if (snap)
		r = qcow2_snapshot_view(e, snap, v, err);
	if (r < 0)
		return r;
	*base = qcow2_vmstate_off(e, snap ? v->size_bytes : atomic_load(&e->disk_bytes));
	if (!add_overflows(*base, off + bytes, &last) && last <= INT64_MAX)
		return 0;
	if (snap)
		qcow2_view_release(v);
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			 "machine state of 0x%llx bytes lies beyond all limits", (unsigned long long)size);
}

int qcow2_vmstate_read(struct node *n, const char *snap, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct qcow2_view v;
	uint64_t base;
	int r = view_of_state(n, snap, bytes, off, &v, &base, err);

	if (r < 0)
		return r;
	if (bytes)
		r = qcow2_view_read(&v, buf, bytes, base + off, err);
	if (snap)
		qcow2_view_release(&v);
	return r;
}

/*
 * Where an image may be changed no offsets are told: clusters move, and are written in place, as a whole, while whoever
 * maps them thinks in pages.
 */
int qcow2_vmstate_status(struct node *n, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			 size_t cap, size_t *nr, struct img_error *err)
{
	struct qcow2_view v;
	uint64_t base;
	int r = view_of_state(n, snap, bytes, off, &v, &base, err);

	if (r < 0)
		return r;
	r = qcow2_view_status(&v, bytes, base + off, out, cap, nr, err);
	for (size_t i = 0; r == 0 && i < *nr; i++) {
		out[i].off -= base;
		if (v.e->writable)
			out[i].host_off = STATUS_NO_HOST;
	}
	if (snap)
		qcow2_view_release(&v);
	return r;
}

/* What is cut off reads as zeros should the state grow again; whole tables of it leave the tree. */
int qcow2_vmstate_resize(struct node *n, uint64_t bytes, struct img_error *err)
{
	struct qcow2_engine *e;
	uint64_t have, base, end;
	int r = head_of(n, &e, err);

	if (r < 0)
		return r;
	have = atomic_load(&e->vm_bytes);
	base = qcow2_vmstate_off(e, atomic_load(&e->disk_bytes));
	if (bytes > INT64_MAX - base)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "machine state of 0x%llx bytes lies beyond all limits", (unsigned long long)bytes);
	if (bytes > have)
		r = make_reach(e, bytes, err);
	else if (bytes < have) {
		end = min_u64(have, qcow2_l1_entries_vm(e, bytes) * table_reach(e));
		if (bytes % table_reach(e) != 0)
			r = qcow2_zero(e, end - bytes, base + bytes, true, false, err);
	}
	if (r < 0)
		return r;
	atomic_store(&e->vm_bytes, bytes);
	atomic_store(&e->vm_reach, bytes);
	return bytes < have && has_leftovers(e) ? rebuild_tail(e, 0, err) : 0;
}

int qcow2_vmstate_end(struct qcow2_engine *e, struct img_error *err)
{
	if (!e->writable || atomic_load(&e->broken) || atomic_load(&e->vm_bytes) == 0)
		return 0;
	atomic_store(&e->vm_bytes, 0);
	atomic_store(&e->vm_reach, 0);
	return has_leftovers(e) ? rebuild_tail(e, 0, err) : 0;
}
