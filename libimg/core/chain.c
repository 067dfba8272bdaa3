/* SPDX-License-Identifier: MIT */
/*
 * Backing chains. A chain is opened from the top down in a loop, each layer read-only but the first, until a layer
 * names no parent; then it is tied together and identities are compared from the bottom up, since the weak identity of
 * a layer is made of its content, which reads through what is below.
 *
 * What ends the loop on hostile images: the depth limit, and the refusal to open one file (device, inode, snapshot)
 * twice in a chain. The format of a parent is the one on record, never a guess. Who may be named is the broker's
 * decision (image_env.open_file).
 *
 * Locks: a file is opened with what a peek needs, which is enough to tell the format; then, before the driver reads
 * anything, the permissions become final: those of a writer, of a reader, or (a snapshot that can be read beside a
 * writer, force-share) the peek's.
 *
 * A layer whose commit into its parent began and has not ended reads as before the commit: what the parent took so far
 * is all in the layer too, which hides it, until the parent holds everything (commit.c). So it is opened for reading,
 * on a parent of which only that is asked that the commit does not change. Everything else waits for the commit.
 */
#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "chain.h"
#include "checked.h"
#include "data_file.h"
#include "error.h"
#include "parent_file.h"
#include "probe.h"

#define LAYER "chain"

/* What a chain is opened with. */
struct opening {
	const struct img_open_options *o; /* of the first layer */
	const uint8_t *snapshot_uuid;	  /* decides which snapshot that is; may be NULL */
	const char *recorded_by;	  /* the image that names the first layer as its parent; NULL: a user does */
	const struct host_stat *child;	  /* a file that no layer may be; NULL: any may */
	struct data_creation *made;	  /* data files of the first layer that have no names yet; NULL: none */
	bool only_read;			  /* nothing is written, and nobody records what the chain is now */
	const struct image_env *env;
	struct budget *budget;
};

struct layer {
	struct img *img;
	struct host_stat host;
	bool named; /* ref is what this layer names as its parent */
	struct backing_ref ref;
};

struct host_open chain_peek(const struct img_open_options *o)
{
	return (struct host_open){
		.writable = (o->flags & IMG_OPEN_WRITE) != 0,
		.direct = (o->flags & IMG_OPEN_DIRECT) != 0,
		.use = SHARE_PEEK_USE,
		.no_lock = (o->flags & IMG_OPEN_FORCE_SHARE) != 0,
	};
}

static int take_permissions(struct node *file, const struct img_driver *drv, const struct img_open_options *o,
			    struct img_error *err)
{
	if (o->flags & IMG_OPEN_WRITE)
		return node_share(file, SHARE_WRITER_USE, SHARE_WRITER_FORBID, err);
	if ((o->flags & IMG_OPEN_FORCE_SHARE) || (o->snapshot && (drv->caps & IMG_CAP_SNAPSHOTS_BESIDE)))
		return 0;
	return node_share(file, SHARE_READER_USE, SHARE_READER_FORBID, err);
}

static int choose_driver(struct node *file, const struct img_open_options *o, const struct img_driver **drv,
			 struct img_error *err)
{
	if (!o->format)
		return probe_choose(file, (o->flags & IMG_OPEN_WRITE) != 0, drv, err);
	*drv = registry_find(o->format);
	if (!*drv)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: this build does not have the format '%s'", file->path, o->format);
	return 0;
}

