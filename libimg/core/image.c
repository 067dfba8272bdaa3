/* SPDX-License-Identifier: MIT */
/*
 * Images: opening, creating, closing, properties, I/O. The public functions check what a caller can get wrong, hold
 * img->content_lock shared, and hand over to the node; nothing here knows a format.
 *
 * A chain of images is one chain of nodes, owned by its top, with a struct img around each layer ("borrowed" for all
 * but the first), so that img_backing() can hand out a parent like any other image.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "chain.h"
#include "checked.h"
#include "error.h"
#include "image_int.h"
#include "probe.h"

#define LAYER	     "image"
#define SECTOR_BYTES 512u
#define GATHER_BYTES (1u << 20)

#define OPEN_FLAGS                                                                                               \
	(IMG_OPEN_WRITE | IMG_OPEN_FORCE_SHARE | IMG_OPEN_NO_BACKING | IMG_OPEN_UNSAFE_BACKING | IMG_OPEN_BULK | \
	 IMG_OPEN_DIRECT | IMG_OPEN_RAW_OK | IMG_OPEN_VOLATILE | IMG_OPEN_DATA_FILES)

int image_invalid(struct img_error *err, const char *what)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s", what);
}

int image_check_flags(unsigned flags, unsigned known, struct img_error *err)
{
	if ((flags & ~known) == 0)
		return 0;
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "unknown flags 0x%x", flags & ~known);
}

int image_copy_options(void *out, size_t out_bytes, const void *options, struct img_error *err)
{
	const uint8_t *bytes = options;
	size_t given = 0;

	memset(out, 0, out_bytes);
	if (options) {
		memcpy(&given, options, sizeof(given));
		if (given < sizeof(given) || given > 4096)
			return image_invalid(err, "struct_size of the options is not set");
		for (size_t i = out_bytes; i < given; i++) {
			if (bytes[i] != 0)
				return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
						 "an option is set that this version of the library does not have");
		}
		memcpy(out, options, given < out_bytes ? given : out_bytes);
	}
	memcpy(out, &out_bytes, sizeof(out_bytes));
	return 0;
}

/* ---- struct img -------------------------------------------------------------------------------------------------- */

