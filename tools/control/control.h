/* SPDX-License-Identifier: MIT */
/*
 * How programs talk to a running imgvm: a Unix socket that is found by the image, and lines of JSON.
 *
 * The socket is RUNTIME/imgvm/DEV-INO.sock, DEV and INO in hex: of the first disk's file, so that every name of the
 * file finds it and a copy of it does not. A machine that does not own the image (transient or read-only: there may be
 * many of them) is at DEV-INO-PID.sock. RUNTIME is $XDG_RUNTIME_DIR, or /run where that is not set or not there and we
 * are root, else /tmp/imgvm-UID. The folder in it belongs to us and only we may write it, or it is refused.
 *
 * A request is one object on a line: {"command": "snapshot", "name": "before"}; the answer is one object on a line:
 * {"ok": true, ...} or
 * {"ok": false, "code": IMG_E_..., "error": "one line"}. Commands: status, pause, resume, snapshot (name; disk_only,
 * optional: without it as the format of the image can), revert (name; save, optional: keep the present state under this
 * name first), delete (name), rename (name, new_name), powerdown, reset, quit. One request at a time on a connection.
 */
#ifndef TOOLS_CONTROL_H
#define TOOLS_CONTROL_H

#include <jansson.h>
#include <sys/types.h>

#include "libimg.h"

#define CONTROL_MAX_LINE   65536
#define CONTROL_PATH_BYTES 108 /* sun_path of struct sockaddr_un */

/* The path of the socket of a new machine that runs from the file at `image`; the folder is made. pid 0: it owns the
 * image; else it shares it. */
int control_path(const char *image, pid_t pid, char out[CONTROL_PATH_BYTES], struct img_error *err);
/* The path of another file in the folder of the sockets, which is made. */
int control_file(const char *name, char out[CONTROL_PATH_BYTES], struct img_error *err);
/* Connects to the machine that owns the image. NOENT: none does. *fd is the caller's. */
int control_connect(const char *image, int *fd, struct img_error *err);
/* As control_connect(), also to a machine that shares the image: to that one, or, with pid 0, to the only one that
 * there is. LIMIT: there are several, and the message lists them. */
int control_connect_any(const char *image, pid_t pid, int *fd, struct img_error *err);
/*
 * Sends a request (borrowed) and waits for the answer. On success *answer is the caller's (json_decref); an answer with
 * "ok": false becomes its code and message. IO: the machine went away. CANCELLED: a signal came.
 */
int control_call(int fd, json_t *request, json_t **answer, struct img_error *err);
/* Connects to a socket by its path. NOENT: nobody listens. Server and client belong to one user, or one of them to
 * root; REFUSED else. */
int control_dial(const char *path, int *fd, struct img_error *err);

#endif
