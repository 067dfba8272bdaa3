/* SPDX-License-Identifier: MIT */
/*
 * The broker of a confined process (host_remote.c; host_wire.h has the protocol). It opens what it was told to grant,
 * and what images name under the policy that it was told; nothing that it hears widens either. The other end may be in
 * a stranger's hands.
 *
 * What may be spoken of stands in a list (host_list.c): each name of the command line with its rights; each reference
 * that was opened, with the way that led there, so that it is opened once more (by commit, for writing) under the same
 * policy and not by its bare path; each data file that is to be made. A request names an entry by its path or is
 * refused, so that a relative reference can only start in the folder of a file that was granted or reached from one.
 *
 * What the other end can still do, and must be allowed to: open for reading what lies under the policy; beside each
 * image that it may write, open for writing as many data files as the rules say, and beside each one that it makes,
 * make as many; with IMG_HOST_WRITE_PARENTS open for writing what it reached by a reference.
 *
 * When the other end goes, temporary files that are left are removed, and data files that have their names while their
 * image has not. Nothing is published for one that has gone.
 */
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker.h"
#include "env_host.h"
#include "error.h"
#include "holders.h"
#include "host_list.h"
#include "host_wire.h"

#define LAYER		 "broker"
#define REQUESTS_DEFAULT 4096u
/* A disk of 2 TiB in files of 2 GiB. */
#define DATA_FILES_DEFAULT 1024u

struct server {
	int socket;
	enum img_refs refs;
	unsigned flags;
	uint64_t max_requests, nr_requests;
	size_t max_data_files;
	int64_t peer_pid;
	struct host_list list;
	struct wire_request request;
	struct wire_answer answer;
	int fd; /* to be sent with the answer, or -1 */
};

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static int refused(const char *path, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER, "%s: %s", path, what);
}

static enum img_refs stricter(enum img_refs a, enum img_refs b)
{
	return a < b ? a : b;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* What an image names, once more; a parent that is written (commit) may be a device where any reference may. */
static int open_reference_again(struct server *s, struct host_entry *e, bool writable, struct img_error *err)
{
	char *resolved;
	int ret;

	if (writable && !(s->flags & IMG_HOST_WRITE_PARENTS) && !(e->rights & IMG_GRANT_WRITE))
		return refused(e->path, "may not be opened for writing", err);
	if (!writable)
		ret = broker_open(e->child, e->name, e->refs, &s->fd, &resolved, err);
	else if (e->refs == IMG_REFS_ANY)
		return broker_open_named(e->path, true, &s->fd, err);
	else
		ret = broker_open_writable(e->child, e->name, e->refs, &s->fd, &resolved, err);
	if (ret == 0)
		free(resolved);
	return ret;
}

static int serve_open_meant(struct server *s, const char *path, bool writable, struct img_error *err)
{
	struct host_entry *e =
		host_list_find(&s->list, path, writable ? IMG_GRANT_WRITE : IMG_GRANT_READ | IMG_GRANT_WRITE);
	int ret;

	if (!e)
		e = host_list_reference(&s->list, path, false);
	if (!e)
		return refused(path,
			       host_list_find(&s->list, path, 0) ?
				       "was not granted for that" :
				       "was not granted to this process, which may open no other files",
			       err);
	ret = e->name ? open_reference_again(s, e, writable, err) : broker_open_named(e->path, writable, &s->fd, err);
	if (ret == 0) {
		host_entry_opened(e, s->fd);
		if (writable)
			e->rights |= IMG_GRANT_WRITE;
	}
	return ret;
}

static void answer_text(struct server *s, const char *text)
{
	size_t bytes = strlen(text) + 1;

	if (bytes > sizeof(s->answer.text))
		return;
	memcpy(s->answer.text, text, bytes);
	s->answer.text_bytes = (uint32_t)bytes;
}

/* A folder may be an image: then the file in it that is meant was granted, too, and goes by its own name from here on. */
static int serve_open(struct server *s, const char *path, bool writable, struct img_error *err)
{
	char *meant = broker_meant(path);
	int ret = meant ? serve_open_meant(s, meant, writable, err) : no_memory(err);

	if (ret == 0)
		answer_text(s, meant);
	free(meant);
	return ret;
}

/* What is opened for writing on an image's behalf is its data file. */
static int remember_reference(struct server *s, const char *child, const char *name, enum img_refs refs,
			      const char *resolved, bool is_data, struct img_error *err)
{
	struct host_entry *e = host_list_reference(&s->list, resolved, is_data);

	if (!e) {
		e = host_list_add(&s->list, resolved, is_data ? IMG_GRANT_READ | IMG_GRANT_WRITE : IMG_GRANT_READ, err);
		if (!e)
			return IMG_E_NOMEM;
		e->refs = refs;
		e->is_data = is_data;
		e->child = strdup(child);
		e->name = strdup(name);
		if (!e->child || !e->name) {
			host_list_drop_last(&s->list);
			return no_memory(err);
		}
	}
	host_entry_opened(e, s->fd);
	return 0;
}

static int serve_open_ref(struct server *s, const char *child, const char *name, struct img_error *err)
{
	enum img_refs refs = stricter(s->refs, (enum img_refs)s->request.head.refs);
	bool writable = s->request.head.number & 1;
	struct host_entry *by = writable ? host_list_written(&s->list, child, IMG_GRANT_WRITE) :
					   host_list_find(&s->list, child, 0);
	char *resolved = NULL;
	int ret;

	if (!by)
		return refused(child,
			       writable ? "is not written: what it names may not be opened for writing" :
					  "was not granted to this process: it names nothing",
			       err);
	ret = writable ? host_entry_claim(by, name, s->max_data_files, err) : 0;
	if (ret == 0)
		ret = writable ? broker_open_writable(child, name, refs, &s->fd, &resolved, err) :
				 broker_open(child, name, refs, &s->fd, &resolved, err);
	if (ret != 0)
		return ret;
	ret = remember_reference(s, child, name, refs, resolved, writable, err);
	if (ret == 0)
		answer_text(s, resolved);
	free(resolved);
	return ret;
}

static int serve_create(struct server *s, const char *path, struct img_error *err)
{
	struct host_entry *e = host_list_find(&s->list, path, IMG_GRANT_CREATE);
	int ret;

	if (!e || e->temp)
		return refused(path, e ? "is being made already" : "no file may be made of that name", err);
	ret = env_host_create_fd(path, &s->fd, &e->temp, err);
	if (ret != 0)
		return ret;
	host_entry_opened(e, s->fd);
	answer_text(s, e->temp);
	return 0;
}

/* Has the other end gone, with its last request still in the socket? */
static bool is_alone(const struct server *s)
{
	struct pollfd p = { .fd = s->socket };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR));
}

