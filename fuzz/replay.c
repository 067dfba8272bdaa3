/* SPDX-License-Identifier: MIT */
/*
 * Makes a plain program of a fuzz target: runs it once on each of the named files, and on those in the named folders.
 * Says which one it is about to run when it dies of it. A folder without a file is an error: nothing was tested.
 */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char current[4096];

static void on_crash(int sig)
{
	static const char text[] = "\nreplay: died of ";

	if (write(2, text, sizeof(text) - 1) < 0 || write(2, current, strlen(current)) < 0 || write(2, "\n", 1) < 0)
		_exit(2);
	signal(sig, SIG_DFL);
	raise(sig);
}

static int replay_file(const char *path)
{
	FILE *f = fopen(path, "rb");
	struct stat st;
	uint8_t *data;
	size_t bytes;

	if (!f || fstat(fileno(f), &st) != 0) {
		fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
		exit(2);
	}
	bytes = (size_t)st.st_size;
	/* exactly as long as the input, so that reading past its end is seen */
	data = malloc(bytes ? bytes : 1);
	if (!data || fread(data, 1, bytes, f) != bytes) {
		fprintf(stderr, "replay: %s cannot be read\n", path);
		exit(2);
	}
	fclose(f);
	snprintf(current, sizeof(current), "%s", path);
	LLVMFuzzerTestOneInput(data, bytes);
	free(data);
	return 1;
}

static int only_inputs(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static int replay_folder(const char *path)
{
	struct dirent **names;
	int nr = scandir(path, &names, only_inputs, alphasort);

	for (int i = 0; i < nr; i++) {
		char name[4096];

		snprintf(name, sizeof(name), "%s/%s", path, names[i]->d_name);
		replay_file(name);
		free(names[i]);
	}
	if (nr <= 0) {
		fprintf(stderr, "replay: %s: no inputs\n", path);
		exit(2);
	}
	free(names);
	return nr;
}

int main(int argc, char **argv)
{
	int nr = 0;

	if (argc < 2) {
		fprintf(stderr, "usage: %s FILE|FOLDER...\n", argv[0]);
		return 2;
	}
	signal(SIGABRT, on_crash);
	signal(SIGSEGV, on_crash);
	signal(SIGBUS, on_crash);
	for (int i = 1; i < argc; i++) {
		struct stat st;

		if (stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode))
			nr += replay_folder(argv[i]);
		else
			nr += replay_file(argv[i]);
	}
	printf("replayed %d inputs\n", nr);
	return 0;
}
