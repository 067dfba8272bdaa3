/* SPDX-License-Identifier: MIT */
/*
 *   differential-verdict [FORMAT]
 *
 * What the library says of images (of qcow2), one after the other in one process, for differential.py and plain.py. Each line of the input
 * names an image and a file with the first bytes of its disk as another program read them ("-": it could not), with a
 * tab between. The answer is one line of fields with tabs between:
 *
 *   CHECK DAMAGE LEAKS LOWEST RULES READ WHERE MESSAGE
 *
 * CHECK and READ are 0 or the code of the failure; LOWEST is where the first leak begins in the file; RULES the rules
 * that were broken, with D, L or N for the kind; WHERE "same", "open" (could not be opened), "read" (a part could not
 * be read, at the offset that follows), "differs" with the offset, or "shorter"; MESSAGE the first failure's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libimg.h"

#define PIECE_BYTES    65536u /* as much is read at once */
#define MAX_READ_BYTES (UINT64_C(16) << 20)
#define MAX_RULES      32

struct rules {
	char text[MAX_RULES][24];
	size_t nr;
	uint64_t lowest_leak;
};

static void add_rule(void *ctx, const struct img_finding *finding)
{
	struct rules *rules = ctx;
	char text[24];

	snprintf(text, sizeof(text), "%c:%s",
		 finding->kind == IMG_FINDING_DAMAGE ? 'D' :
		 finding->kind == IMG_FINDING_LEAK   ? 'L' :
						       'N',
		 finding->rule);
	if (finding->kind == IMG_FINDING_LEAK && finding->file_off < rules->lowest_leak)
		rules->lowest_leak = finding->file_off;
	for (size_t i = 0; i < rules->nr; i++)
		if (strcmp(rules->text[i], text) == 0)
			return;
	if (rules->nr < MAX_RULES)
		memcpy(rules->text[rules->nr++], text, sizeof(text));
}

static void tell_check(const char *path, const char *format, struct img_error *err)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = format, .flags = IMG_OPEN_NO_BACKING };
	struct img_check_result result = { 0 };
	struct rules rules = { .nr = 0, .lowest_leak = UINT64_MAX };
	int ret = img_check_file(path, &opts, 0, add_rule, &rules, NULL, &result, err);

	printf("%d\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t", ret, result.damage, result.leaks, rules.lowest_leak);
	for (size_t i = 0; i < rules.nr; i++)
		printf("%s%s", i ? "," : "", rules.text[i]);
}

/* Returns 0, or the code of the first piece that cannot be read; *what says where both disks differ. */
static int compare(struct img *img, FILE *other, char *what, size_t what_bytes, struct img_error *err)
{
	static uint8_t mine[PIECE_BYTES], theirs[PIECE_BYTES];
	uint64_t size = img_size(img) < MAX_READ_BYTES ? img_size(img) : MAX_READ_BYTES;

	snprintf(what, what_bytes, "same");
	for (uint64_t off = 0, bytes; off < size; off += bytes) {
		size_t got;
		int ret;

		bytes = size - off < PIECE_BYTES ? size - off : PIECE_BYTES;
		ret = img_pread(img, mine, bytes, off, 0, err);
		if (ret != 0) {
			snprintf(what, what_bytes, "read %" PRIu64, off);
			return ret;
		}
		if (!other)
			continue;
		got = fread(theirs, 1, (size_t)bytes, other);
		if (got != bytes) {
			snprintf(what, what_bytes, "shorter %" PRIu64, off + got);
			return 0;
		}
		if (memcmp(mine, theirs, (size_t)bytes) != 0) {
			snprintf(what, what_bytes, "differs %" PRIu64, off);
			return 0;
		}
	}
	if (other && fgetc(other) != EOF)
		snprintf(what, what_bytes, "longer %" PRIu64, size);
	return 0;
}

static void tell_content(const char *path, const char *format, const char *other_path, struct img_error *err)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = format };
	FILE *other = strcmp(other_path, "-") != 0 ? fopen(other_path, "rb") : NULL;
	char what[64] = "open";
	struct img *img;
	int ret = img_open(path, &opts, &img, err);

	if (ret == 0) {
		ret = compare(img, other, what, sizeof(what), err);
		img_close(img, NULL);
	}
	printf("\t%d\t%s", ret, what);
	if (other)
		fclose(other);
}

int main(int argc, char **argv)
{
	const char *format = argc > 1 ? argv[1] : "qcow2";
	char line[8192];

	while (fgets(line, sizeof(line), stdin)) {
		struct img_error check = { 0 }, content = { 0 };
		char *other = strchr(line, '\t');

		line[strcspn(line, "\n")] = 0;
		if (!other)
			return 2;
		*other++ = 0;
		tell_check(line, format, &check);
		tell_content(line, format, other, &content);
		printf("\t%s | %s\n", check.msg, content.msg);
		if (fflush(stdout) != 0)
			return 1;
	}
	return 0;
}
