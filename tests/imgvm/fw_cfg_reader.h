/* SPDX-License-Identifier: MIT */
/* Firmware's side of fw_cfg: reads items through the ports, and files by their names. */
#ifndef TEST_FW_CFG_READER_H
#define TEST_FW_CFG_READER_H

#include "platform_fixture.h"

static inline void fw_select(struct fixture *f, unsigned item)
{
	out(f, 0x510, 2, item);
}

static inline void fw_read(struct fixture *f, void *buf, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		((uint8_t *)buf)[i] = inb(f, 0x511);
}

static inline uint32_t fw_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Item and length of a file; 0: there is none. */
static inline unsigned fw_find(struct fixture *f, const char *name, uint32_t *bytes)
{
	uint8_t head[4], entry[64];
	unsigned item = 0;

	*bytes = 0;
	fw_select(f, 0x19);
	fw_read(f, head, sizeof(head));
	for (uint32_t left = fw_be32(head); left; left--) {
		fw_read(f, entry, sizeof(entry));
		if (strcmp((const char *)entry + 8, name) == 0) {
			item = (unsigned)entry[4] << 8 | entry[5];
			*bytes = fw_be32(entry);
		}
	}
	return item;
}

/* The file, allocated; NULL: there is none. */
static inline uint8_t *fw_file(struct fixture *f, const char *name, uint32_t *bytes)
{
	unsigned item = fw_find(f, name, bytes);
	uint8_t *data;

	if (!item)
		return NULL;
	data = malloc(*bytes + 1u);
	assert_non_null(data);
	fw_select(f, item);
	fw_read(f, data, *bytes);
	return data;
}

#endif
