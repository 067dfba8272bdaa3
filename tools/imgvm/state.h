/* SPDX-License-Identifier: MIT */
/*
 * Saved machine state: the bytes of format-spec/machine-state.md. A header, then sections: tag, instance, version,
 * length, payload, in any order, each (tag, instance) once; little-endian. State comes from an image and is not
 * trusted: lengths must be exactly what this version writes, and every value is checked by the device that takes it.
 *
 * In the image's machine state volume the state lies in the first STATE_AREA_BYTES and the guest's RAM, linear,
 * follows, so that both are page-aligned.
 */
#ifndef IMGVM_STATE_H
#define IMGVM_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libimg.h"

#define STATE_VERSION	      1u
#define STATE_AREA_BYTES      (UINT64_C(1) << 20)
#define STATE_MAX_SECTIONS    128u
#define STATE_TAG(a, b, c, d) ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)

/* ---- writing ---- */

struct state_writer {
	uint8_t *buf; /* cap bytes, the caller's */
	size_t cap, used;
	size_t section; /* offset of the open section's header, 0: none */
	uint32_t nr_sections;
	bool overflow; /* something did not fit; reported by state_finish() */
};

void state_start(struct state_writer *w, void *buf, size_t cap);
void state_begin(struct state_writer *w, uint32_t tag, uint32_t instance, uint32_t version);
void state_put(struct state_writer *w, const void *data, size_t bytes);
void state_put8(struct state_writer *w, uint8_t v);
void state_put16(struct state_writer *w, uint16_t v);
void state_put32(struct state_writer *w, uint32_t v);
void state_put64(struct state_writer *w, uint64_t v);
void state_end(struct state_writer *w);
/* Completes the header. *bytes: length of it all. LIMIT if it did not fit. */
int state_finish(struct state_writer *w, size_t *bytes, struct img_error *err);

/* ---- reading ---- */

struct state_section {
	uint32_t tag, instance, version;
	size_t off, bytes; /* of the payload in the buffer */
	bool taken;
};
struct state {
	const uint8_t *buf;
	size_t bytes;
	struct state_section section[STATE_MAX_SECTIONS];
	unsigned nr_sections;
};
/* A payload being read. Reading past its end yields zeros and sets `bad`. */
struct state_reader {
	const uint8_t *at, *end;
	bool bad;
	uint32_t version;
};

#define STATE_HEADER_BYTES 32u
/* The length that a header speaks of, at most STATE_AREA_BYTES. FORMAT: not machine state; UNSUPPORTED: a newer
 * version; CORRUPT. */
int state_length(const void *header, size_t *out, struct img_error *err);
/*
 * Checks header and section table of buf, which must outlive *out. The state's length stands in its header: what buf
 * holds behind it must be zeros (the rest of the state area). FORMAT: not machine state; UNSUPPORTED: a newer version;
 * CORRUPT.
 */
int state_parse(struct state *out, const void *buf, size_t bytes, struct img_error *err);
/* Finds a section, marks it as taken. CORRUPT: there is none; UNSUPPORTED: a version above max_version. */
int state_open(struct state *st, uint32_t tag, uint32_t instance, uint32_t max_version, struct state_reader *out,
	       struct img_error *err);
void state_get(struct state_reader *r, void *data, size_t bytes);
uint8_t state_get8(struct state_reader *r);
uint16_t state_get16(struct state_reader *r);
uint32_t state_get32(struct state_reader *r);
uint64_t state_get64(struct state_reader *r);
size_t state_left(const struct state_reader *r);
/* The payload was read exactly to its end. CORRUPT, naming `what`, if not. */
int state_done(const struct state_reader *r, const char *what, struct img_error *err);
/* Every section was taken: one that nobody knows belongs to a machine that this is not. UNSUPPORTED, naming its tag. */
int state_all_taken(const struct state *st, struct img_error *err);

#endif
