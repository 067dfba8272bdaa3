/* SPDX-License-Identifier: MIT */
/* What an image is: the header, told. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "prl.h"

int prl_image_info(struct node *node, struct img_info *out, struct img_error *err)
{
	struct prl_image *p = prl_image_of(node);

	(void)err;
	out->block_bytes = p->h.cluster_bytes;
	pthread_mutex_lock(&p->header_lock);
	out->dirty = p->h.in_use == PRL_IN_USE && !p->marked;
	pthread_mutex_unlock(&p->header_lock);
	return 0;
}

struct told {
	img_detail_fn fn;
	void *ctx;
};

static void tell_text(const struct told *t, const char *key, const char *text)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_TEXT, .text = text };

	t->fn(t->ctx, &d);
}

static void tell_number(const struct told *t, const char *key, uint64_t number)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_NUMBER, .number = number };

	t->fn(t->ctx, &d);
}

/* Parallels writes a word of four letters there, last one first. */
static void tell_writer(const struct told *t, uint32_t in_use)
{
	char word[5] = "";

	for (unsigned i = 0; i < 4; i++) {
		word[i] = (char)(in_use >> 8 * i & 0xff);
		if (word[i] <= ' ' || word[i] > '~')
			return;
	}
	if (in_use != PRL_IN_USE && in_use != PRL_CLOSED)
		tell_text(t, "closed_by", word);
}

/* Only one that does not follow from the size. The header has no third number. */
static void tell_geometry(const struct told *t, const struct prl_header *h)
{
	struct prl_header made_up = *h;
	char text[64];

	if (prl_header_set_size(&made_up, prl_disk_bytes(h), NULL) == 0 && made_up.heads == h->heads &&
	    made_up.cylinders == h->cylinders)
		return;
	(void)snprintf(text, sizeof(text), "%" PRIu32 "/%" PRIu32 "/%u", h->cylinders, h->heads, PRL_SECTORS_PER_TRACK);
	tell_text(t, "geometry", text);
}

int prl_image_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err)
{
	struct prl_image *p = prl_image_of(node);
	const struct told t = { fn, ctx };
	struct prl_header h = prl_header_now(p);

	(void)err;
	tell_text(&t, "subformat", "expandable");
	tell_number(&t, "version", h.v2 ? 2 : 1);
	tell_writer(&t, h.in_use);
	tell_geometry(&t, &h);
	tell_number(&t, "data_offset", h.data_off);
	if (h.ext_off)
		tell_text(&t, "extended_data", "a Format Extension: dirty bitmaps of backup programs");
	return 0;
}
