/* SPDX-License-Identifier: MIT */
/*
 * Opening: the descriptor, alone or inside of a sparse extent, then one part per extent. An image of one file names
 * itself in its descriptor, by whatever it was called when it was made: that name is not followed. Others name files,
 * which are opened under the policy for references; extents of one raw file (partition tables, pieces) share it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "image.h"
#include "stream.h"

#define PART_CACHE_MIN 65536u

int vmdk_may_change(struct vmdk_state *v, struct img_error *err)
{
	if (!v->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "the image is open read-only");
	if (atomic_load(&v->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again");
	return 0;
}

/* ---- the descriptor ---------------------------------------------------------------------------------------------- */

int vmdk_judge_type(const char *type, const char *path, struct img_error *err)
{
	static const char *const known[] = {
		"monolithicSparse",   "monolithicFlat",	  "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
		"2GbMaxExtentSparse", "2GbMaxExtentFlat", "streamOptimized",	  "vmfs",
		"vmfsThin",	      "vmfsSparse",	  "vmfsPreallocated",	  "vmfsEagerZeroedThick",
		"seSparse",	      "custom",
	};
	static const char *const devices[] = {
		"fullDevice",	    "partitionedDevice",	   "vmfsRaw", "vmfsRDM", "vmfsRDMP",
		"vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap",
	};

	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (strcasecmp(type, known[i]) == 0)
			return 0;
	for (size_t i = 0; i < ARRAY_LEN(devices); i++)
		if (strcasecmp(type, devices[i]) == 0)
			return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
					 "%s: a disk of type '%s' stands for a device of the host, which no image may "
					 "name: copy the device itself",
					 path, type);
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: a disk of the unknown type '%s'", path,
			 type);
}

int vmdk_embedded(struct node *file, struct budget *budget, struct vmdk_header *h, struct vmdk_descriptor *d,
		  struct img_error *err)
{
	int ret = vmdk_header_load(file, 0, h, err);

	if (ret != 0)
		return ret;
	if (h->descriptor_bytes == 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: an extent without a descriptor, which is no disk by itself: open the descriptor "
				 "file that names it",
				 file->path);
	ret = vmdk_descriptor_load(file, h->descriptor_off, h->descriptor_bytes, budget, d, err);
	if (ret != 0)
		return ret;
	d->room = h->descriptor_bytes;
	if (d->nr_extents == 1 && d->extents[0].kind == VMDK_SPARSE && h->capacity_bytes > 0)
		return 0;
	vmdk_descriptor_free(d);
	return error_set(err, IMG_E_REFUSED, 0, h->descriptor_off, LAYER,
			 "%s: its descriptor describes other files, although it stands in a disk of one file",
			 file->path);
}

static int load_descriptor(struct vmdk_state *v, const struct driver_open *args, struct vmdk_header *h,
			   struct img_error *err)
{
	struct node *file = v->node->file;
	uint8_t magic[4] = { 0 };
	char flag[8];
	int ret = 0;

	if (node_size(file) >= sizeof(magic))
		ret = node_pread(file, magic, sizeof(magic), 0, 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(magic, COWD_MAGIC, 4) == 0 || memcmp(magic, "\xbe\xba\xfe\xca", 4) == 0)
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, 0, LAYER,
			"%s: an extent of ESX, which is no disk by itself: open the descriptor file that names "
			"it",
			file->path);
	v->single = memcmp(magic, VMDK_MAGIC, 4) == 0;
	ret = v->single ? vmdk_embedded(file, args->budget, h, &v->d, err) :
			  vmdk_descriptor_load(file, 0, node_size(file), args->budget, &v->d, err);
	if (ret == 0)
		ret = vmdk_judge_type(v->d.create_type, file->path, err);
	if (ret == 0)
		v->committing = vmdk_descriptor_value(&v->d, VMDK_COMMITTING_KEY, flag, sizeof(flag));
	return ret;
}

/* ---- one extent -------------------------------------------------------------------------------------------------- */

/* A raw file may be named by several extents; tables have theirs alone. Files are few: each counts as a reference. */
static struct node *already_open(const struct vmdk_state *v, const char *name)
{
	for (size_t k = 0; k < v->nr_openers; k++)
		if (strcmp(v->d.extents[v->openers[k]].name, name) == 0)
			return v->parts[v->openers[k]].file;
	return NULL;
}

