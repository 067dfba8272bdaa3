/* SPDX-License-Identifier: MIT */
/*
 * DiskDescriptor.xml, which makes a folder of images one disk: storages cut the disk in ranges; each has one image for
 * each snapshot, and one for the head; each of these (a "shot") stands on another one. Source: docs/interop/prl-xml.rst
 * of QEMU. Elements that are not known are passed over; one that is known and there twice is refused, since readers
 * would differ in which one they take.
 */
#ifndef PRL_DESCRIPTOR_H
#define PRL_DESCRIPTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "budget.h"

#define PRL_GUID_TEXT_BYTES 39u /* with braces and a NUL */
#define PRL_NO_SHOT	    SIZE_MAX

struct prl_part {
	uint8_t guid[16];
	bool plain; /* raw; else an expandable image */
	char *file; /* as recorded */
};

struct prl_storage {
	uint64_t start, end; /* bytes of the disk */
	uint64_t cluster_bytes;
	struct prl_part *part;
	size_t nr_parts;
};

struct prl_shot {
	uint8_t guid[16], parent_guid[16];
	size_t parent; /* PRL_NO_SHOT: a root */
	uint64_t id;   /* 1 on, parents first */
};

struct prl_descriptor {
	uint64_t disk_bytes;
	uint64_t cylinders, heads, sectors;
	uint64_t padding, sector_bytes;
	bool encrypted;
	bool has_uid;
	uint8_t uid[16];
	struct prl_storage *storage; /* ascending, without gaps, all of the disk */
	size_t nr_storages;
	struct prl_shot *shot;
	size_t nr_shots;
	size_t *by_id; /* indexes of shot by their ids less 1 */
	size_t head;   /* of shot */
	bool has_top;
	uint8_t top[16];
};

/* Does this text begin as a descriptor? */
bool prl_descriptor_is(const void *head, size_t bytes);
/*
 * Reads and judges file. IMG_E_CORRUPT; IMG_E_LIMIT; IMG_E_UNSUPPORTED (PRL-12) for what is there and not to be opened:
 * out is whole then, too. out is to be freed in any case.
 */
int prl_descriptor_load(struct node *file, const char *path, struct budget *budget, struct prl_descriptor *out,
			struct img_error *err);
void prl_descriptor_free(struct prl_descriptor *d);

/* The part of a storage that belongs to a shot; NULL: none. */
const struct prl_part *prl_part_of(const struct prl_storage *s, const uint8_t *guid);
/* The shot of that name: its GUID, with braces or without. PRL_NO_SHOT. */
size_t prl_shot_named(const struct prl_descriptor *d, const char *name);

/* "{01234567-89ab-cdef-0123-456789abcdef}", as GUIDs stand there; bytes are in the order of the text. */
void prl_guid_text(const uint8_t *guid, char out[PRL_GUID_TEXT_BYTES]);
bool prl_guid_parse(const char *text, uint8_t *out);
extern const uint8_t prl_guid_head[16]; /* of the head, where nothing else is said */

#endif
