/* SPDX-License-Identifier: MIT */
/*
 * The environment of a process that may open no files: what it needs it asks of a broker (host_serve.c, host_wire.h),
 * and gets as descriptors. From there on all is as in the default environment: locks are taken here, on the
 * descriptions that came, and the nodes are those of the host's file protocol.
 *
 * One request at a time, under the lock. When the broker is gone every request fails by IMG_E_IO; what is open stays
 * usable.
 */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "env_host.h"
#include "error.h"
#include "holders.h"
#include "host_wire.h"

#define LAYER "host"

struct img_host {
	struct image_env env;
	struct host_help help;
	int socket;
	pthread_mutex_t lock;
	struct wire_request request; /* lock */
	struct wire_answer answer;   /* lock */
};

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

/* ---- one request ------------------------------------------------------------------------------------------------- */

static int add_text(struct wire_request *r, uint32_t *at, const char *text, uint32_t *bytes, struct img_error *err)
{
	size_t n = text ? strlen(text) + 1 : 0;

	if (n > WIRE_PATH_BYTES)
		return error_errno(err, ENAMETOOLONG, NO_OFFSET, LAYER, "%s", text);
	if (n > 0)
		memcpy(r->text + *at, text, n);
	*at += (uint32_t)n;
	*bytes = (uint32_t)n;
	return 0;
}

static int gone(int e, struct img_error *err)
{
	return error_set(err, IMG_E_IO, e, NO_OFFSET, LAYER,
			 "the process that opens files for this one has ended, or does not answer");
}

static int take_descriptor(struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	int fd = -1;

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(fd)))
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

static int receive(struct img_host *host, int *fd, struct img_error *err)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct wire_answer *a = &host->answer;
	struct iovec iov = { .iov_base = a, .iov_len = sizeof(*a) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)
	};
	size_t head = offsetof(struct wire_answer, text);
	ssize_t n;

	do
		n = recvmsg(host->socket, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return gone(n < 0 ? errno : 0, err);
	*fd = take_descriptor(&m);
	if ((size_t)n < head || (size_t)n != head + a->text_bytes || (m.msg_flags & MSG_TRUNC) ||
	    (a->text_bytes > 0 && a->text[a->text_bytes - 1] != '\0')) {
		if (*fd >= 0)
			close(*fd);
		*fd = -1;
		return gone(EPROTO, err);
	}
	a->layer[sizeof(a->layer) - 1] = a->msg[sizeof(a->msg) - 1] = '\0';
	return 0;
}

/*
 * Fills the rest of host->request, sends it and waits for host->answer. The caller holds the lock. *fd is the caller's,
 * -1 where none came.
 */
static int ask(struct img_host *host, const char *a, const char *b, int *fd, struct img_error *err)
{
	struct wire_request *r = &host->request;
	uint32_t at = 0;
	ssize_t n;
	int ret = add_text(r, &at, a, &r->head.a_bytes, err);

	*fd = -1;
	if (ret == 0)
		ret = add_text(r, &at, b, &r->head.b_bytes, err);
	if (ret != 0)
		return ret;
	do
		n = send(host->socket, r, offsetof(struct wire_request, text) + at, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	ret = n < 0 ? gone(errno, err) : receive(host, fd, err);
	if (ret != 0 || host->answer.code == IMG_OK)
		return ret;
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	return error_set(err, host->answer.code < 0 ? host->answer.code : IMG_E_IO, host->answer.sys_errno,
			 host->answer.offset, host->answer.layer, "%s", host->answer.msg);
}

/* A request that brings a text (where text is not NULL; malloc()ed) and a descriptor (where fd is not NULL), or both. */
static int call(struct img_host *host, const struct wire_head *head, const char *a, const char *b, int *fd, char **text,
		struct img_error *err)
{
	int ret, got;

	pthread_mutex_lock(&host->lock);
	host->request.head = *head;
	ret = ask(host, a, b, &got, err);
	if (ret == 0 && ((fd && got < 0) || (text && host->answer.text_bytes == 0)))
		ret = gone(EPROTO, err);
	if (ret == 0 && text) {
		*text = strdup(host->answer.text);
		ret = *text ? 0 : no_memory(err);
	}
	pthread_mutex_unlock(&host->lock);
	if (got >= 0 && (ret != 0 || !fd)) {
		close(got);
		got = -1;
	}
	if (fd)
		*fd = got;
	return ret;
}

/* ---- the environment --------------------------------------------------------------------------------------------- */

static int remote_open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			    const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	struct img_host *host = ctx;
	const struct wire_head head = { .what = child_path ? WIRE_OPEN_REF : WIRE_OPEN,
					.refs = refs,
					.number = args->writable };
	struct host_open how = *args;
	int fd, ret;

	*out = NULL;
	*resolved = NULL;
	how.help = &host->help;
	ret = call(host, &head, child_path ? child_path : name, child_path ? name : NULL, &fd, resolved, err);
	if (ret == 0)
		ret = env_host_node(fd, *resolved, &how, out, err);
	if (ret != 0) {
		free(*resolved);
		*resolved = NULL;
	}
	return ret;
}

