/* SPDX-License-Identifier: MIT */
/*
 * A host in memory: a folder of files, as an environment for images, with the crash and fault filters where a test
 * wants them. A file that no name leads to any more lives on while the host is asked about its log only; names are
 * flat. Not for several threads.
 */
#ifndef TESTS_MEMHOST_H
#define TESTS_MEMHOST_H

#include "crash.h"
#include "fault.h"
#include "image.h"
#include "mem.h"

#define MEMHOST_FILES 24u
#define MEMHOST_NAME  72 /* an image of a bundle has a GUID in its name */

struct memhost_file {
	struct mem_content *content; /* NULL: free slot. The slot's number is the file's number in the log */
	char name[MEMHOST_NAME];     /* "": no name leads here */
};

struct memhost {
	struct memhost_file file[MEMHOST_FILES];
	char names[MEMHOST_FILES * 2][MEMHOST_NAME]; /* names by their numbers in the log */
	unsigned nr_names, nr_temps;
	struct crash_log *log;	 /* NULL: nothing is recorded. Not owned */
	struct fault_plan *plan; /* NULL: nothing fails. Not owned */
	struct image_env env;
};

/* An empty folder. env.ctx is the host: it must not move. */
void memhost_init(struct memhost *host);
void memhost_destroy(struct memhost *host);
/* The same files and names, apart from each other; no filters. Ends the program without memory. */
void memhost_clone(struct memhost *host, const struct memhost *from);
/* NULL: no such name. */
struct memhost_file *memhost_find(struct memhost *host, const char *name);
/* Files that a crash left under temporary names are not part of what counts. */
bool memhost_is_temp(const struct memhost_file *file);
/* Of all names and the bytes behind them. */
void memhost_hash(struct memhost *host, uint64_t out[2]);
/* Does a name entry of a log to the folder. */
void memhost_apply_name(struct memhost *host, const struct crash_entry *entry, const struct memhost *names);

#endif
