/* SPDX-License-Identifier: MIT */
/*
 * The mutator of inputs about images (lib/mutate.h) for AFL++, which does not call LLVMFuzzerCustomMutator(): a module
 * to be named in AFL_CUSTOM_MUTATOR_LIBRARY. It runs inside afl-fuzz, so it is built without instrumentation and
 * sanitizers.
 *
 * FUZZ_TEMPLATES in the environment says whose templates are meant: raw, limg, qcow2, limg-journal ...; without it
 * those of all formats. The functions are those of AFL++'s docs/custom_mutators.md.
 */
#include "mutate.h"

#include <string.h>

#define BUF_BYTES     (1u << 20)
#define CROSS_OVER_OF 4u /* inputs */

struct afl_mutator {
	uint8_t buf[BUF_BYTES];
	const char *format;
	unsigned seed;
};

#define EXPORT __attribute__((visibility("default")))

EXPORT void *afl_custom_init(void *afl, unsigned seed);
EXPORT size_t afl_custom_fuzz(void *data, uint8_t *buf, size_t bytes, uint8_t **out, uint8_t *other, size_t other_bytes,
			      size_t max);
EXPORT void afl_custom_deinit(void *data);

void *afl_custom_init(void *afl, unsigned seed)
{
	struct afl_mutator *m = calloc(1, sizeof(*m));

	(void)afl;
	if (!m)
		return NULL;
	m->seed = seed;
	m->format = getenv("FUZZ_TEMPLATES");
	if (m->format && !fuzz_format_find(m->format)) {
		fprintf(stderr, "FUZZ_TEMPLATES: there are none of %s\n", m->format);
		abort();
	}
	return m;
}

size_t afl_custom_fuzz(void *data, uint8_t *buf, size_t bytes, uint8_t **out, uint8_t *other, size_t other_bytes,
		       size_t max)
{
	struct afl_mutator *m = data;

	max = max < BUF_BYTES ? max : BUF_BYTES;
	bytes = bytes < max ? bytes : max;
	*out = m->buf;
	m->seed++;
	if (other && other_bytes > 0 && m->seed % CROSS_OVER_OF == 0)
		return fuzz_cross_over(buf, bytes, other, other_bytes, m->buf, max, m->seed);
	memcpy(m->buf, buf, bytes);
	return fuzz_mutate(m->format, m->buf, bytes, max, m->seed);
}

void afl_custom_deinit(void *data)
{
	free(data);
}