/* One layer without its backing. Takes file over. */
static int open_layer(struct node *file, const char *path, const struct img_open_options *o,
		      const uint8_t *snapshot_uuid, const struct opening *op, struct img **out, struct img_error *err)
{
	bool for_check = (o->flags & OPEN_FOR_CHECK) != 0;
	struct data_opening data = { .path = path, .file = file, .o = o, .env = op->env, .budget = op->budget };
	struct driver_open args = {
		.writable = (o->flags & IMG_OPEN_WRITE) != 0,
		.force_share = (o->flags & IMG_OPEN_FORCE_SHARE) != 0,
		.bulk = (o->flags & IMG_OPEN_BULK) != 0,
		.for_check = for_check,
		.snapshot = o->snapshot,
		.snapshot_uuid = snapshot_uuid,
		.cache_bytes = o->cache_bytes,
		.budget = op->budget,
		.open_data = data_file_open,
		.open_data_ctx = &data,
	};
	const struct img_driver *drv;
	struct node *top = NULL;
	int ret = choose_driver(file, o, &drv, err);

	*out = NULL;
	if (ret == 0)
		ret = take_permissions(file, drv, o, err);
	if (ret == 0) {
		top = node_new(drv, path, err);
		ret = top ? 0 : IMG_E_NOMEM;
	}
	if (ret != 0) {
		node_close(file, NULL);
		return ret;
	}
	top->file = file;
	file->is_volatile = (o->flags & IMG_OPEN_VOLATILE) != 0;
	budget_layer(op->budget);
	data.made = args.writable ? op->made : NULL; /* no other layer is */
	data.absent = (o->flags & (IMG_OPEN_NO_BACKING | IMG_OPEN_DATA_FILES)) == IMG_OPEN_NO_BACKING &&
		      !args.writable && !(for_check && drv->checks_data);
	args.data_absent = data.absent;
	ret = node_open(top, &args, err);
	data_file_opened(&data);
	if (ret == 0)
		ret = budget_judge(op->budget, BUDGET_VIRTUAL, node_size(top), path, err);
	if (ret == 0) {
		*out = image_new(top, path, o->snapshot, o->flags, o->refs, op->env, err);
		ret = *out ? budget_complete(&(*out)->budget, o->budget, err) : IMG_E_NOMEM;
	}
	if (ret != 0 && *out) {
		image_free(*out);
		*out = NULL;
	}
	if (ret != 0)
		node_close(top, NULL);
	return ret;
}

static bool same_string(const char *a, const char *b)
{
	return strcmp(a ? a : "", b ? b : "") == 0;
}

/* Where the host cannot tell files apart (memory), the depth limit alone ends a cycle. */
static int check_cycle(struct layer *const *layers, unsigned nr, struct img_error *err)
{
	const struct layer *last = layers[nr - 1];

	if (last->host.ino == 0)
		return 0;
	for (unsigned i = 0; i + 1 < nr; i++) {
		const struct layer *l = layers[i];

		if (l->host.dev == last->host.dev && l->host.ino == last->host.ino &&
		    same_string(l->img->snapshot, last->img->snapshot))
			return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
					 "%s stands on itself: its backing chain is a cycle", l->img->path);
	}
	return 0;
}

static bool is_file(struct node *node, const struct host_stat *host)
{
	struct host_stat own;

	/* The file itself, whatever stands on it. */
	return host->ino != 0 && node_stat(node, &own, NULL) == 0 && own.ino == host->ino && own.dev == host->dev;
}

/* Is the file of host that of a layer, or one of its data files? */
static bool belongs_to(const struct layer *l, const struct host_stat *host)
{
	const struct node *top = l->img->top;

	for (size_t i = 0; i < top->nr_parts; i++)
		if (is_file(top->parts[i], host))
			return true;
	return l->host.ino != 0 && l->host.dev == host->dev && l->host.ino == host->ino;
}

/* The last layer's data files are nobody else's, and its file is nobody's data file: what is written to one would
 * change the other. */
static int check_data_files(struct layer *const *layers, unsigned nr, struct img_error *err)
{
	const struct layer *last = layers[nr - 1];
	const struct node *top = last->img->top;
	struct host_stat host;

	for (unsigned i = 0; i + 1 < nr; i++) {
		bool twice = false;

		for (size_t k = 0; k < top->nr_parts && !twice; k++)
			twice = node_stat(top->parts[k], &host, NULL) == 0 && host.ino != 0 &&
				belongs_to(layers[i], &host);
		for (size_t k = 0; k < layers[i]->img->top->nr_parts && !twice; k++)
			twice = is_file(layers[i]->img->top->parts[k], &last->host);
		if (twice)
			return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
					 "%s shares a data file with %s, which stands on it", last->img->path,
					 layers[i]->img->path);
	}
	return 0;
}