static int remember_opener(struct vmdk_state *v, size_t i, struct img_error *err)
{
	size_t *grown = realloc(v->openers, (v->nr_openers + 1) * sizeof(*grown));

	if (!grown)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	v->openers = grown;
	grown[v->nr_openers++] = i;
	return 0;
}

static int open_file(struct vmdk_state *v, size_t i, const struct driver_open *args, struct img_error *err)
{
	const struct vmdk_extent *e = &v->d.extents[i];
	struct vmdk_part *p = &v->parts[i];
	int ret;

	p->file = already_open(v, e->name);
	if (p->file && e->kind != VMDK_FLAT && e->kind != VMDK_VMFS)
		return error_set(err, IMG_E_CORRUPT, 0, e->line_off, LAYER, "'%s' is named by two extents", e->name);
	p->absent = args->data_absent || (!args->open_data && !args->writable);
	/* Who only looks at the descriptor is not refused yet. */
	if (p->file || (p->absent && !args->open_data))
		return 0;
	if (!args->open_data)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "the data stands in other files, and none may be opened");
	ret = args->open_data(args->open_data_ctx, e->name, &p->file, err);
	if (ret == 0)
		ret = node_add_part(v->node, p->file, err);
	if (ret != 0)
		p->file = NULL;
	return ret ? ret : remember_opener(v, i, err);
}

static int only_read(const struct vmdk_part *p, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			 "%s: %s is only read; convert the image to change it", p->file->path, what);
}

static int open_sparse(struct vmdk_state *v, size_t i, const struct vmdk_header *h, uint64_t disk_off,
		       const struct driver_open *args, struct img_error *err)
{
	const struct vmdk_extent *e = &v->d.extents[i];
	struct vmdk_part *p = &v->parts[i];

	/* What a resize that was interrupted left too long does not matter; too short is what has no tables. */
	if (h->capacity_bytes < e->bytes)
		return error_set(err, IMG_E_CORRUPT, 0, offsetof(struct disk_vmdk_header, capacity), LAYER,
				 "%s: the extent holds 0x%" PRIx64 " bytes, but the descriptor says 0x%" PRIx64,
				 p->file->path, h->capacity_bytes, e->bytes);
	v->grain_bytes = v->grain_bytes ? v->grain_bytes : (uint32_t)h->grain_bytes;
	if (h->flags & VMDK_COMPRESSED) {
		if (args->writable && !args->for_check)
			return only_read(p, "a streamOptimized extent", err);
		return vmdk_stream_open(v->node, p->file, h, args->budget, &p->stream, err);
	}
	if (h->gd_off == VMDK_AT_END)
		return error_set(err, IMG_E_CORRUPT, 0, offsetof(struct disk_vmdk_header, gd_off), LAYER,
				 "%s: the extent has no grain directory", p->file->path);
	return vmdk_sparse_open(v->node, p->file, h, disk_off, args, &p->sparse, err);
}

static int open_part(struct vmdk_state *v, size_t i, uint64_t disk_off, const struct driver_open *args,
		     struct img_error *err)
{
	const struct vmdk_extent *e = &v->d.extents[i];
	struct vmdk_part *p = &v->parts[i];
	struct driver_open how = *args;
	struct vmdk_header h;
	int ret = open_file(v, i, args, err);

	if (ret != 0 || p->absent)
		return ret;
	how.writable = args->writable && e->access == VMDK_RW;
	switch (e->kind) {
	case VMDK_FLAT:
	case VMDK_VMFS:
		if (range_inside(e->file_off, e->bytes, node_size(p->file)) || args->for_check)
			return 0;
		return error_set(err, IMG_E_CORRUPT, 0, node_size(p->file), LAYER,
				 "%s: the file ends at 0x%" PRIx64 ", but its extent at 0x%" PRIx64, p->file->path,
				 node_size(p->file), e->file_off + e->bytes);
	case VMDK_SPARSE:
		ret = vmdk_header_load(p->file, 0, &h, err);
		return ret == 0 ? open_sparse(v, i, &h, disk_off, &how, err) : ret;
	case VMDK_VMFSSPARSE:
		if (how.writable && !how.for_check)
			return only_read(p, "an extent of type VMFSSPARSE", err);
		return vmdk_cowd_open(v->node, p->file, e->bytes, disk_off, &how, &p->esx, err);
	case VMDK_SESPARSE:
		if (how.writable && !how.for_check)
			return only_read(p, "an extent of type SESPARSE", err);
		return vmdk_sesparse_open(v->node, p->file, e->bytes, disk_off, &how, &p->esx, err);
	case VMDK_ZERO:
	case VMDK_DEVICE:
	case VMDK_EXTENT_KINDS:
	default: return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "an extent of an unknown kind");
	}
}

