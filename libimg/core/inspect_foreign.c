/* SPDX-License-Identifier: MIT */
/*
 * Formats that this build recognises and does not open: what they name, whether copies of their headers agree, and how
 * large they say they are. That is less than a verdict, so each is a finding by itself (unverified-format), which a
 * policy can allow. When a format gets a driver, its look moves there.
 *
 * format-spec/inspect.md says what is looked at.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LAYER "inspect"

/* ---- the small ones ---------------------------------------------------------------------------------------------- */

static int luks(struct inspector *in, struct node *file, struct img_error *err)
{
	return inspect_luks(in, file, 0, node_size(file), err);
}

static const struct foreign {
	const char *format;
	int (*inspect)(struct inspector *in, struct node *file, struct img_error *err);
} table[] = {
	{ "luks", luks },
};

int inspect_foreign(struct inspector *in, const char *format, struct node *file, struct img_error *err)
{
	inspect_found(in, INSPECT_UNVERIFIED, NO_OFFSET, "%s: no more than headers and references are judged", format);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].format, format) == 0)
			return table[i].inspect(in, file, err);
	return 0;
}
