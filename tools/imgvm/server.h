/* SPDX-License-Identifier: MIT */
/* The machine's end of the control socket (tools/control/control.h): listens, takes lines, hands requests to its owner,
 * all from the owner's poll loop. Nothing here waits for a client. */
#ifndef IMGVM_SERVER_H
#define IMGVM_SERVER_H

#include <jansson.h>
#include <poll.h>

#include "libimg.h"

#define SERVER_MAX_CLIENTS 8
#define SERVER_MAX_FDS	   (SERVER_MAX_CLIENTS + 1)

struct server; /* opaque */

/* Answers a request (borrowed): returns an object, which the server sends and frees. */
typedef json_t *(*server_fn)(void *ctx, json_t *request);

/* Binds the socket of the image, in place of one that nobody listens to any more. shared: there may be other machines
 * on it, so that the socket is one of this process. BUSY: a machine runs from it. */
int server_open(const char *image, bool shared, server_fn fn, void *ctx, struct server **out, struct img_error *err);
void server_close(struct server *server); /* removes the socket; NULL is allowed */
/* The folder of the socket, open: where the sandbox has to allow that a file is removed. */
int server_folder(const struct server *server);
/* {"ok": false, ...} from a failure. */
json_t *server_refusal(const struct img_error *err);
/* Fills what to wait for; returns how many. */
unsigned server_poll_fds(struct server *server, struct pollfd *out);
/* After poll(): the same array. */
void server_handle(struct server *server, const struct pollfd *fds, unsigned nr);

#endif