static bool has_file(const struct vmdk_extent *e)
{
	return e->kind != VMDK_ZERO && e->access != VMDK_NOACCESS && e->bytes > 0;
}

/* Each engine has its part of the memory for tables. */
static struct driver_open shared_args(const struct vmdk_state *v, const struct driver_open *args)
{
	struct driver_open how = *args;

	if (v->d.nr_extents > 1)
		how.cache_bytes =
			max_u64((args->cache_bytes ? args->cache_bytes : 16u << 20) / v->d.nr_extents, PART_CACHE_MIN);
	return how;
}

static int open_parts(struct vmdk_state *v, const struct driver_open *args, const struct vmdk_header *h,
		      struct img_error *err)
{
	struct driver_open how = shared_args(v, args);
	uint64_t disk_off = 0;
	int ret = 0;

	v->parts = calloc(v->d.nr_extents, sizeof(*v->parts));
	if (!v->parts)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	v->nr_parts = v->d.nr_extents;
	for (size_t i = 0; i < v->nr_parts && ret == 0; i++) {
		const struct vmdk_extent *e = &v->d.extents[i];

		if (e->kind == VMDK_DEVICE)
			ret = error_set(err, IMG_E_REFUSED, 0, e->line_off, LAYER,
					"%s: an extent stands for a device of the host, which no image may name",
					v->node->path);
		else if (v->single) {
			v->parts[i].file = v->node->file;
			how.writable = args->writable && e->access == VMDK_RW;
			ret = open_sparse(v, i, h, 0, &how, err);
		} else if (has_file(e)) {
			ret = open_part(v, i, disk_off, &how, err);
		}
		disk_off += e->bytes;
	}
	return ret;
}

/* ---- what shares a file ------------------------------------------------------------------------------------------ */

struct stretch {
	const struct node *file;
	const struct vmdk_extent *extent;
};

static int by_place(const void *a, const void *b)
{
	const struct stretch *x = a, *y = b;

	if (x->file != y->file)
		return (uintptr_t)x->file < (uintptr_t)y->file ? -1 : 1;
	if (x->extent->file_off != y->extent->file_off)
		return x->extent->file_off < y->extent->file_off ? -1 : 1;
	return 0;
}

/* What is written to one extent must not be another's. */
static int judge_shared(const struct vmdk_state *v, struct img_error *err)
{
	struct stretch *all = calloc(v->d.nr_extents + 1, sizeof(*all));
	size_t nr = 0;
	int ret = 0;

	if (!all)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < v->d.nr_extents; i++)
		if (v->parts[i].file)
			all[nr++] = (struct stretch){ v->parts[i].file, &v->d.extents[i] };
	qsort(all, nr, sizeof(*all), by_place);
	for (size_t i = 1; i < nr && ret == 0; i++) {
		const struct vmdk_extent *e = all[i].extent, *last = all[i - 1].extent;

		if (all[i].file == all[i - 1].file && e->file_off - last->file_off < last->bytes)
			ret = error_set(err, IMG_E_CORRUPT, 0, max_u64(e->line_off, last->line_off), LAYER,
					"two extents lie over each other in '%s'", e->name);
	}
	free(all);
	return ret;
}

/* ---- the span ---------------------------------------------------------------------------------------------------- */

static int stream_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return vmdk_stream_pread(ctx, buf, bytes, off, err);
}

static int stream_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			 struct img_error *err)
{
	return vmdk_stream_status(ctx, bytes, off, out, cap, nr, err);
}

static const struct span_ops span_stream = { .pread = stream_pread, .status = stream_status };

