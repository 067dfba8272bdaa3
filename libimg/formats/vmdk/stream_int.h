/* SPDX-License-Identifier: MIT */
/* What stream_read.c and stream_check.c share. */
#ifndef VMDK_STREAM_INT_H
#define VMDK_STREAM_INT_H

#include "lookup.h"
#include "stream.h"

struct vmdk_stream {
	struct lookup lookup;
	struct vmdk_header head; /* as the file begins */
	struct vmdk_header h;	 /* that counts: the footer's, where there is one */
	bool has_footer;
};

#define VMDK_FOOTER_BYTES (3u * VMDK_SECTOR_BYTES) /* its marker, itself, and the end's marker */

/* Rules of format-spec/vmdk.md, for findings. */
#define VMDK_RULE_FOOTER    "VMDK-40"
#define VMDK_RULE_MARKERS   "VMDK-41"
#define VMDK_RULE_GRAIN_OF  "VMDK-42"
#define VMDK_RULE_GRAIN	    "VMDK-43"
#define VMDK_RULE_ORDER	    "VMDK-44"
#define VMDK_RULE_LEAK	    "VMDK-45"
#define VMDK_RULE_SECOND_GD "VMDK-46"
#define VMDK_RULE_ENTRY	    "VMDK-47"

/*
 * The footer of the extent whose head is given. *found: the last sectors hold one; then *out is it, and agrees with the
 * head in all that matters. IMG_E_CORRUPT: the head needs one, and there is none, or it is damaged.
 */
int vmdk_stream_footer(struct node *file, const struct vmdk_header *head, struct vmdk_header *out, bool *found,
		       struct img_error *err);
/* l as far as h and the size of the file say it; not its node and file. */
void vmdk_stream_tables(struct lookup *l, const struct vmdk_header *h, uint64_t file_bytes);

#endif
