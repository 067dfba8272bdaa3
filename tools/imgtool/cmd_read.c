/* SPDX-License-Identifier: MIT */
/* imgtool read and write: bytes of an image to stdout, and from stdin. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "open.h"
#include "output.h"
#include "signals.h"
#include "verbs.h"

#define PIECE_BYTES (UINT64_C(1) << 20)

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Bytes to the next multiple of PIECE_BYTES: pieces after the first are aligned. */
static uint64_t piece_at(uint64_t off)
{
	return PIECE_BYTES - off % PIECE_BYTES;
}

/* Not by stdio, which would cut large pieces into small ones. A signal ends it where it stands: signals_end_it(). */
static int write_stdout(const char *buf, uint64_t bytes)
{
	while (bytes > 0) {
		ssize_t n = write(STDOUT_FILENO, buf, (size_t)bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return cli_fail_errno("stdout", "write");
		buf += n;
		bytes -= (uint64_t)n;
	}
	return EXIT_DONE;
}

/* ---- read -------------------------------------------------------------------------------------------------------- */

struct read_args {
	struct common_args common;
	struct size_arg offset, length;
};

static const struct cli_option read_options[] = {
	{ "offset", 0, OPTION_SIZE, "N", "where to begin; default: 0", offsetof(struct read_args, offset) },
	{ "length", 0, OPTION_SIZE, "N", "how much; default: to the end", offsetof(struct read_args, length) },
};

static int read_pieces(const struct target *target, struct img *img, uint64_t off, uint64_t bytes)
{
	struct img_error err = { .code = IMG_OK };
	char *buf = malloc(PIECE_BYTES);
	int status = buf ? EXIT_DONE : cli_fail_errno(target->path, "buffer");

	while (bytes > 0 && status == EXIT_DONE) {
		uint64_t piece = min_u64(bytes, piece_at(off));

		if (img_pread(img, buf, piece, off, 0, &err) != 0)
			status = cli_fail(target->path, &err);
		else
			status = write_stdout(buf, piece);
		off += piece;
		bytes -= piece;
	}
	free(buf);
	return status;
}

static int read_range(const struct read_args *args, const struct target *target, struct img *img)
{
	uint64_t size = img_size(img), off = args->offset.value;

	if (off <= size && (!args->length.given || args->length.value <= size - off))
		return read_pieces(target, img, off, args->length.given ? args->length.value : size - off);
	cli_message(target->path, "the range goes past the end of the image (%" PRIu64 " bytes)", size);
	return EXIT_USAGE;
}

static int run_read(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct read_args *args = verb_args;
	struct opened o;
	int status;

	(void)nr_operands;
	signals_end_it();
	status = opened_begin(&o, verb, &args->common, operands[0], 0);
	return status == EXIT_DONE ? opened_end(&o, read_range(args, &o.target, o.img)) : status;
}

const struct cli_verb verb_read = {
	.name = "read",
	.operands = "FILE[@SNAP]",
	.summary = "Writes bytes of an image to stdout",
	.example = PROGRAM " read debian.limg@before --offset 1K --length 1K | hexdump -C",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_SNAPSHOT,
	.options = read_options,
	.nr_options = ARRAY_LEN(read_options),
	.args_bytes = sizeof(struct read_args),
	.run = run_read,
};

/* ---- write ------------------------------------------------------------------------------------------------------- */

struct write_args {
	struct common_args common;
	struct size_arg offset;
};

static const struct cli_option write_options[] = {
	{ "offset", 0, OPTION_SIZE, "N", "where to begin; default: 0", offsetof(struct write_args, offset) },
};

/* Reads until the buffer is full or the input ends. Returns an exit status. */
static int fill(char *buf, uint64_t bytes, uint64_t *got)
{
	for (*got = 0; *got < bytes;) {
		ssize_t n = read(STDIN_FILENO, buf + *got, (size_t)(bytes - *got));

		if (n < 0 && errno == EINTR && !signals_interrupted())
			continue;
		if (n < 0 && errno == EINTR)
			return EXIT_DONE; /* the caller looks */
		if (n < 0)
			return cli_fail_errno("stdin", "read");
		if (n == 0)
			return EXIT_DONE;
		*got += (uint64_t)n;
	}
	return EXIT_DONE;
}

static int past_end(const struct target *target, struct img *img)
{
	cli_message(target->path, "the input goes past the end of the image (%" PRIu64 " bytes): resize it first",
		    img_size(img));
	return EXIT_USAGE;
}

/* What is left of a regular file on stdin is known before anything is written. */
static bool fits(uint64_t off, uint64_t size)
{
	struct stat st;
	off_t at;

	if (off > size || fstat(STDIN_FILENO, &st) != 0 || !S_ISREG(st.st_mode))
		return off <= size;
	at = lseek(STDIN_FILENO, 0, SEEK_CUR);
	return at < 0 || at >= st.st_size || (uint64_t)(st.st_size - at) <= size - off;
}

static int interrupted(const struct target *target)
{
	struct img_error err = { .code = IMG_E_CANCELLED, .offset = UINT64_MAX };

	return cli_fail(target->path, &err);
}

static int write_pieces(const struct target *target, struct img *img, char *buf, uint64_t off)
{
	struct img_error err = { .code = IMG_OK };
	uint64_t size = img_size(img), got, want;

	do {
		int status;

		want = piece_at(off);
		status = fill(buf, want, &got);
		if (status != EXIT_DONE)
			return status;
		if (signals_interrupted())
			return interrupted(target);
		if (got > size - off)
			return past_end(target, img);
		if (got > 0 && img_pwrite(img, buf, got, off, 0, &err) != 0)
			return cli_fail(target->path, &err);
		off += got;
	} while (got == want);
	if (img_flush(img, 0, &err) != 0)
		return cli_fail(target->path, &err);
	return EXIT_DONE;
}

static int run_write(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct write_args *args = verb_args;
	struct opened o;
	char *buf;
	int status = opened_begin(&o, verb, &args->common, operands[0], IMG_OPEN_WRITE);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	buf = malloc(PIECE_BYTES);
	if (!buf)
		status = cli_fail_errno(o.target.path, "buffer");
	else if (!fits(args->offset.value, img_size(o.img)))
		status = past_end(&o.target, o.img);
	else
		status = write_pieces(&o.target, o.img, buf, args->offset.value);
	free(buf);
	return opened_end(&o, status);
}

const struct cli_verb verb_write = {
	.name = "write",
	.operands = "FILE",
	.summary = "Writes stdin into an image",
	.details = "The image does not grow: input that goes past its end is an error, found before anything is "
		   "written where stdin is a file. A raw image needs -f raw.",
	.example = PROGRAM " write debian.limg --offset 1M < boot.bin",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE,
	.options = write_options,
	.nr_options = ARRAY_LEN(write_options),
	.args_bytes = sizeof(struct write_args),
	.run = run_write,
};
