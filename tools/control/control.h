/* SPDX-License-Identifier: MIT */
/*
 * How programs talk to a running imgvm: a Unix socket that is found by the image, and lines of JSON.
 *
 * The socket is RUNTIME/imgvm/DEV-INO.sock, DEV and INO in hex: of the first disk's file, so that every name of the
 * file finds it and a copy of it does not. RUNTIME is $XDG_RUNTIME_DIR, or /run where that is not set and we are root,
 * or /tmp/imgvm-UID (mode 0700, ours, or it is refused).
 *
 * A request is one object on a line: {"command": "snapshot", "name": "before"}; the answer is one object on a line:
 * {"ok": true, ...} or
 * {"ok": false, "code": IMG_E_..., "error": "one line"}. Commands: status, pause, resume, snapshot (name, disk_only),
 * revert (name), delete (name), rename (name, new_name), powerdown, reset, quit. One request at a time on a connection.
 */
#ifndef TOOLS_CONTROL_H
#define TOOLS_CONTROL_H

#include <jansson.h>

#include "libimg.h"

#define CONTROL_MAX_LINE 65536

/* The path of the socket for the file at `image`, in out (108 bytes: sun_path). create: makes the folder. */
int control_path(const char *image, bool create, char out[108], struct img_error *err);
/* Connects to the machine that runs from the file. NOENT: none does. *fd is the caller's. */
int control_connect(const char *image, int *fd, struct img_error *err);
/*
 * Sends a request (borrowed) and waits for the answer. On success *answer is the caller's (json_decref); an answer with
 * "ok": false becomes its code and message. IO: the machine went away.
 */
int control_call(int fd, json_t *request, json_t **answer, struct img_error *err);

#endif
