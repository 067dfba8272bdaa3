/* SPDX-License-Identifier: MIT */
/* A broker in a thread, so that a sanitizer sees it; this thread is the process that opens no files. */
#ifndef TESTS_UNIT_HOST_FIXTURE_H
#define TESTS_UNIT_HOST_FIXTURE_H

#include "image_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>

static struct {
	pthread_t thread;
	int socket;
	struct img_host_rules rules;
	struct img_error err;
	int ret;
	struct img_host *host;
	int raw;	       /* our end, where no host is connected */
	size_t max_data_files; /* 0: one */
} broker;

static void *serve(void *arg)
{
	(void)arg;
	broker.ret = img_host_serve(broker.socket, &broker.rules, &broker.err);
	close(broker.socket);
	return NULL;
}

static int begin_raw(const struct img_grant *grants, size_t nr, enum img_refs refs, unsigned flags)
{
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	broker.socket = ends[1];
	broker.rules = (struct img_host_rules){ .struct_size = sizeof(broker.rules),
						.grants = grants,
						.nr_grants = nr,
						.refs = refs,
						.flags = flags,
						.max_requests = UINT64_MAX,
						.peer_pid = getpid(),
						.max_data_files = broker.max_data_files ? broker.max_data_files : 1 };
	assert_int_equal(pthread_create(&broker.thread, NULL, serve, NULL), 0);
	broker.raw = ends[0];
	return ends[0];
}

static struct img_host *begin(const struct img_grant *grants, size_t nr, enum img_refs refs, unsigned flags)
{
	assert_ok(img_host_connect(begin_raw(grants, nr, refs, flags), &broker.host, ERR));
	return broker.host;
}

static void end_serving(void)
{
	pthread_join(broker.thread, NULL);
	assert_int_equal(broker.ret, 0);
}

static void end(void)
{
	img_host_disconnect(broker.host);
	end_serving();
}

static void end_raw(void)
{
	close(broker.raw);
	end_serving();
}

static void make_file(const char *name, const char *text)
{
	FILE *f = fopen(in_dir(name), "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

#define GRANT(name, what)                                      \
	(struct img_grant)                                     \
	{                                                      \
		.path = strdup(in_dir(name)), .rights = (what) \
	}
#define NR(a) (sizeof(a) / sizeof((a)[0]))

static void forget(struct img_grant *grants, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		free((char *)(uintptr_t)grants[i].path);
}

#endif
