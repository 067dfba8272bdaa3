/* SPDX-License-Identifier: MIT */
/* See mutate.h. */
#include "mutate.h"

#include <string.h>

/* libFuzzer's own mutations of bytes; absent without it. */
__attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t max);

struct mutation {
	struct fuzz_case *c;
	const struct fuzz_template *t;
	uint64_t random;
};

static uint32_t below(struct mutation *m, uint32_t limit)
{
	m->random = m->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return limit ? (uint32_t)((m->random >> 33) % limit) : 0;
}

/* Words that formats, and what looks into them, know. */
static const struct {
	uint8_t bytes;
	const char *text;
} words[] = {
	{ 4, "QFI\xfb" },
	{ 8, "LIMG\r\n\x1a" },
	{ 4, "LJRN" },
	{ 4, "LIND" },
	{ 8, "conectix" },
	{ 8, "vhdxfile" },
	{ 4, "KDMV" },
	{ 4, "COWD" },
	{ 6, "LUKS\xba\xbe" },
	{ 4, "QED\0" },
	{ 8, "EFI PART" },
	{ 2, "\x55\xaa" },
	{ 5, "CD001" },
	{ 5, "json:" },
	{ 6, "nbd://" },
	{ 5, "base" },
	{ 6, "image" },
	{ 5, "data" },
	{ 7, "../base" },
	{ 9, "/dev/zero" },
	{ 5, "qcow2" },
	{ 4, "limg" },
	{ 3, "raw" },
	{ 8, "limg-pin" },
	{ 4, "\xe2\x79\x2a\xca" },
	{ 4, "DATA" },
	{ 4, "\x23\x85\x28\x75" },
	{ 4, "\x68\x03\xf8\x57" },
	{ 4, "\x05\x37\xbe\x77" },
	{ 8, "\x80\0\0\0\0\0\0\0" },
	{ 8, "\x40\0\0\0\0\0\0\0" },
	{ 8, "\0\0\0\0\0\0\0\1" },
	{ 21, "# Disk DescriptorFile" },
	{ 11, "createType=" },
	{ 21, "parentFileNameHint=\"\"" },
	{ 16, "RW 1 FLAT \"x\" 0\n" },
	{ 4, "koly" },
	{ 6, "shdw\0\1" },
	{ 4, "\x28\xb5\x2f\xfd" },
	{ 3, "\x1b[m" },
	{ 3, "\xe2\x80\xae" },
};
#define NR_WORDS (sizeof(words) / sizeof(words[0]))

/* ---- one patch ---- */

static void choose_place(struct mutation *m, struct fuzz_patch *p)
{
	uint64_t bytes = mem_content_size(m->t->file[0].content);

	p->at_field = m->t->nr_fields > 0 && below(m, 8) != 0;
	p->width = (uint8_t)below(m, 4);
	if (p->at_field) {
		p->at = below(m, (uint32_t)m->t->nr_fields);
		return;
	}
	p->at = below(m, (uint32_t)bytes + 64);
	/* near a number rather than anywhere */
	if (m->t->nr_fields > 0 && below(m, 2))
		p->at = m->t->field[below(m, (uint32_t)m->t->nr_fields)].off + below(m, 64) - 16;
}

static void choose_data(struct mutation *m, struct fuzz_patch *p)
{
	p->length = (uint16_t)(1u << below(m, 5));
	for (unsigned i = 0; i < p->length; i++)
		p->data[i] = (uint8_t)below(m, 256);
	if (below(m, 2)) {
		unsigned w = below(m, NR_WORDS);

		p->length = words[w].bytes;
		memcpy(p->data, words[w].text, p->length);
	}
}

static void choose_action(struct mutation *m, struct fuzz_patch *p)
{
	unsigned choice = below(m, 20);

	p->delta = (int16_t)(below(m, 4) ? (int)below(m, 17) - 8 : (int)below(m, 65536) - 32768);
	p->value = (uint8_t)below(m, 256);
	if (choice < 8) {
		p->kind = FUZZ_SET;
	} else if (choice < 11) {
		p->kind = FUZZ_ADD;
	} else if (choice < 14 && m->t->nr_fields > 0) {
		p->kind = FUZZ_TAKE;
		p->from = below(m, (uint32_t)m->t->nr_fields);
	} else if (choice < 17) {
		p->kind = FUZZ_BYTES;
		choose_data(m, p);
	} else if (choice == 17) {
		p->kind = FUZZ_FILL;
		p->length = (uint16_t)(1u << below(m, 14));
	} else if (choice == 18) {
		p->kind = FUZZ_COPY;
		p->from = below(m, (uint32_t)mem_content_size(m->t->file[0].content) + 1) & ~511u;
		p->length = (uint16_t)(1u << below(m, 14));
	} else {
		p->kind = FUZZ_RESIZE;
		p->at_field = false;
		p->at = below(m, (uint32_t)mem_content_size(m->t->file[0].content) + 65536);
		if (below(m, 2))
			p->at &= ~511u;
	}
}