/* A snapshot on record may have been renamed since; who wants it whatever it is goes by the name. */
static const uint8_t *snapshot_uuid_of(const struct backing_ref *ref, unsigned open_flags)
{
	static const uint8_t none[sizeof(ref->pin.snapshot_uuid)];

	if (ref->pin.kind != PIN_STRONG || ref->snapshot[0] == '\0' || (open_flags & IMG_OPEN_UNSAFE_BACKING) ||
	    memcmp(ref->pin.snapshot_uuid, none, sizeof(none)) == 0)
		return NULL;
	return ref->pin.snapshot_uuid;
}

/* The options under which a parent is opened. */
static struct img_open_options parent_options(const struct img_open_options *child, const struct backing_ref *ref)
{
	struct img_open_options o = *child;

	o.flags &= IMG_OPEN_FORCE_SHARE | IMG_OPEN_UNSAFE_BACKING | IMG_OPEN_DIRECT;
	o.format = ref->format[0] ? ref->format : NULL;
	o.snapshot = ref->snapshot[0] ? ref->snapshot : NULL;
	return o;
}

static int may_open_parent(const char *path, const struct backing_ref *ref, unsigned depth, bool only_read,
			   struct budget *budget, struct img_error *err)
{
	int ret;

	if (ref->committing && !only_read)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: a commit into its backing file was interrupted: run imgtool commit again; until "
				 "then it can only be read",
				 path);
	if (ref->name[0] == '\0')
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "%s: the name of the backing file is missing",
				 path);
	ret = budget_judge(budget, BUDGET_DEPTH, depth, path, err);
	return ret == 0 ? budget_reference(budget, path, err) : ret;
}

static int open_parent_file(const char *child_path, const struct backing_ref *ref, const struct img_open_options *o,
			    const struct image_env *env, struct node **file, char **path, struct img_error *err)
{
	struct host_open host = chain_peek(o);

	return parent_file_open(child_path, ref, o->refs, &host, env, file, path, NULL, err);
}

static int add_layer(struct layer ***layers, unsigned nr, struct img_error *err)
{
	struct layer **more = realloc(*layers, (nr + 1) * sizeof(**layers));

	if (more) {
		*layers = more;
		more[nr] = calloc(1, sizeof(**more));
	}
	if (!more || !more[nr])
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	return 0;
}

static int stands_on_itself(const char *path, struct img_error *err)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: an image cannot stand on itself", path);
}

/* Looked at before it is opened: who holds the child for writing would meet himself. */
static int check_not_child(const struct opening *op, struct node *file, struct img_error *err)
{
	struct host_stat host;
	int ret;

	if (!op->child)
		return 0;
	ret = node_stat(file, &host, err);
	if (ret == 0 && host.dev == op->child->dev && host.ino == op->child->ino)
		ret = stands_on_itself(file->path, err);
	return ret;
}

/* Where a format records no format of the parent it is looked for; what is none at all must not pass for raw. */
static int check_guess(const struct img *parent, const char *child_path, const char *format, struct img_error *err)
{
	if (!child_path || format || !parent->top->drv->never_guess_for_writing)
		return 0;
	/* Long paths may be cut off: they come last. */
	return error_set(
		err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
		"the backing file's format is neither recorded nor recognised; if it is raw, say so: imgtool rebase "
		"--unsafe -b NAME -F raw: %s, named by %s",
		parent->path, child_path);
}

/* The file was there, its snapshot was not: on record that is a parent that changed, not a name that was mistyped. */
static int judge_missing(int ret, const char *child_path, const char *path, const char *snapshot, struct img_error *err)
{
	if (ret != IMG_E_NOENT || !child_path || !snapshot)
		return ret;
	error_clear(err);
	return error_set(err, IMG_E_CHANGED, 0, NO_OFFSET, LAYER,
			 "%s: snapshot '%s' is gone, on which %s stands: put the right file back, or use "
			 "imgtool rebase --unsafe if another parent has the same content",
			 path, snapshot, child_path);
}

