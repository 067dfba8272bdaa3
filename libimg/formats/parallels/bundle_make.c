/* SPDX-License-Identifier: MIT */
/* New bundles: one image for each storage, and the descriptor, which the core names last. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "prl_bundle.h"

#define NAME_MAX_BYTES 150u /* of the folder's name, as part of its files' names */

struct text {
	char *at;
	size_t bytes, cap;
	bool failed;
};

static void put(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *fmt, ...)
{
	char line[1024], *grown;
	va_list ap;
	int n;

	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof(line)) {
		t->failed = true;
		return;
	}
	if (t->bytes + (size_t)n > t->cap) {
		grown = realloc(t->at, 2 * (t->cap + (size_t)n));
		if (!grown) {
			t->failed = true;
			return;
		}
		t->at = grown;
		t->cap = 2 * (t->cap + (size_t)n);
	}
	memcpy(t->at + t->bytes, line, (size_t)n);
	t->bytes += (size_t)n;
}

/*
 * What files are named after: the folder's name, or, where the descriptor is called as it likes, its own; "disk.hdd"
 * where that cannot be told or would need to be quoted.
 */
static void folder_name(const char *path, char out[NAME_MAX_BYTES + 1])
{
	const char *base = path && strrchr(path, '/') ? strrchr(path, '/') + 1 : path, *begin = base;
	const char *end = base ? base + strlen(base) : NULL;

	(void)snprintf(out, NAME_MAX_BYTES + 1, "disk.hdd");
	if (base && strcmp(base, "DiskDescriptor.xml") == 0) {
		end = base > path ? base - 1 : base;
		for (begin = end; begin > path && begin[-1] != '/';)
			begin--;
	}
	if (!begin || begin == end || (size_t)(end - begin) > NAME_MAX_BYTES || *begin == '.')
		return;
	for (const char *c = begin; c < end; c++)
		if (strchr("<>&\"'", *c) || (unsigned char)*c < ' ')
			return;
	(void)snprintf(out, NAME_MAX_BYTES + 1, "%.*s", (int)(end - begin), begin);
}

/* Cylinders, heads and sectors, of which the product has to be the size. */
static void put_geometry(struct text *t, uint64_t sectors)
{
	bool usual = sectors % PRL_SECTORS_PER_CYLINDER == 0;

	put(t, "        <Disk_size>%" PRIu64 "</Disk_size>\n", sectors);
	put(t, "        <Cylinders>%" PRIu64 "</Cylinders>\n", usual ? sectors / PRL_SECTORS_PER_CYLINDER : sectors);
	put(t, "        <PhysicalSectorSize>4096</PhysicalSectorSize>\n");
	put(t, "        <LogicSectorSize>512</LogicSectorSize>\n");
	put(t, "        <Heads>%u</Heads>\n", usual ? PRL_HEADS : 1);
	put(t, "        <Sectors>%u</Sectors>\n", usual ? PRL_SECTORS_PER_TRACK : 1);
	put(t, "        <Padding>0</Padding>\n");
}

static void put_head(struct text *t, uint64_t sectors, const uint8_t *uid, const char *name)
{
	char guid[PRL_GUID_TEXT_BYTES];

	prl_guid_text(uid, guid);
	put(t,
	    "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n    <Disk_Parameters>\n");
	put_geometry(t, sectors);
	put(t, "        <Encryption>\n            <Engine>{00000000-0000-0000-0000-000000000000}</Engine>\n");
	put(t, "            <Data></Data>\n        </Encryption>\n");
	put(t, "        <UID>%s</UID>\n        <Name>%s</Name>\n", guid, name);
	put(t, "        <Miscellaneous>\n            <CompatLevel>level2</CompatLevel>\n        </Miscellaneous>\n");
	put(t, "    </Disk_Parameters>\n    <StorageData>\n");
}

static void put_storage(struct text *t, uint64_t start, uint64_t end, const struct prl_options *o, const char *file)
{
	char guid[PRL_GUID_TEXT_BYTES];

	prl_guid_text(prl_guid_head, guid);
	put(t, "        <Storage>\n            <Start>%" PRIu64 "</Start>\n            <End>%" PRIu64 "</End>\n",
	    start / PRL_SECTOR_BYTES, end / PRL_SECTOR_BYTES);
	put(t, "            <Blocksize>%" PRIu32 "</Blocksize>\n            <Image>\n                <GUID>%s</GUID>\n",
	    o->cluster_bytes / PRL_SECTOR_BYTES, guid);
	put(t,
	    "                <Type>%s</Type>\n                <File>%s</File>\n            </Image>\n        </Storage>\n",
	    o->subformat == PRL_PLAIN ? "Plain" : "Compressed", file);
}

static void put_end(struct text *t)
{
	char guid[PRL_GUID_TEXT_BYTES];

	prl_guid_text(prl_guid_head, guid);
	put(t, "    </StorageData>\n    <Snapshots>\n        <Shot>\n            <GUID>%s</GUID>\n", guid);
	put(t, "            <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID>\n        </Shot>\n");
	put(t, "    </Snapshots>\n</Parallels_disk_image>\n");
}

/* The file of one storage. */
static int make_storage(const struct driver_create *args, const struct prl_options *o, const char *name, uint64_t bytes,
			struct img_error *err)
{
	struct node *file;
	int ret = args->create_data(args->create_data_ctx, name, &file, err);

	if (ret != 0)
		return ret;
	return o->subformat == PRL_PLAIN ? node_resize(file, bytes, err) : prl_image_make(file, o, bytes, err);
}

static int make_storages(struct text *t, const struct driver_create *args, const struct prl_options *o,
			 const char *folder, struct img_error *err)
{
	uint64_t step = o->split_bytes ? o->split_bytes : args->size_bytes;
	char guid[PRL_GUID_TEXT_BYTES], name[NAME_MAX_BYTES + 80];
	int ret = 0;

	prl_guid_text(prl_guid_head, guid);
	for (uint64_t start = 0, i = 0; start < args->size_bytes && ret == 0; start += step, i++) {
		uint64_t end = min_u64(start + step, args->size_bytes);

		(void)snprintf(name, sizeof(name), "%s.%" PRIu64 ".%s.hds", folder, i, guid);
		put_storage(t, start, end, o, name);
		ret = make_storage(args, o, name, end - start, err);
	}
	return ret;
}

int prl_bundle_make(struct node *file, const struct prl_options *o, const struct driver_create *args,
		    struct img_error *err)
{
	struct text t = { .at = NULL };
	char folder[NAME_MAX_BYTES + 1];
	uint8_t uid[16];
	int ret;

	if (!args->create_data)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "no files can be made beside this one");
	if (args->size_bytes % PRL_SECTOR_BYTES != 0 || args->size_bytes > INT64_MAX)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a bundle holds a disk of whole sectors");
	if (getrandom(uid, sizeof(uid), 0) != (ssize_t)sizeof(uid))
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers for a UID");
	uid[6] = (uint8_t)((uid[6] & 0x0f) | 0x40);
	uid[8] = (uint8_t)((uid[8] & 0x3f) | 0x80);
	folder_name(args->path, folder);
	put_head(&t, args->size_bytes / PRL_SECTOR_BYTES, uid, folder);
	ret = make_storages(&t, args, o, folder, err);
	put_end(&t);
	if (ret == 0 && t.failed)
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (ret == 0)
		ret = node_pwrite(file, t.at, t.bytes, 0, 0, err);
	free(t.at);
	return ret;
}
