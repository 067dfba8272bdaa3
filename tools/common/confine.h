/* SPDX-License-Identifier: MIT */
/* What programs confine themselves with, each by rules of its own: imgvm's sandbox.c, and cell.c. */
#ifndef TOOLS_CONFINE_H
#define TOOLS_CONFINE_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum confine_mode {
	CONFINE_AUTO,	 /* what there is */
	CONFINE_REQUIRE, /* UNSUPPORTED where something lacks */
	CONFINE_OFF,
};
/* Of --sandbox: "auto", "require", "off"; NULL: auto. */
enum confine_mode confine_mode(const char *choice);

/* Version of Landlock that the kernel has; below 1: none, with errno. */
long confine_landlock_version(void);
/* Can seccomp filters be set? If not, errno says why. */
bool confine_has_seccomp(void);
/* Why this build cannot be confined; NULL: it can. */
const char *confine_unfit(void);

/* What Landlock leaves: removing names in the folder `folder` (a descriptor; -1: none), and the process's own page map,
 * if asked for. */
struct confine_files {
	int folder;
	bool pagemap;
};
/* No other files from here on, for this thread and those that it makes. No new privileges is in force already. 0, or -1
 * with errno. */
int confine_files(const struct confine_files *left);

/*
 * What a filter traps (SIGSYS) ends the process, with a line on stderr that begins with name, a static string. rescue
 * (may be NULL) is called before. status: of the exit; -1: death by the signal.
 */
void confine_catch(const char *name, void (*rescue)(void), int status);

#endif