/* Opens layers until one has no parent to open. *nr of them are allocated, also after failure, the last perhaps without
 * img. */
static int open_layers(struct node *file, const char *path, const struct opening *op, struct layer ***layers,
		       unsigned *nr, struct img_error *err)
{
	struct img_open_options o = *op->o;
	const uint8_t *uuid = op->snapshot_uuid;
	const char *child_path = op->recorded_by;
	char *next_path = NULL;
	int ret;

	for (;;) {
		struct layer *l;

		ret = check_not_child(op, file, err);
		if (ret == 0)
			ret = add_layer(layers, *nr, err);
		if (ret != 0) {
			node_close(file, NULL);
			break;
		}
		l = (*layers)[(*nr)++];
		ret = open_layer(file, path, &o, uuid, op, &l->img, err);
		ret = judge_missing(ret, child_path, path, o.snapshot, err);
		if (ret == 0)
			ret = check_guess(l->img, child_path, o.format, err);
		if (ret == 0)
			ret = node_stat(l->img->top, &l->host, err);
		if (ret == 0)
			ret = check_cycle(*layers, *nr, err);
		if (ret == 0)
			ret = check_data_files(*layers, *nr, err);
		if (ret != 0)
			break;
		l->named = node_get_backing(l->img->top, &l->ref);
		if (!l->named)
			break;
		if (o.flags & IMG_OPEN_NO_BACKING) {
			l->named = false;
			l->img->top->backing_missing = true;
			break;
		}
		ret = may_open_parent(path, &l->ref, *nr + 1, op->only_read, op->budget, err);
		if (ret != 0)
			break;
		o = parent_options(&o, &l->ref);
		uuid = snapshot_uuid_of(&l->ref, o.flags);
		free(next_path);
		next_path = NULL;
		child_path = l->img->path;
		ret = open_parent_file(child_path, &l->ref, &o, op->env, &file, &next_path, err);
		if (ret != 0)
			break;
		path = next_path;
	}
	free(next_path);
	return ret;
}

static int check_pin(const struct backing_ref *ref, struct img *parent, const char *child_path, unsigned open_flags,
		     struct img_error *err)
{
	struct pin found;
	int ret = 0;

	if (ref->pin.kind == PIN_NONE || (open_flags & IMG_OPEN_UNSAFE_BACKING))
		return 0;
	if (ref->pin.kind == PIN_ID)
		node_id(parent->top, &found);
	else
		ret = image_pin(parent, &found, err);
	if (ret != 0)
		return ret;
	return ref->committing ? pin_compare_committing(&ref->pin, &found, child_path, parent->path, err) :
				 pin_compare(&ref->pin, &found, child_path, parent->path, err);
}

static int open_chain(struct node *file, const char *path, const struct opening *op, struct img **out,
		      struct img_error *err)
{
	struct layer **layers = NULL;
	unsigned nr = 0;
	int ret = open_layers(file, path, op, &layers, &nr, err);

	*out = NULL;
	if (ret != 0 && nr > 1)
		error_prefix(err, "backing chain of %s", path);
	for (unsigned i = nr; i-- > 1 && ret == 0;) {
		struct layer *child = layers[i - 1];

		ret = check_pin(&child->ref, layers[i]->img, child->img->path, op->o->flags, err);
		if (ret != 0)
			break;
		image_attach_backing(child->img, layers[i]->img);
		layers[i]->img = NULL;
	}
	if (ret == 0) {
		*out = layers[0]->img;
		layers[0]->img = NULL;
	}
	for (unsigned i = 0; i < nr; i++) {
		if (layers[i]->img)
			img_close(layers[i]->img, NULL);
		free(layers[i]);
	}
	free(layers);
	return ret;
}

int chain_open(struct node *file, const char *path, const struct img_open_options *o, const struct image_env *env,
	       struct data_creation *made, struct img **out, struct img_error *err)
{
	struct budget budget;
	const struct opening op = {
		.o = o, .env = env, .budget = &budget, .made = made, .only_read = !(o->flags & IMG_OPEN_WRITE)
	};
	int ret = budget_init(&budget, o, err);