static int serve_publish(struct server *s, const char *path, const char *temp, struct img_error *err)
{
	struct host_entry *e = host_list_find(&s->list, path, IMG_GRANT_CREATE);
	unsigned flags = (unsigned)s->request.head.number;
	int ret;

	if (!e || !e->temp || !temp || strcmp(e->temp, temp) != 0)
		return refused(path, "no such file is being made", err);
	if (flags & ~(unsigned)(IMG_CREATE_OVERWRITE | IMG_CREATE_VOLATILE))
		return refused(path, "unknown flags", err);
	if ((flags & IMG_CREATE_OVERWRITE) && !(e->rights & IMG_GRANT_OVERWRITE))
		return refused(path, "may not be replaced", err);
	if (is_alone(s))
		return refused(path, "nobody waits for it", err);
	ret = image_env_host.publish(image_env_host.ctx, e->temp, e->path, flags, err);
	if (ret >= 0) {
		free(e->temp);
		e->temp = NULL;
		if (e->is_data)
			e->made = true;
		else
			host_list_settle(&s->list, e->path);
	}
	if (ret != PUBLISHED_NOT_DURABLE)
		return ret;
	s->answer.number[0] = 1;
	return IMG_E_IO;
}

static int serve_discard(struct server *s, const char *path, struct img_error *err)
{
	struct host_entry *e = host_list_temp(&s->list, path);

	if (e) {
		host_entry_drop_temp(e);
		return 0;
	}
	e = host_list_find(&s->list, path, IMG_GRANT_CREATE);
	if (!e || !e->is_data || !e->made)
		return refused(path, "was not made here", err);
	host_entry_take_back(e);
	return 0;
}

