/* SPDX-License-Identifier: MIT */
/* imgtool info: what an image is. Opens nothing that the image names, unless --chain asks for it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps.h"
#include "open.h"
#include "output.h"
#include "snapshots.h"
#include "verbs.h"

struct info_args {
	struct common_args common;
	bool chain;
};

static const struct cli_option options[] = {
	{ "chain", 0, OPTION_FLAG, NULL, "describe the parents as well, which opens them",
	  offsetof(struct info_args, chain) },
};

/* One layer and what it holds. */
struct layer {
	struct img *img;
	struct img_info info;
	const char *snapshot; /* in info; NULL: the head */
	struct snapshot_list snapshots;
	struct bitmap_list bitmaps;
	json_t *details;   /* what only its format has; an object, owned */
	bool may_be_stale; /* another process may be writing it */
};

static void take_detail(void *ctx, const struct img_detail *detail)
{
	json_t *value = detail->kind == IMG_DETAIL_TEXT ? output_json_text(detail->text) :
			detail->kind == IMG_DETAIL_BOOL ? json_boolean(detail->number) :
							  output_json_size(detail->number);

	json_object_set_new(ctx, detail->key, value);
}

static int load(struct layer *layer, struct img *img, const struct common_args *common)
{
	struct img_error err = { .code = IMG_OK };
	int status = EXIT_DONE;

	memset(layer, 0, sizeof(*layer));
	layer->img = img;
	layer->may_be_stale = common->force_share;
	layer->details = json_object();
	if (img_info(img, &layer->info, &err) != 0 || img_info_details(img, take_detail, layer->details, &err) != 0)
		return cli_fail(img_path(img), &err);
	layer->snapshot = layer->info.snapshot[0] ? layer->info.snapshot : NULL;
	/* of a snapshot the others are not listed: it is the image that has them */
	if (!layer->snapshot && layer->info.nr_snapshots > 0)
		status = snapshots_load(&layer->snapshots, img);
	if (!layer->snapshot && status == EXIT_DONE)
		status = bitmaps_load(&layer->bitmaps, img);
	return status;
}

static void unload(struct layer *layer)
{
	snapshots_free(&layer->snapshots);
	bitmaps_free(&layer->bitmaps);
	json_decref(layer->details);
}

