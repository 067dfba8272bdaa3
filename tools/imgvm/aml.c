/* SPDX-License-Identifier: MIT */
/*
 * See aml.h. A length is always encoded in two bytes (20.2.4), so that its place can be kept free until it is known; a
 * longer encoding than needed is allowed.
 */
#include "aml.h"

#include <stdlib.h>
#include <string.h>

enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
};
#define LENGTH_BYTES  2u
#define LENGTH_TWO    0x40u /* one more byte follows; the low 4 bits are in this one */
#define LENGTH_MAX    0xfffu
#define SEGMENT_BYTES 4u

enum {
	RES_IRQ = 0x22, /* small: without flags, so edge-triggered, active high */
	RES_IO = 0x47,
	RES_END = 0x79,
	RES_DWORD_SPACE = 0x87,
	RES_WORD_SPACE = 0x88,
};
#define IO_DECODE_16	0x01u
#define SPACE_MEMORY	0u
#define SPACE_IO	1u
#define SPACE_BUS	2u
#define SPACE_FIXED	0x0cu /* first and last address are fixed; the bridge produces it */
#define IO_ENTIRE_RANGE 0x03u
#define MEMORY_WRITABLE 0x01u /* not cacheable */

void aml_bytes(struct aml *aml, const void *data, size_t bytes)
{
	if (bytes > aml->cap - aml->used)
		abort();
	memcpy(aml->buf + aml->used, data, bytes);
	aml->used += bytes;
}

void aml_byte(struct aml *aml, unsigned v)
{
	uint8_t byte = (uint8_t)v;

	aml_bytes(aml, &byte, 1);
}

static void word(struct aml *aml, uint16_t v)
{
	aml_bytes(aml, &v, sizeof(v));
}

static void dword(struct aml *aml, uint32_t v)
{
	aml_bytes(aml, &v, sizeof(v));
}

static void name_string(struct aml *aml, const char *name)
{
	size_t bytes = strlen(name);

	if (bytes != SEGMENT_BYTES + (name[0] == '\\'))
		abort();
	aml_bytes(aml, name, bytes);
}

static size_t open_length(struct aml *aml)
{
	size_t at = aml->used;

	word(aml, 0);
	return at;
}

void aml_close(struct aml *aml, size_t open)
{
	size_t bytes = aml->used - open;

	if (bytes > LENGTH_MAX)
		abort();
	aml->buf[open] = (uint8_t)(LENGTH_TWO | (bytes & 0xf));
	aml->buf[open + 1] = (uint8_t)(bytes >> 4);
}

size_t aml_open_scope(struct aml *aml, const char *name)
{
	size_t open;

	aml_byte(aml, OP_SCOPE);
	open = open_length(aml);
	name_string(aml, name);
	return open;
}

size_t aml_open_device(struct aml *aml, const char *name)
{
	size_t open;

	aml_byte(aml, OP_EXT);
	aml_byte(aml, OP_EXT_DEVICE);
	open = open_length(aml);
	name_string(aml, name);
	return open;
}

size_t aml_open_package(struct aml *aml, unsigned nr_elements)
{
	size_t open;

	if (nr_elements > UINT8_MAX)
		abort();
	aml_byte(aml, OP_PACKAGE);
	open = open_length(aml);
	aml_byte(aml, nr_elements);
	return open;
}

void aml_name(struct aml *aml, const char *name)
{
	aml_byte(aml, OP_NAME);
	name_string(aml, name);
}

void aml_int(struct aml *aml, uint32_t v)
{
	if (v <= 1) {
		aml_byte(aml, v ? OP_ONE : OP_ZERO);
	} else if (v <= UINT8_MAX) {
		aml_byte(aml, OP_BYTE);
		aml_byte(aml, v);
	} else if (v <= UINT16_MAX) {
		aml_byte(aml, OP_WORD);
		word(aml, (uint16_t)v);
	} else {
		aml_byte(aml, OP_DWORD);
		dword(aml, v);
	}
}

void aml_string(struct aml *aml, const char *s)
{
	aml_byte(aml, OP_STRING);
	aml_bytes(aml, s, strlen(s) + 1);
}

/* Three letters of 5 bits each, then four hex digits; big-endian. */
void aml_eisa_id(struct aml *aml, const char *id)
{
	unsigned letters = (unsigned)(id[0] & 0x1f) << 10 | (unsigned)(id[1] & 0x1f) << 5 | (unsigned)(id[2] & 0x1f);
	unsigned number = (unsigned)strtoul(id + 3, NULL, 16);

	aml_byte(aml, OP_DWORD);
	aml_byte(aml, letters >> 8);
	aml_byte(aml, letters);
	aml_byte(aml, number >> 8);
	aml_byte(aml, number);
}

/* ---- resources --------------------------------------------------------------------------------------------------- */

size_t aml_open_resources(struct aml *aml)
{
	size_t open;

	aml_byte(aml, OP_BUFFER);
	open = open_length(aml);
	aml_byte(aml, OP_WORD);
	word(aml, 0);
	return open;
}

void aml_close_resources(struct aml *aml, size_t open)
{
	size_t data = open + LENGTH_BYTES + 1 + sizeof(uint16_t);
	uint16_t bytes;

	aml_byte(aml, RES_END);
	aml_byte(aml, 0); /* no checksum */
	bytes = (uint16_t)(aml->used - data);
	memcpy(aml->buf + data - sizeof(bytes), &bytes, sizeof(bytes));
	aml_close(aml, open);
}

void aml_res_io(struct aml *aml, uint16_t port, uint8_t nr_ports)
{
	aml_byte(aml, RES_IO);
	aml_byte(aml, IO_DECODE_16);
	word(aml, port);
	word(aml, port);
	aml_byte(aml, 1); /* alignment */
	aml_byte(aml, nr_ports);
}

void aml_res_irq(struct aml *aml, unsigned irq)
{
	aml_byte(aml, RES_IRQ);
	word(aml, (uint16_t)(1u << irq));
}

static void word_window(struct aml *aml, unsigned type, unsigned type_flags, uint16_t first, uint16_t last)
{
	aml_byte(aml, RES_WORD_SPACE);
	word(aml, 13); /* bytes that follow */
	aml_byte(aml, type);
	aml_byte(aml, SPACE_FIXED);
	aml_byte(aml, type_flags);
	word(aml, 0); /* granularity */
	word(aml, first);
	word(aml, last);
	word(aml, 0); /* translation */
	word(aml, (uint16_t)(last - first + 1));
}

void aml_res_bus_window(struct aml *aml, uint16_t first, uint16_t last)
{
	word_window(aml, SPACE_BUS, 0, first, last);
}

void aml_res_io_window(struct aml *aml, uint16_t first, uint16_t last)
{
	word_window(aml, SPACE_IO, IO_ENTIRE_RANGE, first, last);
}

void aml_res_mem_window(struct aml *aml, uint32_t first, uint32_t last)
{
	aml_byte(aml, RES_DWORD_SPACE);
	word(aml, 23); /* bytes that follow */
	aml_byte(aml, SPACE_MEMORY);
	aml_byte(aml, SPACE_FIXED);
	aml_byte(aml, MEMORY_WRITABLE);
	dword(aml, 0); /* granularity */
	dword(aml, first);
	dword(aml, last);
	dword(aml, 0); /* translation */
	dword(aml, last - first + 1);
}