static int serve_check_target(struct server *s, const char *path, struct img_error *err)
{
	struct host_entry *e = host_list_find(&s->list, path, IMG_GRANT_CREATE);
	bool overwrite = s->request.head.number & 1;

	if (!e)
		return refused(path, "no file may be made of that name", err);
	if (overwrite && !(e->rights & IMG_GRANT_OVERWRITE))
		return refused(path, "may not be replaced", err);
	return image_env_host.check_target(image_env_host.ctx, e->path, overwrite, err);
}

static int serve_new_path(struct server *s, const char *child, const char *name, struct img_error *err)
{
	enum img_refs refs = stricter(s->refs, (enum img_refs)s->request.head.refs);
	struct host_entry *by = host_list_written(&s->list, child, IMG_GRANT_CREATE), *e;
	char *path;
	int ret;

	if (!by)
		return refused(child, "is not being made: neither is what it names", err);
	ret = host_entry_claim(by, name, s->max_data_files, err);
	if (ret == 0)
		ret = broker_new_path(child, name, refs, &path, err);
	if (ret != 0)
		return ret;
	e = host_list_find(&s->list, path, IMG_GRANT_CREATE);
	if (!e) {
		e = host_list_add(&s->list, path, IMG_GRANT_CREATE, err);
		if (e) {
			e->is_data = true;
			e->child = strdup(child);
			ret = e->child ? 0 : no_memory(err);
		}
	}
	if (e && ret == 0)
		answer_text(s, path);
	free(path);
	return e ? ret : IMG_E_NOMEM;
}

static int serve_identify(struct server *s, const char *path, struct img_error *err)
{
	struct host_stat host;

	if (!host_list_find(&s->list, path, 0))
		return refused(path, "was not granted to this process", err);
	if (!image_env_host.identify(image_env_host.ctx, path, &host))
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "%s: no such file", path);
	s->answer.number[0] = host.dev;
	s->answer.number[1] = host.ino;
	return 0;
}

static int serve_holder(struct server *s, const char *path, struct img_error *err)
{
	struct host_entry *e = host_list_temp(&s->list, path);
	struct holder holder = { .pid = 0 };

	if (!e)
		e = host_list_opened(&s->list, path);
	if (!e)
		return refused(path, "was not opened by this process", err);
	if (!holder_of_file(e->dev, e->ino, s->request.head.number, s->peer_pid, s->request.head.fd, &holder))
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "%s: its holder is not known", path);
	s->answer.number[0] = (uint64_t)holder.pid;
	answer_text(s, holder.command);
	return 0;
}

/* ---- packets ----------------------------------------------------------------------------------------------------- */

/* bytes: of the whole packet. b is NULL where there is none. */
static int take_texts(const struct wire_request *r, size_t bytes, const char **a, const char **b, struct img_error *err)
{
	size_t head = offsetof(struct wire_request, text), a_bytes, b_bytes;

	if (bytes < head || bytes > sizeof(*r))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a packet of a wrong size");
	a_bytes = r->head.a_bytes;
	b_bytes = r->head.b_bytes;
	if (a_bytes < 2 || a_bytes > WIRE_PATH_BYTES || b_bytes > WIRE_PATH_BYTES || bytes != head + a_bytes + b_bytes)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a packet of a wrong size");
	*a = r->text;
	*b = b_bytes ? r->text + a_bytes : NULL;
	if (strnlen(*a, a_bytes) != a_bytes - 1 || (*b && strnlen(*b, b_bytes) != b_bytes - 1))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a packet whose text does not end");
	return 0;
}

static int dispatch(struct server *s, size_t bytes, struct img_error *err)
{
	const struct wire_head *head = &s->request.head;
	const char *a = "", *b = NULL;
	int ret = take_texts(&s->request, bytes, &a, &b, err);

	if (ret != 0)
		return ret;
	if (++s->nr_requests > s->max_requests)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "too many requests for files: more than %llu",
				 (unsigned long long)s->max_requests);
	if (b == NULL && (head->what == WIRE_OPEN_REF || head->what == WIRE_PUBLISH || head->what == WIRE_NEW_PATH))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a request without its second text");
	if (head->refs > IMG_REFS_ANY ||
	    (head->refs == IMG_REFS_DEFAULT && (head->what == WIRE_OPEN_REF || head->what == WIRE_NEW_PATH)))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "unknown policy for references");
	switch ((enum wire_what)head->what) {
	case WIRE_OPEN: return serve_open(s, a, head->number & 1, err);
	case WIRE_OPEN_REF: return serve_open_ref(s, a, b, err);
	case WIRE_CREATE: return serve_create(s, a, err);
	case WIRE_PUBLISH: return serve_publish(s, a, b, err);
	case WIRE_DISCARD: return serve_discard(s, a, err);
	case WIRE_CHECK_TARGET: return serve_check_target(s, a, err);
	case WIRE_NEW_PATH: return serve_new_path(s, a, b, err);
	case WIRE_IDENTIFY: return serve_identify(s, a, err);
	case WIRE_HOLDER: return serve_holder(s, a, err);
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "unknown request %u", head->what);
}

