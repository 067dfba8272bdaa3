/* SPDX-License-Identifier: MIT */
/* See snapshots.h. */
#include "snapshots.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

/* Beside a writer the number may grow between the question and the answer. */
int snapshots_load(struct snapshot_list *list, struct img *img)
{
	struct img_error err = { .code = IMG_OK };
	size_t cap, nr = 0;

	if (img_snapshot_list(img, NULL, 0, &nr, &err) != 0)
		return cli_fail(img_path(img), &err);
	do {
		snapshots_free(list);
		cap = nr;
		list->at = calloc(cap ? cap : 1, sizeof(*list->at));
		if (!list->at)
			return cli_fail_errno(img_path(img), "snapshots");
		if (img_snapshot_list(img, list->at, cap, &nr, &err) != 0)
			return cli_fail(img_path(img), &err);
		list->nr = nr < cap ? nr : cap;
	} while (nr > cap);
	return EXIT_DONE;
}

void snapshots_free(struct snapshot_list *list)
{
	free(list->at);
	list->at = NULL;
	list->nr = 0;
}

/* Formats without identities keep no books about content either. */
static bool is_known(const struct img_snapshot *s)
{
	static const uint8_t none[16];

	return memcmp(s->uuid, none, sizeof(none)) != 0;
}

/* What it takes, where that is known: most of a machine's memory was never written. */
static uint64_t vmstate_bytes(const struct img_snapshot *s)
{
	return s->vmstate_data_bytes ? s->vmstate_data_bytes : s->vmstate_bytes;
}

void snapshots_print(const struct snapshot_list *list)
{
	char created[TIME_TEXT_BYTES], size[SIZE_TEXT_BYTES], data[SIZE_TEXT_BYTES], vmstate[SIZE_TEXT_BYTES];

	printf("%4s  %-20s  %10s  %10s  %10s  %s\n", "id", "created", "size", "data", "vm state", "name");
	for (size_t i = 0; i < list->nr; i++) {
		const struct img_snapshot *s = &list->at[i];

		printf("%4" PRIu64 "  %-20s  %10s  %10s  %10s  ", s->id, output_time(s->created_ns, created),
		       output_size(s->size_bytes, size), is_known(s) ? output_size(s->data_bytes, data) : "-",
		       s->vmstate_bytes ? output_size(vmstate_bytes(s), vmstate) : "-");
		output_escaped(stdout, s->name);
		putchar('\n');
	}
}

static json_t *json_snapshot(const struct img_snapshot *s)
{
	char created[TIME_TEXT_BYTES], uuid[UUID_TEXT_BYTES], hash[HEX_TEXT_BYTES];
	bool known = is_known(s);

	return json_pack("{s:o, s:o, s:s?, s:o, s:s, s:I, s:o, s:o, s:o, s:o, s:s?, s:o}", "id",
			 output_json_size(s->id), "name", output_json_text(s->name), "uuid",
			 known ? output_uuid(s->uuid, uuid) : NULL, "parent",
			 s->parent ? output_json_size(s->parent) : json_null(), "created",
			 output_time(s->created_ns, created), "created_ns", (json_int_t)s->created_ns, "virtual_size",
			 output_json_size(s->size_bytes), "data_bytes",
			 known ? output_json_size(s->data_bytes) : json_null(), "vmstate_size",
			 output_json_size(s->vmstate_bytes), "vmstate_data_bytes",
			 known ? output_json_size(s->vmstate_data_bytes) : json_null(), "content_hash",
			 known ? output_hex(s->hash, sizeof(s->hash), hash) : NULL, "is_head",
			 known ? json_boolean(s->is_head) : json_null());
}

json_t *snapshots_json(const struct snapshot_list *list)
{
	json_t *array = json_array();

	for (size_t i = 0; i < list->nr; i++)
		json_array_append_new(array, json_snapshot(&list->at[i]));
	return array;
}
