/* SPDX-License-Identifier: MIT */
/*
 * Makes a plain program of a fuzz target: runs it once on each of the named files, and on those in the named folders.
 * Says which one it is about to run when it dies of it. A folder without a file is an error: nothing was tested.
 *
 * --mutate N SEED: after each input N changed ones as well, by the target's own mutator where it has one; no engine is
 * needed, nothing is learned. One that breaks something is left in the file replay-crash.
 */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MUTANT_BYTES 4096u

__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed);

static char current[4096];
static unsigned long nr_mutants;
static unsigned next_seed;
static const uint8_t *mutant; /* that runs; NULL: none */
static size_t mutant_bytes;

static void on_crash(int sig)
{
	static const char text[] = "\nreplay: died of ";

	int fd = mutant ? open("replay-crash", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666) : -1;

	if (fd >= 0 && write(fd, mutant, mutant_bytes) < 0)
		_exit(2);
	if (write(2, text, sizeof(text) - 1) < 0 || write(2, current, strlen(current)) < 0 || write(2, "\n", 1) < 0)
		_exit(2);
	signal(sig, SIG_DFL);
	raise(sig);
}

static size_t change(uint8_t *data, size_t bytes, size_t max, unsigned seed)
{
	if (LLVMFuzzerCustomMutator)
		return LLVMFuzzerCustomMutator(data, bytes, max, seed);
	for (unsigned i = 0; i < 4 && bytes > 0; i++) {
		seed = seed * 1103515245 + 12345;
		data[(seed >> 8) % bytes] ^= (uint8_t)(1u << (seed >> 4 & 7));
	}
	return bytes;
}

/* A chain of changes that begins anew now and then. */
static void run_mutants(const uint8_t *data, size_t bytes)
{
	static uint8_t buf[MUTANT_BYTES];
	size_t nr = 0;

	for (unsigned long i = 0; i < nr_mutants; i++) {
		if (i % 16 == 0) {
			nr = bytes < sizeof(buf) ? bytes : sizeof(buf);
			memcpy(buf, data, nr);
		}
		nr = change(buf, nr, sizeof(buf), next_seed++);
		mutant = buf;
		mutant_bytes = nr;
		LLVMFuzzerTestOneInput(buf, nr);
	}
	mutant = NULL;
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
	run_mutants(data, bytes);
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
	int nr = 0, first = 1;

	if (argc > 4 && strcmp(argv[1], "--mutate") == 0) {
		nr_mutants = strtoul(argv[2], NULL, 10);
		next_seed = (unsigned)strtoul(argv[3], NULL, 10);
		first = 4;
	}
	if (argc <= first || argv[first][0] == '-') {
		fprintf(stderr, "usage: %s [--mutate N SEED] FILE|FOLDER...\n", argv[0]);
		return 2;
	}
	signal(SIGABRT, on_crash);
	signal(SIGSEGV, on_crash);
	signal(SIGBUS, on_crash);
	for (int i = first; i < argc; i++) {
		struct stat st;

		if (stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode))
			nr += replay_folder(argv[i]);
		else
			nr += replay_file(argv[i]);
	}
	printf("replayed %d inputs\n", nr);
	return 0;
}
