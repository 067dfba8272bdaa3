/* SPDX-License-Identifier: MIT */
/*
 * See server.h. Clients are processes of our user, or root, and still not trusted with anything but what they ask: a
 * line has a maximal length, an answer is kept until the client takes it and nothing more is read from it before, and
 * when all places are taken the client that has been silent longest loses its own.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control.h"
#include "fail.h"

#define IN_STEP 4096u /* what a client's line is given room for at a time */

struct client {
	int fd; /* -1: place is free */
	char *in;
	size_t in_used, in_cap;
	char *out; /* answer being sent; NULL: none */
	size_t out_bytes, out_done;
	bool last;	 /* closes when the answer is sent: end of input, or a line too long */
	uint64_t active; /* when it last said something, by the server's count */
};

struct server {
	int fd, folder;
	char name[CONTROL_PATH_BYTES]; /* in the folder */
	server_fn fn;
	void *ctx;
	uint64_t count;
	struct client client[SERVER_MAX_CLIENTS];
};

json_t *server_refusal(const struct img_error *err)
{
	json_t *text = json_string(err->msg);

	/* a file name in it may not be UTF-8 */
	if (!text)
		text = json_string(img_strerror(err->code));
	return json_pack("{s:b, s:i, s:o}", "ok", 0, "code", err->code, "error", text);
}

/* ---- the socket -------------------------------------------------------------------------------------------------- */

static int bind_to(struct server *s, const char *path, struct img_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int other;

	strcpy(addr.sun_path, path); /* of CONTROL_PATH_BYTES */
	s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->fd < 0)
		return fail_errno(err, "control socket");
	if (bind(s->fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
		if (errno != EADDRINUSE)
			return fail_errno(err, "%s", path);
		if (control_dial(path, &other, NULL) == 0) {
			close(other);
			return fail(err, IMG_E_BUSY, "another machine runs from it");
		}
		if (unlink(path) != 0 || bind(s->fd, (struct sockaddr *)&addr, sizeof(addr)) != 0)
			return fail_errno(err, "%s", path);
	}
	if (chmod(path, S_IRUSR | S_IWUSR) != 0 || listen(s->fd, SERVER_MAX_CLIENTS) != 0)
		return fail_errno(err, "%s", path);
	return 0;
}

int server_open(const char *image, bool shared, server_fn fn, void *ctx, struct server **out, struct img_error *err)
{
	char path[CONTROL_PATH_BYTES], *slash;
	struct server *s;
	int code = control_path(image, shared ? getpid() : 0, path, err);

	*out = NULL;
	if (code != 0)
		return code;
	s = calloc(1, sizeof(*s));
	if (!s)
		return fail(err, IMG_E_NOMEM, "control socket");
	s->fd = -1;
	s->fn = fn;
	s->ctx = ctx;
	for (unsigned i = 0; i < SERVER_MAX_CLIENTS; i++)
		s->client[i].fd = -1;
	code = bind_to(s, path, err);
	slash = strrchr(path, '/');
	strcpy(s->name, slash + 1);
	*slash = '\0';
	s->folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (code == 0 && s->folder < 0)
		code = fail_errno(err, "%s", path);
	if (code != 0) {
		if (code == IMG_E_BUSY)
			s->name[0] = '\0'; /* somebody else's */
		server_close(s);
		return code;
	}
	*out = s;
	return 0;
}

static void drop(struct client *c)
{
	close(c->fd);
	free(c->in);
	free(c->out);
	*c = (struct client){ .fd = -1 };
}

void server_close(struct server *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < SERVER_MAX_CLIENTS; i++) {
		if (s->client[i].fd >= 0)
			drop(&s->client[i]);
	}
	if (s->folder >= 0) {
		if (s->name[0])
			unlinkat(s->folder, s->name, 0);
		close(s->folder);
	}
	if (s->fd >= 0)
		close(s->fd);
	free(s);
}

int server_folder(const struct server *s)
{
	return s->folder;
}

/* ---- clients ----------------------------------------------------------------------------------------------------- */

/* Sends what the socket takes. */
static void send_some(struct client *c)
{
	while (c->out_done < c->out_bytes) {
		ssize_t n = send(c->fd, c->out + c->out_done, c->out_bytes - c->out_done, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			drop(c);
			return;
		}
		c->out_done += (size_t)n;
	}
	free(c->out);
	c->out = NULL;
	if (c->last)
		drop(c);
}

