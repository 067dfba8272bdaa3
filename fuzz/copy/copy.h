/* SPDX-License-Identifier: MIT */
/*
 * Two small images in memory, each perhaps on a backing image, whose maps come from the input, and what copies,
 * converts, compares and sums up whole images done to them. A flat array knows what each holds.
 *
 * An input is: for each of backing, source and target a byte for its format, two for its size, one for the number of
 * what is done to fill it, and that (STEP_BYTES each); then commands of COMMAND_BYTES.
 */
#ifndef FUZZ_COPY_H
#define FUZZ_COPY_H

#include "fault.h"
#include "flat.h"
#include "fuzz.h"
#include "memfs.h"

#define SECTOR		 512u
#define MAX_BYTES	 (192u << 10)
#define MAX_BACKED_BYTES (2 * MAX_BYTES)
#define MAX_STEPS	 12u
#define MAX_SNAPS	 3u
#define MAX_COMMANDS	 6u

struct side {
	const char *name, *format;
	char options[96];
	struct img *img; /* open for writing; NULL: the image is only there to be stood on */
	struct flat truth;
	struct snap {
		char name[8];
		struct flat truth;
	} snap[MAX_SNAPS];
	unsigned nr_snaps;
	bool has_bitmap;
};

struct scene {
	struct memfs fs;
	struct fault_plan plan;
	struct side backing, src, dst;
	uint8_t *buf; /* MAX_BACKED_BYTES */
	bool verbose;
};

/* build.c: ends the program where a valid request fails. */
void scene_build(struct scene *s, struct fuzz_input *in);
void scene_free(struct scene *s);
struct img *scene_open(struct scene *s, const char *name, const char *format, unsigned flags);
/* The content is that of the truth, and a check finds nothing. */
void scene_check(struct scene *s, struct img *img, const struct flat *truth);
void scene_read(struct scene *s, struct img *img, struct flat *out);
bool side_is_raw(const struct side *side);
/* Options of a format by number, and its name. */
const char *scene_format(unsigned number, char *options, size_t bytes);

/* commands.c */
void scene_command(struct scene *s, struct fuzz_input *in);

/* digest.c: what img_checksum() must give. */
#include "libimg.h"
void digest_of(const struct flat *truth, enum img_digest algo, uint8_t *out, size_t *bytes);

#endif
