/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing. Whoever opens looks at the image as its log leaves it, in memory. A writer whose image passes
 * all checks then replays the log on disk, puts copies of headers and region tables right that are not the same, and
 * learns where the last block ends: the whole table is read for that. Entries that lead out of the file are a reason
 * to stop, because new blocks would go where they lead.
 *
 * Nothing else changes until there is something to change: the first time the header gets a new file write GUID, and
 * before data changes a new data write GUID, by which children know their parent (VHDX-7).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

static int judge_expansion(const struct vhdx_state *s, const struct budget *budget, struct img_error *err)
{
	struct node *file = s->node->file;
	struct vhdx_census census;
	int ret;

	if (budget_expansion_fits(budget, s->m.disk_bytes, node_size(file)))
		return 0;
	ret = vhdx_bat_census(file, &s->m, &census, err);
	return ret ? ret : budget_expansion(budget, s->node->path, census.mapped, node_size(file), err);
}

static int load(struct vhdx_state *s, const struct driver_open *args, struct img_error *err)
{
	struct node *node = s->node;
	int ret = vhdx_header_load(node->file, &s->h, err);

	/* The layer is part of the file from here on, and closed with it. */
	if (ret == 0)
		ret = vhdx_log_open(node->file, &s->h, args->budget, &node->file, err);
	if (ret == 0)
		ret = vhdx_meta_load(node->file, &s->m, err);
	if (ret == 0 && s->m.has_parent)
		ret = vhdx_locator_load(node->file, &s->m.locator, &s->parent, err);
	if (ret == 0 && s->m.has_parent && s->parent.name[0][0] == '\0')
		ret = error_set(err, IMG_E_CORRUPT, 0, s->m.locator.off, LAYER, "the parent locator names no file");
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(s, args->budget, err);
	return ret;
}

/* ---- for a writer ------------------------------------------------------------------------------------------------ */

static uint64_t range_end(const struct vhdx_range *r)
{
	return r->off + r->bytes;
}

uint64_t vhdx_structures_end(const struct vhdx_state *s)
{
	uint64_t end = max_u64(range_end(&s->m.bat), range_end(&s->m.metadata));

	return vhdx_log_is_sane(&s->h, node_size(s->node->file)) ? max_u64(end, range_end(&s->h.log)) : end;
}

int vhdx_content_end(struct vhdx_state *s, uint64_t *end, struct img_error *err)
{
	struct vhdx_census census;
	int ret = vhdx_bat_census(s->node->file, &s->m, &census, err);

	if (ret == 0 && census.bad > 0)
		return error_set(err, IMG_E_CORRUPT, 0, s->m.bat.off + census.first_bad * 8, LAYER,
				 "%" PRIu64 " entries of the table lead nowhere, the first one at 0x%" PRIx64
				 ": run imgtool check --repair",
				 census.bad, s->m.bat.off + census.first_bad * 8);
	*end = max_u64(census.end, vhdx_structures_end(s));
	return ret;
}

static bool overlap(const struct vhdx_range *a, const struct vhdx_range *b)
{
	return a->off < b->off + b->bytes && b->off < a->off + a->bytes;
}

/* VHDX-9, for what is written. */
static int judge_structures(const struct vhdx_state *s, struct img_error *err)
{
	const struct vhdx_range *log = &s->h.log;

	if (!vhdx_log_is_sane(&s->h, node_size(s->node->file)))
		return error_set(err, IMG_E_CORRUPT, 0, VHDX_HEADER_A, LAYER,
				 "there is no room for a log, so that the image can only be read");
	if (overlap(log, &s->m.bat) || overlap(log, &s->m.metadata))
		return error_set(err, IMG_E_CORRUPT, 0, log->off, LAYER,
				 "the log lies over other structures, so that the image can only be read");
	/* A session that could not write its last header would end in an error with all its work done. */
	if (s->h.sequence > UINT64_MAX - VHDX_SESSION_HEADERS)
		return error_set(
			err, IMG_E_LIMIT, 0, VHDX_HEADER_A, LAYER,
			"the header cannot be changed often enough any more, so that the image can only be read: "
			"convert it");
	return 0;
}

/* A file without holes stays one: Windows mounts no sparse file, and who copied it there without holes meant it. */
static int learn_file(struct vhdx_state *s, struct img_error *err)
{
	struct host_stat host;
	int ret = node_stat(s->node->file, &host, err);

	if (ret == 0)
		s->solid = !host.is_block_device && host.allocated_bytes >= host.file_bytes;
	return ret;
}