/* Takes the answer (NULL: no memory for it). */
static void answer(struct client *c, json_t *object)
{
	char *text = object ? json_dumps(object, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
	size_t bytes = text ? strlen(text) : 0;

	json_decref(object);
	c->out = text && bytes + 1 < CONTROL_MAX_LINE ? realloc(text, bytes + 1) : NULL;
	if (!c->out) {
		free(text);
		drop(c);
		return;
	}
	c->out[bytes] = '\n';
	c->out_bytes = bytes + 1;
	c->out_done = 0;
	send_some(c);
}

static void refuse(struct client *c, const char *why)
{
	struct img_error err = { .code = IMG_OK };

	fail(&err, IMG_E_INVALID, "%s", why);
	answer(c, server_refusal(&err));
}

static void handle_line(struct server *s, struct client *c, const char *line, size_t bytes)
{
	json_t *request = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);

	if (json_is_object(request))
		answer(c, s->fn(s->ctx, request));
	else
		refuse(c, "the request is not a JSON object on one line");
	json_decref(request);
}

/* Handles the lines that are there, as long as the client takes the answers. */
static void handle_lines(struct server *s, struct client *c)
{
	while (c->fd >= 0 && !c->out && c->in_used) {
		char *newline = memchr(c->in, '\n', c->in_used);
		size_t bytes;

		if (!newline)
			break;
		bytes = (size_t)(newline - c->in);
		handle_line(s, c, c->in, bytes);
		if (c->fd < 0)
			return;
		c->in_used -= bytes + 1;
		memmove(c->in, c->in + bytes + 1, c->in_used);
	}
	if (c->fd >= 0 && !c->out && c->in_used >= CONTROL_MAX_LINE) {
		c->last = true;
		refuse(c, "the request is too long");
	}
	if (c->fd >= 0 && !c->out && c->last)
		drop(c);
}

static bool make_room(struct client *c)
{
	char *grown;

	if (c->in_used < c->in_cap)
		return true;
	grown = realloc(c->in, c->in_cap + IN_STEP);
	if (!grown)
		return false;
	c->in = grown;
	c->in_cap += IN_STEP;
	return true;
}

static void receive(struct server *s, struct client *c)
{
	ssize_t n;

	c->active = ++s->count;
	if (!make_room(c)) {
		drop(c);
		return;
	}
	n = recv(c->fd, c->in + c->in_used, c->in_cap - c->in_used, MSG_DONTWAIT);
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			drop(c);
		return;
	}
	if (n == 0)
		c->last = true; /* what it asked is still answered */
	c->in_used += (size_t)n;
	handle_lines(s, c);
}

static struct client *free_place(struct server *s)
{
	struct client *oldest = &s->client[0];

	for (unsigned i = 0; i < SERVER_MAX_CLIENTS; i++) {
		struct client *c = &s->client[i];

		if (c->fd < 0)
			return c;
		if (c->active < oldest->active)
			oldest = c;
	}
	drop(oldest);
	return oldest;
}

static void accept_client(struct server *s)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	struct client *c;
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return; /* it went away, or there are no descriptors: nothing that we could do */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0 || (peer.uid != geteuid() && peer.uid != 0)) {
		close(fd);
		return;
	}
	c = free_place(s);
	c->fd = fd;
	c->active = ++s->count;
}

/* ---- poll -------------------------------------------------------------------------------------------------------- */

unsigned server_poll_fds(struct server *s, struct pollfd *out)
{
	unsigned nr = 0;

	out[nr++] = (struct pollfd){ .fd = s->fd, .events = POLLIN };
	for (unsigned i = 0; i < SERVER_MAX_CLIENTS; i++) {
		const struct client *c = &s->client[i];

		if (c->fd >= 0)
			out[nr++] = (struct pollfd){ .fd = c->fd, .events = c->out ? POLLOUT : POLLIN };
	}
	return nr;
}

static struct client *find(struct server *s, int fd)
{
	for (unsigned i = 0; i < SERVER_MAX_CLIENTS; i++) {
		if (s->client[i].fd == fd)
			return &s->client[i];
	}
	return NULL;
}

static void handle_client(struct server *s, struct client *c, short events)
{
	if (c->out) {
		if (events & (POLLERR | POLLNVAL | POLLHUP)) {
			drop(c);
			return;
		}
		send_some(c);
		if (c->fd >= 0)
			handle_lines(s, c);
		return;
	}
	receive(s, c);
}

void server_handle(struct server *s, const struct pollfd *fds, unsigned nr)
{
	for (unsigned i = 1; i < nr; i++) {
		struct client *c = fds[i].revents ? find(s, fds[i].fd) : NULL;

		if (c)
			handle_client(s, c, fds[i].revents);
	}
	/* last: its descriptor may be the number of one that was just closed */
	if (nr > 0 && (fds[0].revents & POLLIN))
		accept_client(s);
}
