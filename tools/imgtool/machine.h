/* SPDX-License-Identifier: MIT */
/* An image that imgvm runs a machine from: what would change it is asked of the machine (tools/control/control.h). */
#ifndef IMGTOOL_MACHINE_H
#define IMGTOOL_MACHINE_H

#include <jansson.h>

#include "args.h"

/* Connects to the machine that owns the image. -1: none does, or it does not answer us; the image is opened then, and
 * says who holds it. */
int machine_connect(const char *path);
/*
 * Sends {"command": command, "name": name, key: value}, waits for the answer, and closes fd. key may be NULL. print may
 * be NULL. Returns an exit status; a failure is reported.
 */
int machine_ask(int fd, const char *path, const struct common_args *common, void (*print)(const json_t *answer),
		const char *command, const char *name, const char *key, const char *value);

#endif
