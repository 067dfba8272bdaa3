/* SPDX-License-Identifier: MIT */
/* See session.h. */
#include "session.h"

#include <string.h>

#include "error.h"

const struct img_budget fuzz_budget = {
	.struct_size = sizeof(struct img_budget),
	.metadata_bytes = 4u << 20,
	.references = 8,
	.snapshots = 64,
	.check_seconds = 2, /* of the clock in fixed.h: 2000 looks at it */
};

static int open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
		     const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	struct fuzz_host *host = ctx;

	if (child_path)
		host->references++;
	if (child_path && refs == IMG_REFS_NONE)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, "fuzz", "%s: no references here", name);
	return host->fs.env.open_file(&host->fs, child_path, name, refs, args, out, resolved, err);
}

static int create_file(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	struct fuzz_host *host = ctx;

	return host->fs.env.create_file(&host->fs, path, out, temp_path, err);
}

static int publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	struct fuzz_host *host = ctx;

	return host->fs.env.publish(&host->fs, temp_path, path, flags, err);
}

static void discard_temp(void *ctx, const char *temp_path)
{
	struct fuzz_host *host = ctx;

	host->fs.env.discard_temp(&host->fs, temp_path);
}

void fuzz_host_init(struct fuzz_host *host)
{
	memset(host, 0, sizeof(*host));
	memfs_init(&host->fs);
	host->env = (struct image_env){ .open_file = open_file,
					.create_file = create_file,
					.publish = publish,
					.discard_temp = discard_temp,
					.ctx = host };
}

void fuzz_host_destroy(struct fuzz_host *host)
{
	memfs_destroy(&host->fs);
}

int fuzz_expect(int ret, const struct img_error *err)
{
	FUZZ_CHECK(ret <= 0 && ret >= IMG_E_CANCELLED);
	FUZZ_CHECK(img_strerror(ret)[0] != '\0');
	if (ret == 0)
		return 0;
	FUZZ_CHECK(err->code == ret);
	FUZZ_CHECK(memchr(err->msg, '\0', sizeof(err->msg)) && memchr(err->layer, '\0', sizeof(err->layer)));
	FUZZ_CHECK(err->msg[0] != '\0' && !strpbrk(err->msg, "\r\n"));
	return ret;
}

static void prepare(struct img_open_options *o, const char *format, unsigned flags)
{
	*o = (struct img_open_options){ .struct_size = sizeof(*o),
					.format = format,
					.flags = flags,
					.refs = IMG_REFS_ANY,
					.max_depth = 4,
					.cache_bytes = 128 << 10,
					.budget = &fuzz_budget };
}

int fuzz_open(struct fuzz_host *host, const char *format, const char *snapshot, unsigned flags, enum img_refs refs,
	      struct img **out)
{
	struct img_open_options o;
	struct img_error err = { .code = IMG_OK };
	int ret;

	prepare(&o, format, flags);
	o.snapshot = snapshot;
	o.refs = refs;
	*out = NULL;
	ret = fuzz_expect(image_open_env(FUZZ_IMAGE, &o, &host->env, out, &err), &err);
	FUZZ_CHECK((ret == 0) == (*out != NULL));
	return ret;
}

int fuzz_open_for_check(struct fuzz_host *host, const char *format, unsigned flags, struct img **out)
{
	struct img_open_options o;
	struct img_error err = { .code = IMG_OK };

	prepare(&o, format, flags);
	*out = NULL;
	return fuzz_expect(image_open_for_check(FUZZ_IMAGE, &o, &host->env, out, &err), &err);
}
