/* SPDX-License-Identifier: MIT */
#ifndef TESTS_DUMP_H
#define TESTS_DUMP_H

#include "model.h"

/*
 * Writes the stack of files to folder/SEED/NAME, and folder/SEED/truth with a line "NAME[@SNAP] SHA256" for each state
 * that can be read. Ends the program where that fails.
 */
void dump_files(struct model *m, const char *folder, uint64_t seed);

#endif
