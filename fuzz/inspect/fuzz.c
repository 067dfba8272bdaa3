/* SPDX-License-Identifier: MIT */
/*
 * A file from a stranger under inspection: our formats, those that are only recognised, and anything else.
 *
 * Beyond crashes: the same verdict twice, told finding by finding; nothing but the file is opened, and it keeps its
 * bytes; what is called safe opens no other file either, and can be read under the same limits.
 */
#include "mutate.h"
#include "session.h"

#include <string.h>
#include <xxhash.h>

#include "fixed.h"

#define ALL_FORMATS NULL

enum {
	OPTION_AS_SHIFT = 0, /* which format it is to be used as; three bits, 0: as what it looks like */
	OPTION_ALLOWED = 1u << 3,
	OPTION_BUDGET = 1u << 4,
	OPTION_FORCE_SHARE = 1u << 5,
	OPTION_SMALL = 1u << 6,
};

struct verdict {
	struct img_inspect_result result;
	uint64_t digest;
	uint64_t nr[IMG_SEVERITY_UNPARSEABLE + 1];
	int ret;
};

static bool is_rule(const char *id)
{
	const struct img_inspect_rule *rule;

	for (size_t i = 0; (rule = img_inspect_rule(i)) != NULL; i++)
		if (rule->id == id)
			return true;
	return false;
}

static void take(void *ctx, const struct img_inspect_finding *f)
{
	struct verdict *v = ctx;

	FUZZ_CHECK(f->severity >= IMG_SEVERITY_NOTE && f->severity <= IMG_SEVERITY_UNPARSEABLE && is_rule(f->id));
	FUZZ_CHECK(f->msg[0] != '\0' && memchr(f->msg, '\0', sizeof(f->msg)));
	v->nr[f->severity]++;
	v->digest = XXH3_64bits_withSeed(f->msg, strlen(f->msg), v->digest + f->file_off);
}

static void inspect(struct fuzz_host *host, unsigned options, struct verdict *v)
{
	static const char *const formats[] = { NULL, "raw", "limg", "qcow2", "vmdk", "vhdx", "vhd", "luks" };
	static const char *const allowed[] = { "raw", "qcow2", NULL };
	struct img_inspect_options o = { .struct_size = sizeof(o),
					 .format = formats[options >> OPTION_AS_SHIFT & 7],
					 .formats = options & OPTION_ALLOWED ? allowed : NULL,
					 .budget = options & OPTION_BUDGET ? &fuzz_budget : NULL,
					 .max_virtual_bytes = options & OPTION_SMALL ? 1u << 20 : 0,
					 .flags = options & OPTION_FORCE_SHARE ? IMG_OPEN_FORCE_SHARE : 0u };
	struct img_error err = { .code = IMG_OK };
	uint64_t before[2], after[2];

	memset(v, 0, sizeof(*v));
	fixed_reset();
	host->references = 0;
	mem_content_hash(memfs_find(&host->fs, FUZZ_IMAGE), before);
	v->ret = fuzz_expect(image_inspect_env(FUZZ_IMAGE, &o, take, v, &v->result, &host->env, &err), &err);
	mem_content_hash(memfs_find(&host->fs, FUZZ_IMAGE), after);
	FUZZ_CHECK(memcmp(before, after, sizeof(before)) == 0 && host->references == 0);
	/* the file is there and can be read: whatever is in it is no error */
	FUZZ_CHECK(v->ret == 0);
	FUZZ_CHECK(v->nr[IMG_SEVERITY_NOTE] == v->result.notes && v->nr[IMG_SEVERITY_UNSAFE] == v->result.unsafe &&
		   v->nr[IMG_SEVERITY_UNPARSEABLE] == v->result.unparseable);
	FUZZ_CHECK(memchr(v->result.format, '\0', sizeof(v->result.format)));
	FUZZ_CHECK(v->result.file_bytes == mem_content_size(memfs_find(&host->fs, FUZZ_IMAGE)));
}

static void use(struct fuzz_host *host, const struct verdict *v)
{
	struct fuzz_look look;

	fixed_reset();
	fuzz_look(host, v->result.format, NULL, FUZZ_LOOK_METADATA, &look);
	FUZZ_CHECK(host->references == 0);
	FUZZ_CHECK(!look.opened || !look.checked || look.check.damage == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct verdict first, second;
	struct fuzz_host host;
	struct fuzz_case c;

	fuzz_case_parse(&c, data, bytes);
	fuzz_host_init(&host);
	fuzz_case_put(&c, fuzz_template_get(ALL_FORMATS, c.number), &host.fs);
	inspect(&host, c.options, &first);
	inspect(&host, c.options, &second);
	FUZZ_CHECK(first.digest == second.digest && memcmp(&first.result, &second.result, sizeof(first.result)) == 0);
	if (first.result.unsafe == 0 && first.result.unparseable == 0 && fuzz_format_find(first.result.format))
		use(&host, &first);
	fuzz_host_destroy(&host);
	return 0;
}

FUZZ_IMAGE_MUTATOR(ALL_FORMATS)