	*out = NULL;
	if (ret != 0) {
		node_close(file, NULL);
		return ret;
	}
	return open_chain(file, path, &op, out, err);
}

int chain_open_parent(const char *child_path, const struct backing_ref *ref, unsigned open_flags, enum img_refs refs,
		      unsigned max_depth, const struct img_budget *given, const struct image_env *env, struct img **out,
		      struct img_error *err)
{
	struct img_open_options o = {
		.struct_size = sizeof(o), .flags = open_flags, .refs = refs, .max_depth = max_depth, .budget = given
	};
	struct budget budget;
	const struct opening op = { .o = &o,
				    .snapshot_uuid = snapshot_uuid_of(ref, open_flags),
				    .recorded_by = child_path,
				    .env = env,
				    .budget = &budget };
	struct node *file;
	char *path;
	int ret;

	*out = NULL;
	ret = budget_init(&budget, &o, err);
	if (ret == 0)
		ret = may_open_parent(child_path, ref, 1, false, &budget, err);
	if (ret != 0)
		return ret;
	o = parent_options(&o, ref);
	ret = open_parent_file(child_path, ref, &o, env, &file, &path, err);
	if (ret != 0)
		return ret;
	ret = open_chain(file, path, &op, out, err);
	free(path);
	if (ret == 0) {
		ret = check_pin(ref, *out, child_path, open_flags, err);
		if (ret != 0) {
			img_close(*out, NULL);
			*out = NULL;
		}
	}
	return ret;
}

/* An existing child (rebase, or a file that is to be replaced) must not be in the chain that it is to stand on. */
static bool existing_child(const char *child_path, const struct image_env *env, struct host_stat *out)
{
	return env->identify && env->identify(env->ctx, child_path, out);
}

static int fill_ref(struct backing_ref *ref, const char *backing, const char *snapshot, struct img_error *err)
{
	memset(ref, 0, sizeof(*ref));
	if (strlen(backing) >= sizeof(ref->name) || backing[0] == '\0')
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "the name of a backing file has 1 to %zu bytes", sizeof(ref->name) - 1);
	if (snapshot && strlen(snapshot) >= sizeof(ref->snapshot))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "the name of a snapshot has at most %d bytes",
				 IMG_SNAPSHOT_NAME_MAX);
	strcpy(ref->name, backing);
	strcpy(ref->snapshot, snapshot ? snapshot : "");
	return 0;
}

int chain_make_ref(const char *child_path, const char *backing, const char *snapshot, const char *format,
		   enum img_refs refs, const struct img_budget *given, const struct image_env *env,
		   struct backing_ref *out, struct img_error *err)
{
	struct img_open_options o = {
		.struct_size = sizeof(o),
		.format = format,
		.snapshot = snapshot,
		.refs = refs,
		/* The child will be a layer more. */
		.max_depth = CHAIN_DEPTH_DEFAULT - 1,
		.budget = given,
	};
	struct budget budget;
	struct opening op = { .o = &o, .env = env, .budget = &budget };
	struct host_stat child;
	struct node *file;
	struct img *parent;
	char *path;
	int ret = fill_ref(out, backing, snapshot, err);

	if (ret == 0)
		ret = budget_init(&budget, &o, err);
	if (ret != 0)
		return ret;
	ret = open_parent_file(child_path, out, &o, env, &file, &path, err);
	if (ret != 0)
		return ret;
	if (existing_child(child_path, env, &child))
		op.child = &child;
	ret = open_chain(file, path, &op, &parent, err);
	free(path);
	if (ret != 0)
		return ret;
	if (!format && parent->top->drv->never_guess_for_writing)
		ret = error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				"%s: no known format is recognised; if it is raw, name its format (-F raw)",
				parent->path);
	if (ret == 0)
		ret = image_identify(parent, out, err);
	if (ret == 0)
		strncpy(out->format, parent->top->drv->name, sizeof(out->format) - 1);
	img_close(parent, NULL);
	return ret;
}
