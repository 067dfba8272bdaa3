/* SPDX-License-Identifier: MIT */
/*
 * Repairs that a power failure interrupts. Each file is a damaged image that reads well; its repair is recorded, and in
 * every state in which a crash could leave the disk it must still read as before, and another repair must end with an
 * image in which a check finds nothing.
 *
 * crash_repair FILE...
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "states.h"

#define NAME	  "image.qcow2"
#define MAX_BYTES (64u << 20)

struct job {
	const char *path;
	uint8_t *content; /* of the disk */
	uint64_t bytes;
	uint64_t states, failures;
};

static void complain(struct job *j, const char *what, const char *why, uint64_t state)
{
	printf("%s: state %" PRIu64 ": %s: %s\n", j->path, state, what, why);
	j->failures++;
}

static int load(struct memhost *host, const char *path, struct img_error *err)
{
	uint8_t *data = malloc(MAX_BYTES);
	FILE *f = fopen(path, "rb");
	size_t bytes = f && data ? fread(data, 1, MAX_BYTES, f) : 0;
	struct node *node = NULL;
	char *temp = NULL;
	int ret = bytes > 0 && bytes < MAX_BYTES ? 0 : error_set(err, IMG_E_IO, 0, NO_OFFSET, "test", "cannot be read");

	if (ret == 0)
		ret = host->env.create_file(host->env.ctx, NAME, &node, &temp, err);
	if (ret == 0)
		ret = node_pwrite(node, data, bytes, 0, 0, err);
	if (node && node_close(node, ret == 0 ? err : NULL) != 0)
		ret = IMG_E_IO;
	if (ret == 0)
		ret = host->env.publish(host->env.ctx, temp, NAME, IMG_CREATE_OVERWRITE, err);
	free(temp);
	free(data);
	if (f)
		fclose(f);
	return ret;
}

/* What the guest reads, malloc'ed. */
static int read_disk(struct memhost *host, uint8_t **out, uint64_t *bytes, struct img_error *err)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = "qcow2" };
	struct img *img;
	int ret = image_open_env(NAME, &o, &host->env, &img, err);

	*out = NULL;
	if (ret != 0)
		return ret;
	*bytes = img_size(img);
	*out = malloc(*bytes + 1);
	ret = *out ? img_pread(img, *out, *bytes, 0, 0, err) : IMG_E_NOMEM;
	img_close(img, NULL);
	return ret;
}

static int check(struct memhost *host, bool repair, struct img_check_result *out, struct img_error *err)
{
	struct img_open_options o = { .struct_size = sizeof(o),
				      .format = "qcow2",
				      .flags = repair ? IMG_OPEN_WRITE : 0 };
	struct img *img;
	int ret = image_open_for_check(NAME, &o, &host->env, &img, err);

	if (ret != 0)
		return ret;
	ret = node_check(img->top, repair ? IMG_CHECK_REPAIR : 0, NULL, NULL, NULL, out, err);
	return img_close(img, ret == 0 ? err : NULL) != 0 && ret == 0 ? IMG_E_IO : ret;
}

static void same_content(struct job *j, struct memhost *disk, uint64_t state, const char *when)
{
	struct img_error err = { .code = IMG_OK };
	uint64_t bytes = 0;
	uint8_t *now = NULL;

	if (read_disk(disk, &now, &bytes, &err) != 0)
		complain(j, when, err.msg, state);
	else if (bytes != j->bytes || memcmp(now, j->content, bytes) != 0)
		complain(j, when, "the content is another one", state);
	free(now);
}

static int judge(void *ctx, uint64_t number, struct memhost *disk)
{
	struct job *j = ctx;
	struct img_check_result result = { 0 };
	struct img_error err = { .code = IMG_OK };

	j->states++;
	same_content(j, disk, number, "after the crash");
	if (check(disk, true, &result, &err) != 0)
		complain(j, "the second repair", err.msg, number);
	else if (check(disk, false, &result, &err) != 0)
		complain(j, "the check", err.msg, number);
	else if (result.damage + result.leaks > 0)
		complain(j, "the check", "damage or leaks after the second repair", number);
	same_content(j, disk, number, "after the second repair");
	return j->failures != 0;
}

static void judge_states(struct job *j, struct walker *w)
{
	size_t nr = crash_log_nr(w->log);

	for (size_t i = 0; i < nr && j->failures == 0; i++) {
		if (crash_log_at(w->log, i)->kind != CRASH_FLUSH)
			continue;
		walker_advance(w, i);
		walker_states(w, STATES_THOROUGH, false, judge, j);
	}
	if (j->failures == 0) {
		walker_advance(w, nr);
		walker_states(w, STATES_THOROUGH, false, judge, j);
	}
}

static void run(struct job *j)
{
	struct img_check_result result = { 0 };
	struct img_error err = { .code = IMG_OK };
	struct memhost host, start;
	struct walker w;

	memhost_init(&host);
	if (load(&host, j->path, &err) != 0 || read_disk(&host, &j->content, &j->bytes, &err) != 0) {
		complain(j, "before", err.msg, 0);
		memhost_destroy(&host);
		return;
	}
	memhost_clone(&start, &host);
	host.log = crash_log_new();
	if (!host.log)
		abort();
	walker_init(&w, &start, host.log, &host);
	if (check(&host, true, &result, &err) != 0)
		complain(j, "the repair", err.msg, 0);
	else if (result.damage + result.leaks > result.repaired)
		complain(j, "the repair", "not everything was repaired", 0);
	judge_states(j, &w);
	walker_destroy(&w);
	crash_log_free(host.log);
	host.log = NULL;
	memhost_destroy(&start);
	memhost_destroy(&host);
}

int main(int argc, char **argv)
{
	uint64_t states = 0, failures = 0;

	for (int i = 1; i < argc; i++) {
		struct job j = { .path = argv[i] };

		run(&j);
		states += j.states;
		failures += j.failures;
		free(j.content);
	}
	printf("%d images, %" PRIu64 " states, %" PRIu64 " failures\n", argc - 1, states, failures);
	return failures || argc < 2 ? 1 : 0;
}
