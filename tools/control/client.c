/* SPDX-License-Identifier: MIT */
/* The client's end of a control socket. See control.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "control.h"
#include "fail.h"

int control_dial(const char *path, int *fd, struct img_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct ucred peer;
	socklen_t peer_bytes = sizeof(peer);
	int sock;

	if (strlen(path) >= sizeof(addr.sun_path))
		return fail(err, IMG_E_LIMIT, "%s: the name is too long for a socket", path);
	strcpy(addr.sun_path, path);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return fail_errno(err, "control socket");
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
		int code = errno == ENOENT || errno == ECONNREFUSED ?
				   fail(err, IMG_E_NOENT, "%s: nobody listens", path) :
				   fail_errno(err, "%s", path);

		close(sock);
		return code;
	}
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &peer_bytes) != 0 ||
	    (peer.uid != geteuid() && peer.uid != 0 && geteuid() != 0)) {
		close(sock);
		return fail(err, IMG_E_REFUSED, "%s: the machine there belongs to somebody else", path);
	}
	*fd = sock;
	return 0;
}

static int send_all(int fd, const char *data, size_t bytes, struct img_error *err)
{
	while (bytes > 0) {
		ssize_t done = send(fd, data, bytes, MSG_NOSIGNAL);

		if (done < 0)
			return errno == EINTR ? fail(err, IMG_E_CANCELLED, "interrupted") :
						fail_errno(err, "the machine went away");
		data += done;
		bytes -= (size_t)done;
	}
	return 0;
}

/* Reads up to and without the newline into a line of CONTROL_MAX_LINE bytes. */
static int receive_line(int fd, char *line, size_t *bytes, struct img_error *err)
{
	char *newline;

	for (*bytes = 0;;) {
		ssize_t got = recv(fd, line + *bytes, CONTROL_MAX_LINE - *bytes, 0);

		if (got < 0)
			return errno == EINTR ? fail(err, IMG_E_CANCELLED, "interrupted") :
						fail_errno(err, "the machine went away");
		if (got == 0)
			return fail(err, IMG_E_IO, "the machine went away without an answer");
		newline = memchr(line + *bytes, '\n', (size_t)got);
		*bytes += (size_t)got;
		if (newline) {
			*bytes = (size_t)(newline - line);
			return 0;
		}
		if (*bytes == CONTROL_MAX_LINE)
			return fail(err, IMG_E_IO, "the machine's answer is too long");
	}
}

/* What the machine says of a failure: its code, if that is one, and its words. */
static int refusal(const json_t *answer, struct img_error *err)
{
	const char *text = json_string_value(json_object_get(answer, "error"));
	json_int_t code = json_integer_value(json_object_get(answer, "code"));

	if (code >= 0 || code < IMG_E_CANCELLED)
		code = IMG_E_IO;
	return fail(err, (int)code, "%s", text ? text : img_strerror((int)code));
}

int control_call(int fd, json_t *request, json_t **answer, struct img_error *err)
{
	char *line = json_dumps(request, JSON_COMPACT);
	size_t bytes;
	int code;

	*answer = NULL;
	if (!line)
		return fail(err, IMG_E_NOMEM, "a request to the machine");
	code = send_all(fd, line, strlen(line), err);
	free(line);
	if (code == 0)
		code = send_all(fd, "\n", 1, err);
	if (code != 0)
		return code;
	line = malloc(CONTROL_MAX_LINE);
	if (!line)
		return fail(err, IMG_E_NOMEM, "an answer of the machine");
	code = receive_line(fd, line, &bytes, err);
	if (code == 0) {
		*answer = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);
		if (!json_is_object(*answer))
			code = fail(err, IMG_E_IO, "the machine's answer makes no sense");
		else if (!json_is_true(json_object_get(*answer, "ok")))
			code = refusal(*answer, err);
	}
	free(line);
	if (code != 0) {
		json_decref(*answer);
		*answer = NULL;
	}
	return code;
}