static bool has_hash(const struct img_info *info)
{
	static const uint8_t zero[sizeof(info->hash)];

	return memcmp(info->hash, zero, sizeof(zero)) != 0;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *json_backing(const struct img_info *info)
{
	if (!info->has_backing)
		return json_null();
	return json_pack("{s:o, s:s, s:o, s:s, s:b, s:b}", "name", output_json_text(info->backing), "format",
			 info->backing_format, "snapshot",
			 output_json_text(info->backing_snapshot[0] ? info->backing_snapshot : NULL), "pin",
			 info->backing_pin, "committing", info->backing_committing, "modified", info->backing_modified);
}

static json_t *json_nonzero(uint64_t bytes)
{
	return bytes ? output_json_size(bytes) : json_null();
}

static json_t *json_layer(const struct layer *layer)
{
	const struct img_info *info = &layer->info;
	char uuid[UUID_TEXT_BYTES], hash[HEX_TEXT_BYTES];
	json_t *o = json_object();

	json_object_set_new(o, "filename", output_json_text(img_path(layer->img)));
	json_object_set_new(o, "snapshot", output_json_text(layer->snapshot));
	json_object_set_new(o, "format", json_string(info->format));
	json_object_set_new(o, "virtual_size", output_json_size(info->virtual_bytes));
	json_object_set_new(o, "file_size", output_json_size(info->file_bytes));
	json_object_set_new(o, "allocated_bytes", output_json_size(info->allocated_bytes));
	json_object_set_new(o, "block_size", json_nonzero(info->block_bytes));
	json_object_set_new(o, "unit_size", json_nonzero(info->unit_bytes));
	json_object_set_new(o, "compression", json_string(info->compression[0] ? info->compression : "none"));
	json_object_set_new(o, "encrypted", json_boolean(info->encrypted));
	json_object_set_new(o, "dirty", json_boolean(info->dirty));
	json_object_set_new(o, "corrupt", json_boolean(info->corrupt));
	json_object_set_new(o, "uuid", info->has_uuid ? json_string(output_uuid(info->uuid, uuid)) : json_null());
	json_object_set_new(o, "content_hash",
			    has_hash(info) ? json_string(output_hex(info->hash, sizeof(info->hash), hash)) :
					     json_null());
	json_object_set_new(o, "generation", output_json_size(info->generation));
	json_object_set_new(o, "used_bytes", output_json_size(info->used_bytes));
	json_object_set_new(o, "pending_free_bytes", output_json_size(info->pending_free_bytes_hint));
	json_object_set_new(o, "vmstate_size", output_json_size(info->vmstate_bytes));
	if (json_object_size(layer->details) > 0)
		json_object_set(o, "format_specific", layer->details);
	json_object_set_new(o, "backing", json_backing(info));
	json_object_set_new(o, "snapshots", snapshots_json(&layer->snapshots));
	json_object_set_new(o, "bitmaps", bitmaps_json(&layer->bitmaps));
	json_object_set_new(o, "may_be_stale", json_boolean(layer->may_be_stale));
	return o;
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

#define LABEL_COLUMNS 16

static void print_label(const char *label)
{
	printf("%-*s", LABEL_COLUMNS, label);
}

static void print_bytes(const char *label, uint64_t bytes)
{
	char size[SIZE_TEXT_BYTES];

	print_label(label);
	if (bytes < 1024)
		printf("%" PRIu64 " bytes\n", bytes);
	else
		printf("%s (%" PRIu64 " bytes)\n", output_size(bytes, size), bytes);
}

static void print_name(const char *label, const char *name)
{
	print_label(label);
	output_escaped(stdout, name);
	putchar('\n');
}

static void print_backing(const struct img_info *info)
{
	print_label("backing:");
	output_escaped(stdout, info->backing);
	if (info->backing_snapshot[0]) {
		putchar('@');
		output_escaped(stdout, info->backing_snapshot);
	}
	fputs(" (", stdout);
	output_escaped(stdout, info->backing_format);
	printf(", %s pin)\n", info->backing_pin);
	if (info->backing_committing)
		printf("%-16sa commit into the backing file was interrupted: run " PROGRAM " commit again\n", "");
	if (info->backing_modified)
		printf("%-16sits file's time is not the one on record: written since, which shows here, or copied\n",
		       "");
}

/* refcount_bits: as "refcount bits:" */
static void print_details(json_t *details)
{
	const char *key;
	json_t *value;

	json_object_foreach(details, key, value) {
		char label[32];
		size_t n = 0;

		for (; key[n] && n + 2 < sizeof(label); n++)
			label[n] = (char)(key[n] == '_' ? ' ' : key[n]);
		label[n] = ':';
		label[n + 1] = '\0';
		print_label(label);
		if (n + 1 >= LABEL_COLUMNS)
			putchar(' ');
		if (json_is_string(value))
			output_escaped(stdout, json_string_value(value));
		else if (json_is_boolean(value))
			fputs(json_is_true(value) ? "yes" : "no", stdout);
		else
			printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
		putchar('\n');
	}
}

static void print_state(const struct img_info *info)
{
	if (info->dirty && strcmp(info->format, "qcow2") == 0)
		puts("state:          was not closed: its refcounts are rebuilt when it is opened for writing");
	else if (info->dirty && strcmp(info->format, "limg") == 0)
		puts("state:          was not closed: what was flushed is in its journal");
	else if (info->dirty)
		puts("state:          was not closed by its last writer");
	if (info->corrupt)
		puts("state:          damaged: see " PROGRAM " check");
	if (info->encrypted)
		puts("encrypted:      yes");
}

static void print_layer(const struct layer *layer)
{
	const struct img_info *info = &layer->info;
	char text[HEX_TEXT_BYTES];

	print_name("file:", img_path(layer->img));
	if (layer->snapshot)
		print_name("snapshot:", layer->snapshot);
	print_name("format:", info->format);
	print_bytes("virtual size:", info->virtual_bytes);
	print_bytes("file size:", info->file_bytes);
	print_bytes("allocated:", info->allocated_bytes);
	if (info->block_bytes)
		print_bytes("block size:", info->block_bytes);
	if (info->compression[0] && strcmp(info->compression, "none") != 0)
		print_name("compression:", info->compression);
	if (info->has_uuid)
		print_name("uuid:", output_uuid(info->uuid, text));
	if (has_hash(info))
		print_name("content hash:", output_hex(info->hash, sizeof(info->hash), text));
	if (info->vmstate_bytes)
		print_bytes("vm state:", info->vmstate_bytes);
	print_details(layer->details);
	print_state(info);
	if (info->has_backing)
		print_backing(info);
	if (layer->snapshots.nr) {
		printf("\nsnapshots:\n");
		snapshots_print(&layer->snapshots);
	}
	if (layer->bitmaps.nr) {
		printf("\nbitmaps:\n");
		bitmaps_print(&layer->bitmaps);
	}
}

/* ---- the verb ---------------------------------------------------------------------------------------------------- */

static int describe_chain(const struct info_args *args, struct img *img)
{
	json_t *chain = json_array();
	struct layer layer;
	int status = EXIT_DONE;
	bool first = true;

	for (; img && status == EXIT_DONE; img = img_backing(img), first = false) {
		status = load(&layer, img, &args->common);
		if (status == EXIT_DONE && args->common.json) {
			json_array_append_new(chain, json_layer(&layer));
		} else if (status == EXIT_DONE) {
			if (!first)
				putchar('\n');
			print_layer(&layer);
		}
		unload(&layer);
	}
	if (status == EXIT_DONE && args->common.json)
		return output_json(json_pack("{s:o}", "chain", chain));
	json_decref(chain);
	return status;
}

static int describe(const struct info_args *args, struct img *img)
{
	struct layer layer;
	int status = load(&layer, img, &args->common);

	if (status == EXIT_DONE && args->common.json)
		status = output_json(json_layer(&layer));
	else if (status == EXIT_DONE)
		print_layer(&layer);
	unload(&layer);
	return status;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct info_args *args = verb_args;
	struct opened o;
	int status = opened_begin(&o, verb, &args->common, operands[0], args->chain ? 0 : IMG_OPEN_NO_BACKING);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	return opened_end(&o, args->chain ? describe_chain(args, o.img) : describe(args, o.img));
}

const struct cli_verb verb_info = {
	.name = "info",
	.operands = "FILE[@SNAP]",
	.summary = "Says what an image is: format, sizes, state, parent, snapshots",
	.details = "Opens FILE alone: a parent is described as FILE records it. With --chain the parents are opened, "
		   "under the policy of --allow-refs, and described each in turn; --json then prints {\"chain\": "
		   "[...]}, FILE first.",
	.example = PROGRAM " info web1.limg\n" PROGRAM " info --chain --json web1.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_SNAPSHOT | WITH_JSON,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct info_args),
	.run = run,
};
