/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. The interface is documented in QEMU's docs/specs/fw_cfg.rst: a 16-bit write to the selector chooses
 * an item, reads of the data port yield its bytes one after another, then zeros. The directory (item 0x19) names the
 * files, which are the items from 0x20 on; its numbers are big-endian, all others little-endian.
 *
 * Items are fixed at creation and made again from the options of whoever resumes the machine: only where a guest stands
 * in them is saved.
 */
#include "platform.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

#define FW_CFG_TAG     STATE_TAG('F', 'W', 'C', 'F')
#define FW_CFG_VERSION 1u
#define FW_CFG_PORT    0x510u /* selector, 16 bits; the data port is the next, 8 bits */
#define FW_CFG_PORTS   2u

#define ITEM_SIGNATURE	0x00u
#define ITEM_ID		0x01u
#define ITEM_NR_CPUS	0x05u
#define ITEM_BOOT_MENU	0x0eu
#define ITEM_MAX_CPUS	0x0fu
#define ITEM_DIRECTORY	0x19u
#define ITEM_FIRST_FILE 0x20u
#define ID_TRADITIONAL	1u /* the ports; bit 1 would be DMA */

#define MAX_FILES  24u
#define NAME_BYTES 56u /* with its zero */

struct file {
	uint8_t *data;
	uint32_t bytes;
};

/* docs/specs/fw_cfg.rst, "File Directory" */
struct directory_entry {
	uint32_t bytes_be;
	uint16_t item_be;
	uint16_t reserved;
	char name[NAME_BYTES];
};
struct directory {
	uint32_t nr_be;
	struct directory_entry entry[MAX_FILES];
};

struct fw_cfg {
	struct device dev;
	uint16_t nr_cpus;
	uint16_t item;
	uint32_t off;
	unsigned nr_files;
	struct file file[MAX_FILES];
	struct directory directory;
};

static struct fw_cfg *to_fw_cfg(struct device *dev)
{
	return (struct fw_cfg *)dev;
}

static const void *item_data(const struct fw_cfg *fw, size_t *bytes)
{
	static const char signature[] = { 'Q', 'E', 'M', 'U' };
	static const uint32_t id = ID_TRADITIONAL;
	static const uint16_t no_menu = 0;

	switch (fw->item) {
	case ITEM_SIGNATURE: *bytes = sizeof(signature); return signature;
	case ITEM_ID: *bytes = sizeof(id); return &id;
	case ITEM_NR_CPUS:
	case ITEM_MAX_CPUS: *bytes = sizeof(fw->nr_cpus); return &fw->nr_cpus;
	case ITEM_BOOT_MENU: *bytes = sizeof(no_menu); return &no_menu;
	case ITEM_DIRECTORY:
		*bytes = sizeof(fw->directory.nr_be) + fw->nr_files * sizeof(fw->directory.entry[0]);
		return &fw->directory;
	default: break;
	}
	if (fw->item >= ITEM_FIRST_FILE && fw->item - ITEM_FIRST_FILE < fw->nr_files) {
		*bytes = fw->file[fw->item - ITEM_FIRST_FILE].bytes;
		return fw->file[fw->item - ITEM_FIRST_FILE].data;
	}
	*bytes = 0;
	return NULL;
}

static uint64_t fw_cfg_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct fw_cfg *fw = to_fw_cfg(dev);
	const uint8_t *data;
	size_t item_bytes;
	uint64_t v = 0;

	(void)region;
	if (off != 1 || bytes != 1)
		return UINT64_MAX;
	data = item_data(fw, &item_bytes);
	if (fw->off < item_bytes)
		v = data[fw->off++];
	return v;
}

static void fw_cfg_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct fw_cfg *fw = to_fw_cfg(dev);

	(void)region;
	if (off != 0 || bytes != 2)
		return;
	fw->item = (uint16_t)value;
	fw->off = 0;
}

static void fw_cfg_reset(struct device *dev)
{
	struct fw_cfg *fw = to_fw_cfg(dev);

	fw->item = 0;
	fw->off = 0;
}

static void fw_cfg_save(struct device *dev, struct state_writer *out)
{
	struct fw_cfg *fw = to_fw_cfg(dev);

	state_begin(out, dev->tag, dev->instance, dev->version);
	state_put16(out, fw->item);
	state_put32(out, fw->off);
	state_end(out);
}

static int fw_cfg_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct fw_cfg *fw = to_fw_cfg(dev);
	uint16_t item = state_get16(in);
	uint32_t off = state_get32(in);
	int ret = state_done(in, "firmware configuration", err);

	if (ret != 0)
		return ret;
	fw->item = item;
	fw->off = off; /* any value: what lies beyond an item reads as zeros */
	return 0;
}

static void fw_cfg_destroy(struct device *dev)
{
	struct fw_cfg *fw = to_fw_cfg(dev);

	for (unsigned i = 0; i < fw->nr_files; i++)
		free(fw->file[i].data);
	free(fw);
}

static const struct device_ops fw_cfg_ops = {
	.name = "fw_cfg",
	.read = fw_cfg_read,
	.write = fw_cfg_write,
	.reset = fw_cfg_reset,
	.save = fw_cfg_save,
	.load = fw_cfg_load,
	.destroy = fw_cfg_destroy,
};

void fw_cfg_add(struct device *fw_cfg, const char *name, const void *data, size_t bytes)
{
	struct fw_cfg *fw = to_fw_cfg(fw_cfg);
	struct directory_entry *entry = &fw->directory.entry[fw->nr_files];
	uint8_t *copy = malloc(bytes ? bytes : 1);

	if (!copy || fw->nr_files == MAX_FILES || strlen(name) >= NAME_BYTES || bytes > UINT32_MAX)
		abort();
	memcpy(copy, data, bytes);
	fw->file[fw->nr_files] = (struct file){ .data = copy, .bytes = (uint32_t)bytes };
	entry->bytes_be = htobe32((uint32_t)bytes);
	entry->item_be = htobe16((uint16_t)(ITEM_FIRST_FILE + fw->nr_files));
	strcpy(entry->name, name);
	fw->nr_files++;
	fw->directory.nr_be = htobe32(fw->nr_files);
}

struct device *fw_cfg_create(struct bus *bus, const struct machine_host *host, unsigned nr_vcpus)
{
	struct fw_cfg *fw = calloc(1, sizeof(*fw));

	if (!fw)
		abort();
	fw->dev = (struct device){ .ops = &fw_cfg_ops, .host = host, .tag = FW_CFG_TAG, .version = FW_CFG_VERSION };
	fw->nr_cpus = (uint16_t)nr_vcpus;
	bus_add_device(bus, &fw->dev);
	bus_map(bus, BUS_PIO, FW_CFG_PORT, FW_CFG_PORTS, &fw->dev, 0);
	return &fw->dev;
}
