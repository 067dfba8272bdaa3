/* SPDX-License-Identifier: MIT */
/* imgtool checksum: a digest of what the guest sees. */
#include <dlfcn.h>
#include <openssl/opensslv.h>

#include "open.h"
#include "output.h"
#include "progress.h"
#include "verbs.h"

#define TEXT_OF(x) #x
#define TEXT(x)	   TEXT_OF(x)

struct checksum_args {
	struct common_args common;
	const char *algo;
};

static const struct cli_option options[] = {
	{ "algo", 'a', OPTION_CHOICE, "sha256|xxh128", "the digest; default: sha256",
	  offsetof(struct checksum_args, algo) },
};

static int print(const struct checksum_args *args, const struct target *target, const char *name, const char *digest,
		 uint64_t size_bytes)
{
	if (args->common.json)
		return output_json(json_pack("{s:o, s:o, s:s, s:s, s:o}", "filename", output_json_text(target->path),
					     "snapshot", output_json_text(target->snapshot), "algorithm", name,
					     "digest", digest, "virtual_size", output_json_size(size_bytes)));
	printf("%s  ", digest);
	output_escaped(stdout, target->path);
	if (target->snapshot) {
		putchar('@');
		output_escaped(stdout, target->snapshot);
	}
	putchar('\n');
	return EXIT_DONE;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct checksum_args *args = verb_args;
	bool xxh = cli_is(args->algo, "xxh128");
	struct img_error err = { .code = IMG_OK };
	struct img_progress callback;
	struct progress progress;
	char hex[HEX_TEXT_BYTES];
	uint8_t digest[32];
	size_t bytes;
	struct opened o;
	int status;

	(void)nr_operands;
	/* The library asks for it later, when no file can be opened: from then on it is there. Without: its error says
	 * so. */
	if (!xxh)
		(void)dlopen("libcrypto.so." TEXT(OPENSSL_SHLIB_VERSION), RTLD_NOW | RTLD_LOCAL);
	status = opened_begin(&o, verb, &args->common, operands[0], 0);
	if (status != EXIT_DONE)
		return status;
	callback = progress_begin(&progress, verb, &args->common);
	if (img_checksum(o.img, xxh ? IMG_DIGEST_XXH128 : IMG_DIGEST_SHA256, &callback, digest, &bytes, &err) != 0) {
		progress_end(&progress, false);
		status = cli_fail(o.target.path, &err);
	} else {
		progress_end(&progress, true);
		status = print(args, &o.target, xxh ? "xxh128" : "sha256", output_hex(digest, bytes, hex),
			       img_size(o.img));
	}
	return opened_end(&o, status);
}

const struct cli_verb verb_checksum = {
	.name = "checksum",
	.operands = "FILE[@SNAP]",
	.summary = "Prints a digest of what the guest sees, whatever the format",
	.details = "sha256 equals sha256sum of the raw image. xxh128 is for equality, not for safety: it is computed "
		   "in parallel, and holes cost next to nothing.",
	.example = PROGRAM " checksum debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_SNAPSHOT | WITH_JSON | WITH_PROGRESS,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct checksum_args),
	.run = run,
};
