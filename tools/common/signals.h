/* SPDX-License-Identifier: MIT */
/*
 * Interruption. SIGINT, SIGTERM and SIGHUP set a flag; verbs see it through their progress callback or between pieces,
 * end what they are doing and return EXIT_SYSTEM; at its end the program dies by the signal all the same, so that a
 * shell does not go on with its loop. A second signal has its usual, immediate effect. SIGPIPE is ignored: a reader
 * that goes away must not leave a half-written destination.
 */
#ifndef TOOLS_SIGNALS_H
#define TOOLS_SIGNALS_H

#include <stdbool.h>

void signals_install(void);
bool signals_interrupted(void);

/*
 * From now on these signals end the program as they end a filter, at once, whatever it waits for: for who writes into a
 * pipe that nobody may be reading, and has nothing to clean up.
 */
void signals_end_it(void);

/* Dies by the signal that came, if one did: for the end of main(), when all is cleaned up and written out. */
void signals_pass_on(void);

#endif