static void init_lock(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attr;

	/* A resize must not wait for a guest to stop reading. No path takes the lock twice. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

struct img *image_new(struct node *top, const char *path, const char *snapshot, unsigned open_flags, enum img_refs refs,
		      const struct image_env *env, struct img_error *err)
{
	struct img *img = calloc(1, sizeof(*img));

	if (!img)
		goto no_memory;
	init_lock(&img->content_lock);
	img->top = top;
	img->depth = 1;
	img->open_flags = open_flags;
	img->refs = refs;
	img->env = env;
	(void)budget_complete(&img->budget, NULL, NULL);
	img->path = strdup(path);
	img->snapshot = snapshot ? strdup(snapshot) : NULL;
	if (!img->path || (snapshot && !img->snapshot))
		goto no_memory;
	return img;

no_memory:
	if (img)
		image_free(img);
	error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", path);
	return NULL;
}

void image_free(struct img *img)
{
	pthread_rwlock_destroy(&img->content_lock);
	free(img->path);
	free(img->snapshot);
	free(img);
}

void image_attach_backing(struct img *img, struct img *parent)
{
	img->top->backing = parent->top;
	img->top->backing_missing = false;
	img->backing = parent;
	img->depth = parent->depth + 1;
	parent->borrowed = true;
}

struct img *image_detach_backing(struct img *img)
{
	struct img *parent = img->backing;

	img->top->backing = NULL;
	img->backing = NULL;
	img->depth = 1;
	if (parent)
		parent->borrowed = false;
	return parent;
}

int image_freeze(struct img *img, struct img **alias, struct img_error *err)
{
	pthread_rwlock_wrlock(&img->content_lock);
	*alias = image_new(img->top, img->path, img->snapshot, img->open_flags, img->refs, img->env, err);
	if (!*alias) {
		pthread_rwlock_unlock(&img->content_lock);
		return IMG_E_NOMEM;
	}
	(*alias)->borrowed = true;
	image_refreeze(img, *alias);
	return 0;
}

void image_refreeze(struct img *img, struct img *alias)
{
	alias->backing = img->backing;
	alias->depth = img->depth;
}

void image_thaw(struct img *img, struct img *alias)
{
	image_free(alias);
	pthread_rwlock_unlock(&img->content_lock);
}

int img_close(struct img *img, struct img_error *err)
{
	struct img *backing;
	int ret;

	error_clear(err);
	if (!img)
		return 0;
	if (img->borrowed)
		return image_invalid(err, "a backing image is closed with the image that stands on it");
	/* A view of a snapshot shares the wrappers of its image's backing. */
	backing = img->top->view_of ? NULL : img->backing;
	ret = node_close(img->top, err);
	image_free(img);
	while (backing) {
		struct img *next = backing->backing;

		image_free(backing);
		backing = next;
	}
	return ret;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int complete_open_options(struct img_open_options *out, const struct img_open_options *opts,
				 struct img_error *err)
{
	int ret = image_copy_options(out, sizeof(*out), opts, err);

	if (ret == 0)
		ret = image_check_flags(out->flags, OPEN_FLAGS, err);
	if (ret != 0)
		return ret;
	if ((out->flags & IMG_OPEN_WRITE) && (out->flags & IMG_OPEN_FORCE_SHARE))
		return image_invalid(err, "force-share is for reading only");
	if ((out->flags & IMG_OPEN_WRITE) && out->snapshot)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "snapshot '%s' cannot be opened for writing",
				 out->snapshot);
	if (out->snapshot && (out->snapshot[0] == '\0' || strlen(out->snapshot) > IMG_SNAPSHOT_NAME_MAX))
		return image_invalid(err, "the name of a snapshot has 1 to 255 bytes");
	if ((unsigned)out->refs > IMG_REFS_ANY)
		return image_invalid(err, "unknown policy for references");
	if (out->refs == IMG_REFS_DEFAULT)
		out->refs = IMG_REFS_DIR;
	if (out->max_depth == 0)
		out->max_depth = CHAIN_DEPTH_DEFAULT;
	if (out->max_depth > CHAIN_DEPTH_MAX)
		out->max_depth = CHAIN_DEPTH_MAX;
	return 0;
}

static int open_env(const char *path, const struct img_open_options *opts, unsigned more_flags,
		    const struct image_env *env, struct img **out, struct img_error *err)
{
	struct img_open_options o;
	struct host_open host;
	struct node *file;
	char *resolved;
	int ret;

	*out = NULL;
	ret = complete_open_options(&o, opts, err);
	if (ret != 0)
		return ret;
	o.flags |= more_flags;
	host = chain_peek(&o);
	ret = env->open_file(env->ctx, NULL, path, o.refs, &host, &file, &resolved, err);
	if (ret != 0)
		return ret;
	ret = chain_open(file, resolved, &o, env, NULL, out, err);
	free(resolved);
	return ret;
}

int image_open_env(const char *path, const struct img_open_options *opts, const struct image_env *env, struct img **out,
		   struct img_error *err)
{
	return open_env(path, opts, 0, env, out, err);
}

int image_open_for_check(const char *path, const struct img_open_options *opts, const struct image_env *env,
			 struct img **out, struct img_error *err)
{
	return open_env(path, opts, OPEN_FOR_CHECK | IMG_OPEN_NO_BACKING, env, out, err);
}

int image_open_on(struct node *file, const char *path, const struct img_open_options *opts, const struct image_env *env,
		  struct data_creation *made, struct img **out, struct img_error *err)
{
	struct img_open_options o;
	int ret = complete_open_options(&o, opts, err);

	*out = NULL;
	if (ret != 0) {
		node_close(file, NULL);
		return ret;
	}
	return chain_open(file, path, &o, env, made, out, err);
}

int img_open(const char *path, const struct img_open_options *opts, struct img **out, struct img_error *err)
{
	struct img_open_options o;
	int ret;

	error_clear(err);
	if (!out)
		return image_invalid(err, "no place for the image");
	*out = NULL;
	if (!path)
		return image_invalid(err, "no path");
	ret = image_copy_options(&o, sizeof(o), opts, err);
	return ret == 0 ? image_open_env(path, &o, image_env_of(o.host), out, err) : ret;
}

/* ---- properties -------------------------------------------------------------------------------------------------- */

