/* SPDX-License-Identifier: MIT */
/*
 * What an image was created with is changed in place: its disk, its snapshots and its parent stay what they are, but
 * for the size where that is what is asked. Formats without such options refuse, and so does who is asked for what
 * cannot be; nothing has changed then.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "model.h"

struct amendment {
	char options[128];
	int want;	 /* enum img_code */
	bool may_refuse; /* with UNSUPPORTED, for reasons that the model does not follow */
	bool to_v2, to_v3;
	uint64_t size_bytes; /* of the disk afterwards */
};

static struct mfile *top(struct model *m)
{
	return &m->files[m->top];
}

/* Does version 2 of qcow2 have what the files of this program have? */
static bool fits_v2(const struct geometry *g)
{
	return strstr(g->options, "compat=0.10") ||
	       (strstr(g->options, "refcount_bits=16") && strstr(g->options, "extended_l2=off") &&
		strstr(g->options, "compression_type=zlib"));
}

static void plan_qcow2(struct model *m, const uint32_t *r, struct amendment *a)
{
	const struct mfile *f = top(m);
	uint64_t now = f->head.size_bytes;

	switch (fits_v2(&m->geometry) ? r[0] % 8 : 1 + r[0] % 8) { /* to version 2 more often where that can be */
	case 0:
	case 7:
	case 8:
		snprintf(a->options, sizeof(a->options), "compat=0.10");
		a->to_v2 = true;
		/* The snapshots' zero clusters cannot be written out, their sizes not be told, what has bitmaps not go
		 * back. */
		a->may_refuse = f->nr_snaps > 0 || m->has_bitmaps;
		a->want = fits_v2(&m->geometry) ? 0 : IMG_E_UNSUPPORTED;
		break;
	case 1:
	case 6:
		snprintf(a->options, sizeof(a->options), "compat=1.1");
		a->to_v3 = true;
		break;
	case 2:
		snprintf(a->options, sizeof(a->options), "lazy_refcounts=on");
		a->want = f->is_v2 ? IMG_E_INVALID : 0;
		break;
	case 3: snprintf(a->options, sizeof(a->options), "lazy_refcounts=off"); break;
	case 4:
		snprintf(a->options, sizeof(a->options), "compat=1.1,lazy_refcounts=%s", r[1] & 1 ? "on" : "off");
		a->to_v3 = true;
		break;
	default:
		a->size_bytes = min_u64(now + r[1] % (now + 4096), m->geometry.max_bytes);
		if (r[2] % 4 == 0 && now >= 512) {
			snprintf(a->options, sizeof(a->options), "size=%" PRIu64, now - 512);
			a->want = IMG_E_REFUSED;
			break;
		}
		a->size_bytes = max_u64(a->size_bytes / 512 * 512, now);
		a->to_v3 = r[2] & 8;
		a->may_refuse = f->nr_snaps > 0 && f->is_v2;
		snprintf(a->options, sizeof(a->options), "%ssize=%" PRIu64, a->to_v3 ? "compat=1.1," : "",
			 a->size_bytes);
	}
}

static void plan_vdi(struct model *m, const uint32_t *r, struct amendment *a)
{
	const struct mfile *f = top(m);

	if (r[0] & 1) {
		snprintf(a->options, sizeof(a->options), "uuid=%08x-%04x-4%03x-8%03x-%08x0001", r[1], r[2] & 0xffff,
			 r[2] >> 20, r[3] >> 20, r[3]);
		return;
	}
	snprintf(a->options, sizeof(a->options), "backing_file=%s", f->parent < 0 ? "f0" : m->files[f->parent].name);
	a->want = f->parent < 0 ? IMG_E_INVALID : 0;
}

static void plan(struct model *m, const uint32_t *r, struct amendment *a)
{
	const char *format = top(m)->format->name;

	*a = (struct amendment){ .size_bytes = top(m)->head.size_bytes };
	if (strcmp(format, "qcow2") == 0) {
		plan_qcow2(m, r, a);
	} else if (strcmp(format, "vdi") == 0) {
		plan_vdi(m, r, a);
	} else if (strcmp(format, "vhd") == 0) {
		snprintf(a->options, sizeof(a->options), "size_from=%s", r[0] & 1 ? "footer" : "geometry");
	} else {
		snprintf(a->options, sizeof(a->options), "size=1M");
		a->want = IMG_E_UNSUPPORTED;
	}
	if (r[3] % 16 == 0) { /* no option of any format: all are judged before one is done */
		size_t n = strlen(a->options);

		snprintf(a->options + n, sizeof(a->options) - n, ",no_such_option=1");
		a->want = -1;
	}
}

/* A VHD tells two sizes, and now counts by the other one: smaller, it has the same bytes as far as it goes. */
static int take_vhd_size(struct model *m)
{
	struct flat *head = &top(m)->head;
	uint64_t now = img_size(m->img);

	if (now > round_up(head->size_bytes, 1u << 20) + (1u << 20))
		return fail(m, "amend made a disk of %" PRIu64 " bytes one of %" PRIu64, head->size_bytes, now);
	if (now <= head->size_bytes) {
		flat_resize(head, now);
		return 0;
	}
	/* What was no part of the disk yet is nobody's; it is given a content. */
	while (head->size_bytes < now) {
		struct img_error err = { 0 };
		uint64_t off = head->size_bytes, n = min_u64(now - off, IO_BYTES);

		memset(m->buf, 'g', (size_t)n);
		flat_resize(head, off + n);
		flat_write(head, m->buf, n, off);
		if (expect(m, img_pwrite(m->img, m->buf, n, off, 0, &err), 0, &err, "write to what the size gained") !=
		    0)
			return -1;
	}
	return 0;
}

int op_amend(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct mfile *f = top(m);
	struct amendment a;
	bool is_vhd = strcmp(f->format->name, "vhd") == 0, refused;
	uint64_t was = f->head.size_bytes;
	int ret;

	plan(m, r, &a);
	if (m->verbose)
		printf("      %s\n", a.options);
	ret = img_amend(m->img, a.options, &err);
	if (m->verbose)
		printf("      gives %d\n", ret);
	/* A fixed disk has no room for the size that its geometry tells. */
	refused = (a.may_refuse && ret == IMG_E_UNSUPPORTED) || (is_vhd && ret == IMG_E_INVALID) ||
		  (a.want == -1 && (ret == IMG_E_UNSUPPORTED || ret == IMG_E_INVALID));
	if (!refused && expect(m, ret, a.want == -1 ? IMG_E_UNSUPPORTED : a.want, &err, a.options) != 0)
		return -1;
	if (ret == 0 && is_vhd && take_vhd_size(m) != 0)
		return -1;
	if (ret == 0 && !is_vhd)
		flat_resize(&f->head, a.size_bytes);
	bitmaps_resized(m, m->top, was);
	if (ret == 0 && (a.to_v2 || a.to_v3))
		f->is_v2 = a.to_v2;
	return check_everything(m, m->img, f, "after amend");
}
