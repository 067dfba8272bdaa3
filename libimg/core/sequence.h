/* SPDX-License-Identifier: MIT */
/*
 * Writing an image from front to back, once: into a pipe, or in a form that cannot be written otherwise. Threads read
 * and pack pieces of the disk side by side; what they made is put into the file in the disk's order, each byte behind
 * the last, by one of them at a time. Memory: SEQUENCE_MEMORY_BYTES and what reading the source takes.
 *
 * The format's part is a struct driver_sequence (driver.h).
 */
#ifndef CORE_SEQUENCE_H
#define CORE_SEQUENCE_H

#include "node.h"

#define SEQUENCE_MEMORY_BYTES (UINT64_C(32) << 20)

/*
 * Writes an image of args->size_bytes with the content of src (NULL: none), and zeros behind its end, into the empty
 * node file, which is neither flushed nor closed. drv->sequence is there. After a failure file holds a part.
 */
int sequence_write(const struct img_driver *drv, struct node *file, const struct driver_create *args, struct img *src,
		   const struct img_copy_options *opts, struct img_error *err);

#endif