uint64_t img_size(const struct img *img)
{
	return img ? node_size(img->top) : 0;
}

unsigned img_caps(const struct img *img)
{
	unsigned caps;

	if (!img)
		return 0;
	caps = img->top->drv->caps;
	return img->top->writable ? caps | IMG_CAP_WRITE : caps & ~(unsigned)IMG_CAP_WRITE;
}

const char *img_format(const struct img *img)
{
	return img ? img->top->drv->name : "";
}

const char *img_path(const struct img *img)
{
	return img ? img->path : "";
}

void img_limits(const struct img *img, struct img_limits *out)
{
	struct driver_limits limits;

	if (!out)
		return;
	memset(out, 0, sizeof(*out));
	if (!img)
		return;
	/* A question, though asked of what is const. */
	pthread_rwlock_rdlock((pthread_rwlock_t *)&img->content_lock);
	node_limits(img->top, &limits);
	pthread_rwlock_unlock((pthread_rwlock_t *)&img->content_lock);
	out->block_bytes = limits.block_bytes;
	out->optimal_bytes = limits.optimal_bytes;
	out->unit_bytes = limits.unit_bytes;
	out->max_size_bytes = limits.max_size_bytes;
}

struct img *img_backing(const struct img *img)
{
	return img ? img->backing : NULL;
}

unsigned img_chain_depth(const struct img *img)
{
	return img ? img->depth : 0;
}

/* ---- I/O --------------------------------------------------------------------------------------------------------- */

static const unsigned write_flags = IMG_IO_FUA | IMG_IO_COMPRESS | IMG_IO_NO_UNMAP | IMG_IO_DETECT_ZEROES;

static int begin(struct img *img, unsigned flags, unsigned known, struct img_error *err)
{
	int ret;

	error_clear(err);
	if (!img)
		return image_invalid(err, "no image");
	ret = image_check_flags(flags, known, err);
	if (ret == 0)
		pthread_rwlock_rdlock(&img->content_lock);
	return ret;
}