static void remote_discard_temp(void *ctx, const char *temp_path)
{
	const struct wire_head head = { .what = WIRE_DISCARD };

	(void)call(ctx, &head, temp_path, NULL, NULL, NULL, NULL);
}

static int remote_create_file(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	const struct wire_head head = { .what = WIRE_CREATE };
	struct img_host *host = ctx;
	struct host_open how = ENV_HOST_NEW_FILE;
	int fd, ret;

	*out = NULL;
	*temp_path = NULL;
	how.help = &host->help;
	ret = call(host, &head, path, NULL, &fd, temp_path, err);
	if (ret == 0)
		ret = env_host_node(fd, *temp_path, &how, out, err);
	if (ret != 0 && *temp_path) {
		remote_discard_temp(host, *temp_path);
		free(*temp_path);
		*temp_path = NULL;
	}
	return ret;
}

static int remote_publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	struct img_host *host = ctx;
	int ret, fd;

	pthread_mutex_lock(&host->lock);
	host->request.head = (struct wire_head){ .what = WIRE_PUBLISH, .number = flags };
	host->answer.number[0] = 0; /* where none comes */
	ret = ask(host, path, temp_path, &fd, err);
	if (ret != 0 && host->answer.number[0] == 1)
		ret = PUBLISHED_NOT_DURABLE;
	pthread_mutex_unlock(&host->lock);
	if (fd >= 0)
		close(fd);
	return ret;
}

static int remote_check_target(void *ctx, const char *path, bool overwrite, struct img_error *err)
{
	const struct wire_head head = { .what = WIRE_CHECK_TARGET, .number = overwrite };

	return call(ctx, &head, path, NULL, NULL, NULL, err);
}

static int remote_new_path(void *ctx, const char *child_path, const char *name, enum img_refs refs, char **out,
			   struct img_error *err)
{
	const struct wire_head head = { .what = WIRE_NEW_PATH, .refs = refs };

	*out = NULL;
	return call(ctx, &head, child_path, name, NULL, out, err);
}

/* Where the numbers of an answer are wanted. text: zeroed room for its text, or NULL. */
static bool call_numbers(struct img_host *host, const struct wire_head *head, const char *path, uint64_t number[2],
			 char *text, size_t text_bytes)
{
	int fd;
	bool ok;

	pthread_mutex_lock(&host->lock);
	host->request.head = *head;
	ok = ask(host, path, NULL, &fd, NULL) == 0;
	if (ok) {
		memcpy(number, host->answer.number, sizeof(host->answer.number));
		if (text)
			memccpy(text, host->answer.text_bytes ? host->answer.text : "", 0, text_bytes - 1);
	}
	pthread_mutex_unlock(&host->lock);
	if (fd >= 0)
		close(fd);
	return ok;
}

static bool remote_identify(void *ctx, const char *path, struct host_stat *out)
{
	const struct wire_head head = { .what = WIRE_IDENTIFY };
	uint64_t number[2];

	if (!call_numbers(ctx, &head, path, number, NULL, 0))
		return false;
	*out = (struct host_stat){ .dev = number[0], .ino = number[1] };
	return true;
}

static bool remote_holder(void *ctx, const char *path, int fd, uint64_t byte, struct holder *out)
{
	const struct wire_head head = { .what = WIRE_HOLDER, .number = byte, .fd = fd };
	uint64_t number[2];

	*out = (struct holder){ .pid = 0 };
	if (!call_numbers(ctx, &head, path, number, out->command, sizeof(out->command)))
		return false;
	out->pid = (int64_t)number[0];
	return out->pid > 0;
}

static int remote_open_again(void *ctx, const char *path, bool writable)
{
	const struct wire_head head = { .what = WIRE_OPEN, .number = writable };
	int fd;

	return call(ctx, &head, path, NULL, &fd, NULL, NULL) == 0 ? fd : -1;
}

/* ---- the public face --------------------------------------------------------------------------------------------- */

int img_host_connect(int socket, struct img_host **out, struct img_error *err)
{
	struct img_host *host;

	error_clear(err);
	if (out)
		*out = NULL;
	if (socket < 0 || !out) {
		if (socket >= 0)
			close(socket);
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "no socket, or no place for the host");
	}
	host = calloc(1, sizeof(*host));
	if (!host) {
		close(socket);
		return no_memory(err);
	}
	pthread_mutex_init(&host->lock, NULL);
	host->socket = socket;
	host->help = (struct host_help){ .holder = remote_holder, .open_again = remote_open_again, .ctx = host };
	host->env = (struct image_env){
		.open_file = remote_open_file,
		.create_file = remote_create_file,
		.publish = remote_publish,
		.discard_temp = remote_discard_temp,
		.check_target = remote_check_target,
		.new_path = remote_new_path,
		.identify = remote_identify,
		.ctx = host,
	};
	*out = host;
	return 0;
}

void img_host_disconnect(struct img_host *host)
{
	if (!host)
		return;
	close(host->socket);
	pthread_mutex_destroy(&host->lock);
	free(host);
}

const struct image_env *image_env_of(struct img_host *host)
{
	return host ? &host->env : &image_env_host;
}