static void add_patch(struct mutation *m)
{
	struct fuzz_patch *p;

	if (m->c->nr == FUZZ_PATCHES_MAX)
		return;
	p = &m->c->patch[m->c->nr++];
	memset(p, 0, sizeof(*p));
	choose_place(m, p);
	choose_action(m, p);
}

static void change_patch(struct mutation *m)
{
	struct fuzz_patch *p = &m->c->patch[below(m, m->c->nr)];

	switch (below(m, 6)) {
	case 0: choose_place(m, p); break;
	case 1: p->at += below(m, 9) - 4; break;
	case 2: p->value = (uint8_t)(p->value + below(m, 5) - 2); break;
	case 3: p->delta = (int16_t)(p->delta + (int)below(m, 9) - 4); break;
	case 4:
		if (p->kind == FUZZ_BYTES && p->length > 0)
			p->data[below(m, p->length)] ^= (uint8_t)(1u << below(m, 8));
		else
			p->length = (uint16_t)(p->length + below(m, 65) - 32);
		if (p->kind == FUZZ_BYTES && p->length > FUZZ_PATCH_DATA_MAX)
			p->length = FUZZ_PATCH_DATA_MAX;
		break;
	default: choose_action(m, p); break;
	}
}

static void drop_patch(struct mutation *m)
{
	unsigned i = below(m, m->c->nr);

	m->c->nr--;
	memmove(&m->c->patch[i], &m->c->patch[i + 1], (m->c->nr - i) * sizeof(m->c->patch[0]));
}

static void repeat_patch(struct mutation *m)
{
	if (m->c->nr == FUZZ_PATCHES_MAX)
		return;
	m->c->patch[m->c->nr] = m->c->patch[below(m, m->c->nr)];
	choose_place(m, &m->c->patch[m->c->nr]);
	m->c->nr++;
}

static void change_head(struct mutation *m, const char *format)
{
	switch (below(m, 3)) {
	case 0:
		m->c->number = below(m, fuzz_nr_templates(format));
		m->t = fuzz_template_get(format, m->c->number);
		break;
	case 1: m->c->fix = below(m, 8); break;
	default: m->c->options ^= (uint16_t)(1u << below(m, 16)); break;
	}
}

static void step(struct mutation *m, const char *format)
{
	unsigned choice = below(m, 20);

	if (m->c->nr == 0 || choice < 9)
		add_patch(m);
	else if (choice < 13)
		change_patch(m);
	else if (choice < 16)
		drop_patch(m);
	else if (choice < 17)
		repeat_patch(m);
	else
		change_head(m, format);
}

/* ---- whole inputs ---- */

static size_t mutate_bytes(struct mutation *m, uint8_t *data, size_t bytes, size_t max)
{
	if (LLVMFuzzerMutate)
		return LLVMFuzzerMutate(data, bytes, max);
	if (bytes < max && below(m, 3) == 0)
		data[bytes++] = (uint8_t)below(m, 256);
	else if (bytes > 0)
		data[below(m, (uint32_t)bytes)] ^= (uint8_t)(1u << below(m, 8));
	return bytes;
}

size_t fuzz_mutate(const char *format, uint8_t *data, size_t bytes, size_t max, unsigned seed)
{
	struct fuzz_case c;
	struct mutation m = { .c = &c, .random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1 };

	fuzz_case_parse(&c, data, bytes);
	if (c.whole && below(&m, 8) != 0)
		return mutate_bytes(&m, data, bytes, max);
	if (!c.whole && below(&m, 16) == 0)
		return mutate_bytes(&m, data, bytes, max);
	m.t = fuzz_template_get(format, c.number);
	if (c.whole)
		change_head(&m, format);
	for (unsigned i = c.whole ? 1 : 0, nr = 1u << below(&m, 4); i < nr && !c.whole; i++)
		step(&m, format);
	return fuzz_case_store(&c, data, max);
}

/* The changes of both, in the order of each; the head is that of the first. */
size_t fuzz_cross_over(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes, uint8_t *out, size_t max,
		       unsigned seed)
{
	struct fuzz_case ca, cb, made;
	struct mutation m = { .c = &made, .random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1 };
	unsigned ia = 0, ib = 0;

	fuzz_case_parse(&ca, a, a_bytes);
	fuzz_case_parse(&cb, b, b_bytes);
	made = ca;
	made.nr = 0;
	while ((ia < ca.nr || ib < cb.nr) && made.nr < FUZZ_PATCHES_MAX) {
		bool first = ib == cb.nr || (ia < ca.nr && below(&m, 2));
		const struct fuzz_patch *p = first ? &ca.patch[ia++] : &cb.patch[ib++];

		if (below(&m, 8) != 0)
			made.patch[made.nr++] = *p;
	}
	return fuzz_case_store(&made, out, max);
}