static int end(struct img *img, int ret)
{
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_pread(struct img *img, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = begin(img, flags, 0, err);

	return ret != 0 ? ret : end(img, node_pread(img->top, buf, bytes, off, 0, err));
}

int img_pwrite(struct img *img, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = begin(img, flags, write_flags, err);

	return ret != 0 ? ret : end(img, node_pwrite(img->top, buf, bytes, off, flags, err));
}

int img_zero(struct img *img, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = begin(img, flags, IMG_IO_FUA | IMG_IO_NO_UNMAP, err);

	return ret != 0 ? ret : end(img, node_zero(img->top, bytes, off, flags, err));
}

int img_discard(struct img *img, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = begin(img, flags, IMG_IO_FUA, err);

	return ret != 0 ? ret : end(img, node_discard(img->top, bytes, off, flags, err));
}

int img_flush(struct img *img, unsigned flags, struct img_error *err)
{
	int ret = begin(img, flags, IMG_FLUSH_CHECKPOINT, err);

	return ret != 0 ? ret : end(img, node_flush(img->top, flags, err));
}

int img_resize(struct img *img, uint64_t size_bytes, unsigned flags, struct img_error *err)
{
	int ret;

	error_clear(err);
	if (!img)
		return image_invalid(err, "no image");
	ret = image_check_flags(flags, IMG_RESIZE_SHRINK, err);
	if (ret != 0)
		return ret;
	if (size_bytes % SECTOR_BYTES != 0)
		return image_invalid(err, "sizes are multiples of 512 bytes");
	pthread_rwlock_wrlock(&img->content_lock);
	if (size_bytes < node_size(img->top) && !(flags & IMG_RESIZE_SHRINK))
		ret = error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				"%s: %llu bytes are less than the %llu that it has; shrinking has to be asked for",
				img->path, (unsigned long long)size_bytes, (unsigned long long)node_size(img->top));
	else
		ret = node_resize(img->top, size_bytes, err);
	return end(img, ret);
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

/*
 * Several buffers are gathered into one of up to GATHER_BYTES, cut where the offset is a multiple of it: a driver sees
 * whole blocks and compression units, whatever the pieces are.
 */
struct vector {
	const struct iovec *iov;
	int nr_iov;
	int i;	     /* current buffer */
	size_t done; /* of it */
};

static int check_vector(const struct iovec *iov, int nr_iov, uint64_t bytes, struct img_error *err)
{
	uint64_t sum = 0;

	if (nr_iov < 0 || (nr_iov > 0 && !iov))
		return image_invalid(err, "no buffers");
	for (int i = 0; i < nr_iov; i++) {
		if ((!iov[i].iov_base && iov[i].iov_len > 0) || add_overflows(sum, iov[i].iov_len, &sum))
			return image_invalid(err, "a buffer is missing or too large");
	}
	return sum == bytes ? 0 : image_invalid(err, "the buffers do not add up to the bytes of the request");
}

static void move_bytes(struct vector *v, uint8_t *gather, uint64_t bytes, bool to_gather)
{
	while (bytes > 0) {
		const struct iovec *iov = &v->iov[v->i];
		size_t n = (size_t)min_u64(bytes, iov->iov_len - v->done);
		uint8_t *at = (uint8_t *)iov->iov_base + v->done;

		if (n > 0)
			memcpy(to_gather ? gather : at, to_gather ? at : gather, n);
		gather += n;
		bytes -= n;
		v->done += n;
		if (v->done == iov->iov_len) {
			v->i++;
			v->done = 0;
		}
	}
}

static int transfer_vector(struct img *img, struct vector *v, uint64_t bytes, uint64_t off, unsigned flags, bool write,
			   struct img_error *err)
{
	uint8_t *gather = malloc((size_t)min_u64(bytes, GATHER_BYTES));
	int ret = gather ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", img->path);

	while (bytes > 0 && ret == 0) {
		uint64_t n = min_u64(bytes, GATHER_BYTES - off % GATHER_BYTES);

		if (write) {
			move_bytes(v, gather, n, true);
			ret = node_pwrite(img->top, gather, n, off, flags & ~(unsigned)IMG_IO_FUA, err);
		} else {
			ret = node_pread(img->top, gather, n, off, 0, err);
			if (ret == 0)
				move_bytes(v, gather, n, false);
		}
		off += n;
		bytes -= n;
	}
	free(gather);
	if (ret == 0 && (flags & IMG_IO_FUA))
		ret = node_flush(img->top, 0, err);
	return ret;
}

/* The pieces must not half succeed because only the last lies beyond the end. */
static int check_range(const struct img *img, uint64_t bytes, uint64_t off, struct img_error *err)
{
	if (range_inside(off, bytes, node_size(img->top)))
		return 0;
	return error_set(err, IMG_E_INVALID, 0, off, LAYER, "%s: 0x%llx bytes at 0x%llx are beyond the size, 0x%llx",
			 img->path, (unsigned long long)bytes, (unsigned long long)off,
			 (unsigned long long)node_size(img->top));
}

int img_preadv(struct img *img, const struct iovec *iov, int nr_iov, uint64_t bytes, uint64_t off, unsigned flags,
	       struct img_error *err)
{
	struct vector v = { .iov = iov, .nr_iov = nr_iov };
	int ret = begin(img, flags, 0, err);

	if (ret != 0)
		return ret;
	ret = check_vector(iov, nr_iov, bytes, err);
	if (ret == 0)
		ret = check_range(img, bytes, off, err);
	if (ret == 0 && nr_iov == 1)
		ret = node_pread(img->top, iov[0].iov_base, bytes, off, 0, err);
	else if (ret == 0 && bytes > 0)
		ret = transfer_vector(img, &v, bytes, off, flags, false, err);
	return end(img, ret);
}

int img_pwritev(struct img *img, const struct iovec *iov, int nr_iov, uint64_t bytes, uint64_t off, unsigned flags,
		struct img_error *err)
{
	struct vector v = { .iov = iov, .nr_iov = nr_iov };
	int ret = begin(img, flags, write_flags, err);

	if (ret != 0)
		return ret;
	ret = check_vector(iov, nr_iov, bytes, err);
	if (ret == 0)
		ret = check_range(img, bytes, off, err);
	if (ret == 0 && (nr_iov == 1 || bytes == 0))
		ret = node_pwrite(img->top, bytes ? iov[0].iov_base : NULL, bytes, off, flags, err);
	else if (ret == 0)
		ret = transfer_vector(img, &v, bytes, off, flags, true, err);
	return end(img, ret);
}