static struct span_segment segment_of(const struct vmdk_state *v, size_t i)
{
	const struct vmdk_extent *e = &v->d.extents[i];
	const struct vmdk_part *p = &v->parts[i];
	struct span_segment s = {
		.bytes = e->bytes,
		.readonly = e->access != VMDK_RW,
		.own_file = p->file == v->node->file,
	};

	if (e->access == VMDK_NOACCESS || (p->absent && !p->file)) {
		s.ops = &span_noaccess;
	} else if (p->sparse) {
		s.ops = &span_blocks;
		s.ctx = p->sparse->bm;
	} else if (p->esx) {
		s.ops = &span_blocks;
		s.ctx = vmdk_esx_blocks(p->esx);
	} else if (p->stream) {
		s.ops = &span_stream;
		s.ctx = p->stream;
	} else if (p->file) {
		s.ops = &span_file;
		s.ctx = p->file;
		s.inner_off = p->absent ? 0 : e->file_off;
	} else {
		s.ops = &span_zeros;
	}
	return s;
}

static int make_span(struct vmdk_state *v, struct img_error *err)
{
	struct span_segment *s = calloc(v->d.nr_extents, sizeof(*s));
	int ret;

	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < v->d.nr_extents; i++)
		s[i] = segment_of(v, i);
	ret = span_new(s, v->d.nr_extents, &v->span, err);
	free(s);
	return ret;
}

/* Raw extents have no way to say that something is the parent's. */
static int judge_parent(const struct vmdk_state *v, struct img_error *err)
{
	if (v->d.parent_cid == VMDK_NO_PARENT_CID)
		return 0;
	for (size_t i = 0; i < v->d.nr_extents; i++)
		if (v->d.extents[i].kind == VMDK_FLAT || v->d.extents[i].kind == VMDK_VMFS || v->parts[i].stream)
			return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
					 "%s: names a parent, but its extents hold the whole disk", v->node->path);
	return 0;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int close_parts(struct vmdk_state *v, struct img_error *err)
{
	int first = 0;

	for (size_t i = 0; i < v->nr_parts; i++) {
		struct vmdk_part *p = &v->parts[i];
		int ret = p->sparse ? vmdk_sparse_close(p->sparse, v->check_only, first == 0 ? err : NULL) : 0;

		if (first == 0)
			first = ret;
		vmdk_esx_close(p->esx);
		vmdk_stream_free(p->stream);
	}
	free(v->parts);
	v->parts = NULL;
	v->nr_parts = 0;
	return first;
}

static void end(struct vmdk_state *v)
{
	span_free(v->span);
	v->span = NULL;
	vmdk_descriptor_free(&v->d);
	pthread_mutex_destroy(&v->lock);
	pthread_mutex_destroy(&v->size_lock);
}

int vmdk_open(struct node *n, const struct driver_open *args, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	struct vmdk_header h = { .version = 0 }; /* of a single file */
	int ret;

	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: a VMDK has no snapshots inside, so there is no '%s'", n->path, args->snapshot);
	v->node = n;
	v->writable = args->writable;
	v->bulk = args->bulk;
	v->check_only = args->for_check;
	v->absent = args->data_absent;
	pthread_mutex_init(&v->size_lock, NULL);
	pthread_mutex_init(&v->lock, NULL);
	ret = load_descriptor(v, args, &h, err);
	if (ret == 0)
		ret = open_parts(v, args, &h, err);
	free(v->openers);
	v->openers = NULL;
	if (ret == 0)
		ret = judge_shared(v, err);
	if (ret == 0)
		ret = make_span(v, err);
	if (ret == 0)
		ret = judge_parent(v, err);
	if (ret != 0) {
		v->check_only = true; /* nothing was changed */
		close_parts(v, NULL);
		end(v);
	}
	return ret;
}

int vmdk_close(struct node *n, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	int ret = 0, closed;

	if (v->writable && !v->check_only)
		ret = span_flush(v->span, err);
	closed = close_parts(v, ret == 0 ? err : NULL);
	if (v->writable && v->bulk) {
		/* The descriptor was not made durable on its way. */
		int flushed = node_flush(n->file, 0, ret == 0 && closed == 0 ? err : NULL);

		closed = closed ? closed : flushed;
	}
	end(v);
	return ret ? ret : closed;
}
