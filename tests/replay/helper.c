/* SPDX-License-Identifier: MIT */
/*
 * What the guest's busybox lacks:
 *
 *   mark TEXT                  a mark in the log of dm-log-writes, which takes dmsetup ten times as long
 *   marks N PROGRAM [ARG...]   copies what the program prints, and marks each line that does not begin with 'w'; kills
 * the program when N marks are made times FILE...              prints the modification time of each, in nanoseconds,
 * and its name
 *
 * A mark is one word to the kernel: spaces become colons.
 */
#include <fcntl.h>
#include <signal.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int mark(int fd, const char *text)
{
	union {
		struct dm_ioctl head;
		char bytes[sizeof(struct dm_ioctl) + sizeof(struct dm_target_msg) + 160];
	} m = { .head = { .version = { DM_VERSION_MAJOR, 0, 0 }, .data_size = sizeof(m), .name = "log" } };
	size_t at = sizeof(m.head) + sizeof(struct dm_target_msg);

	m.head.data_start = sizeof(m.head); /* a message for sector 0, and its text */
	snprintf(m.bytes + at, sizeof(m) - at, "mark %s", text);
	for (char *c = m.bytes + at + strlen("mark "); *c; c++)
		if (*c == ' ')
			*c = ':';
	return ioctl(fd, DM_TARGET_MSG, &m);
}

static pid_t start(char **argv, int *out)
{
	int fds[2];
	pid_t pid;

	if (pipe(fds) != 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		close(fds[0]);
		execvp(argv[0], argv);
		_exit(127);
	}
	close(fds[1]);
	*out = fds[0];
	return pid;
}

/* What it had said before it was killed is read to the end: it may have done all of that. */
static int marks(int fd, long left, char **argv)
{
	int out, status;
	pid_t pid = start(argv, &out);
	FILE *said = pid > 0 ? fdopen(out, "r") : NULL;
	char line[128];

	while (said && fgets(line, sizeof(line), said)) {
		fputs(line, stdout);
		line[strcspn(line, "\n")] = '\0';
		if (line[0] == 'w' || left == 0)
			continue;
		if (mark(fd, line) != 0)
			return 1;
		if (--left == 0)
			kill(pid, SIGKILL);
	}
	return said && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) ? 0 : 1;
}

static int times(char **names)
{
	struct stat st;

	for (; *names; names++) {
		if (stat(*names, &st) != 0)
			return 1;
		printf("%lld%09ld %s\n", (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, *names);
	}
	return 0;
}

int main(int argc, char **argv)
{
	int fd;

	if (argc > 1 && strcmp(argv[1], "times") == 0)
		return times(argv + 2);
	fd = open("/dev/mapper/control", O_RDWR);
	if (fd >= 0 && argc == 3 && strcmp(argv[1], "mark") == 0 && mark(fd, argv[2]) == 0)
		return 0;
	if (fd >= 0 && argc > 3 && strcmp(argv[1], "marks") == 0)
		return marks(fd, atol(argv[2]), argv + 3);
	perror("replay-helper");
	return 1;
}