static int prepare_writer(struct vhdx_state *s, uint64_t *end, struct img_error *err)
{
	bool done;
	int ret = judge_structures(s, err);

	if (ret == 0)
		ret = vhdx_content_end(s, end, err);
	/* It is an image that can be written, as far as can be seen. */
	if (ret == 0 && s->h.needs_replay)
		ret = vhdx_log_replay(&s->node->file, &s->h, err);
	if (ret == 0)
		ret = vhdx_regions_repair(s->node->file, true, &done, err);
	if (ret == 0)
		ret = learn_file(s, err);
	return ret;
}

/* A repair: what is wrong with entries is no reason to stop, and the log is replayed before anything is judged. */
static int prepare_repair(struct vhdx_state *s, uint64_t *end, struct img_error *err)
{
	int ret = judge_structures(s, err);

	*end = round_up(node_size(s->node->file), VHDX_MIB);
	if (ret == 0 && s->h.needs_replay)
		ret = vhdx_log_replay(&s->node->file, &s->h, err);
	return ret;
}

int vhdx_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(node);
	struct blockmap_shape shape;
	uint64_t end = 0;
	int ret;

	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: a VHDX has no snapshots, so there is no '%s'", node->path, args->snapshot);
	s->node = node;
	s->writable = args->writable;
	s->check_only = args->for_check;
	s->bulk = args->bulk;
	ret = load(s, args, err);
	if (ret == 0 && args->writable)
		ret = args->for_check ? prepare_repair(s, &end, err) : prepare_writer(s, &end, err);
	if (ret != 0)
		return ret;
	s->log.ring = s->h.log;
	s->log.end = end;
	s->log.durable_bytes = node_size(node->file);
	shape = vhdx_bat_shape(&s->m);
	shape.end_off = end;
	ret = blockmap_open(node, &shape, &vhdx_bat_ops, s, args, &s->bm, err);
	if (ret == 0)
		pthread_mutex_init(&s->header_lock, NULL);
	return ret;
}

/* What failed writes left behind everything else goes; it is no fault if it cannot. */
static int close_writer(struct vhdx_state *s, struct img_error *err)
{
	int ret = blockmap_finish(s->bm, err);

	if (ret != 0)
		return ret;
	if (blockmap_lost_places(s->bm))
		(void)vhdx_cut(s, NULL);
	/* Whether there was something to cut off or not. */
	return vhdx_journal_end(s, err);
}

int vhdx_close(struct node *node, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(node);
	int ret = s->writable ? close_writer(s, err) : 0;

	blockmap_free(s->bm);
	s->bm = NULL;
	pthread_mutex_destroy(&s->header_lock);
	return ret;
}

int vhdx_touch(struct vhdx_state *s, bool data, struct img_error *err)
{
	struct vhdx_header h;
	int ret = 0;

	pthread_mutex_lock(&s->header_lock);
	if (data || !s->touched) {
		h = s->h;
		if (!s->touched)
			ret = vhdx_guid_new(h.file_write, err);
		if (ret == 0 && data)
			ret = vhdx_guid_new(h.data_write, err);
		if (ret == 0)
			ret = vhdx_header_store(s->node->file, &h, !s->bulk, err);
		if (ret == 0) {
			s->h = h;
			s->touched = true;
		}
	}
	pthread_mutex_unlock(&s->header_lock);
	return ret;
}

/* ---- geometry ---------------------------------------------------------------------------------------------------- */

int vhdx_reshape(struct vhdx_state *s, uint64_t end, struct img_error *err)
{
	struct blockmap_shape shape = vhdx_bat_shape(&s->m);
	int ret;

	shape.end_off = end;
	ret = blockmap_reshape(s->bm, &shape, err);
	if (ret != 0)
		blockmap_break(s->bm);
	return ret;
}

int vhdx_cut(struct vhdx_state *s, struct img_error *err)
{
	uint64_t end;
	int ret = vhdx_content_end(s, &end, err);

	if (ret != 0 || end >= node_size(s->node->file))
		return ret;
	/* A log that counts says how long the file is at least. */
	ret = vhdx_journal_end(s, err);
	if (ret == 0)
		ret = node_resize(s->node->file, end, err);
	if (ret != 0)
		return ret;
	s->log.durable_bytes = end;
	s->log.end = end;
	return vhdx_reshape(s, end, err);
}