/* Sends s->answer and s->fd, which is closed. False: nobody is there. */
static bool send_answer(struct server *s)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct iovec iov = { .iov_base = &s->answer,
			     .iov_len = offsetof(struct wire_answer, text) + s->answer.text_bytes };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;
	ssize_t n;

	if (s->fd >= 0) {
		m.msg_control = control.bytes;
		m.msg_controllen = sizeof(control.bytes);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &s->fd, sizeof(int));
	}
	do
		n = sendmsg(s->socket, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	return n >= 0;
}

static bool answer(struct server *s, size_t bytes)
{
	struct wire_answer *a = &s->answer;
	struct img_error err = { .code = IMG_OK };

	memset(a, 0, offsetof(struct wire_answer, text));
	s->fd = -1;
	a->code = dispatch(s, bytes, &err);
	if (a->code != IMG_OK) {
		if (s->fd >= 0)
			close(s->fd);
		s->fd = -1;
		a->text_bytes = 0;
		a->sys_errno = err.sys_errno;
		a->offset = err.offset;
		memcpy(a->layer, err.layer, sizeof(a->layer));
		memcpy(a->msg, err.msg, sizeof(a->msg));
	}
	return send_answer(s);
}

static int serve(struct server *s, struct img_error *err)
{
	for (;;) {
		/* What does not fit is cut off, and told by the length. Descriptors have no room to come. */
		ssize_t n = recv(s->socket, &s->request, sizeof(s->request), MSG_TRUNC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0 || (n < 0 && errno == ECONNRESET))
			return 0;
		if (n < 0)
			return error_errno(err, errno, NO_OFFSET, LAYER, "cannot receive");
		if (!answer(s, (size_t)n))
			return 0;
	}
}

/* ---- the public face --------------------------------------------------------------------------------------------- */

static int grant(struct server *s, const struct img_grant *g, struct img_error *err)
{
	char *meant;
	int ret = 0;

	if (!g->path)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a grant without a path");
	if (!host_list_add(&s->list, g->path, g->rights, err))
		return IMG_E_NOMEM;
	meant = broker_meant(g->path);
	if (!meant)
		return no_memory(err);
	if (strcmp(meant, g->path) != 0 && !host_list_add(&s->list, meant, g->rights, err))
		ret = IMG_E_NOMEM;
	free(meant);
	return ret;
}

static int prepare(struct server *s, const struct img_host_rules *rules, struct img_error *err)
{
	struct img_host_rules r;
	int ret = image_copy_options(&r, sizeof(r), rules, err);

	if (ret != 0)
		return ret;
	if ((unsigned)r.refs > IMG_REFS_ANY || (r.flags & ~(unsigned)IMG_HOST_WRITE_PARENTS) ||
	    (r.nr_grants > 0 && !r.grants))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "unknown rules");
	s->refs = r.refs == IMG_REFS_DEFAULT ? IMG_REFS_DIR : r.refs;
	s->flags = r.flags;
	s->max_requests = r.max_requests ? r.max_requests : REQUESTS_DEFAULT;
	s->max_data_files = r.max_data_files ? r.max_data_files : DATA_FILES_DEFAULT;
	s->peer_pid = r.peer_pid;
	for (size_t i = 0; i < r.nr_grants; i++) {
		ret = grant(s, &r.grants[i], err);
		if (ret != 0)
			return ret;
	}
	return 0;
}

int img_host_serve(int socket, const struct img_host_rules *rules, struct img_error *err)
{
	struct server *s;
	int ret;

	error_clear(err);
	if (socket < 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "no socket");
	s = calloc(1, sizeof(*s));
	if (!s)
		return no_memory(err);
	s->socket = socket;
	ret = prepare(s, rules, err);
	if (ret == 0)
		ret = serve(s, err);
	host_list_end(&s->list);
	free(s);
	return ret;
}
