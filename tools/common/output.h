/* SPDX-License-Identifier: MIT */
/*
 * What goes to stdout and stderr. Text that comes from an image or a file name is never printed as it stands: it may
 * hold escape sequences for the terminal.
 */
#ifndef TOOLS_OUTPUT_H
#define TOOLS_OUTPUT_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "libimg.h"

/*
 * Prints text so that it cannot act on a terminal and can be read back: control characters and bytes that are not UTF-8
 * as \xNN, invisible and direction-changing characters as \u{N}, a backslash as two. Returns the columns printed (one
 * per character).
 */
int output_escaped(FILE *out, const char *text);

/* "4 GiB", "1.5 KiB", "17 bytes"; buf is returned. */
#define SIZE_TEXT_BYTES 32
const char *output_size(uint64_t bytes, char buf[SIZE_TEXT_BYTES]);

#define HEX_TEXT_BYTES 65
/* Lower-case hex of at most 32 bytes; buf is returned. */
const char *output_hex(const uint8_t *data, size_t nr_bytes, char buf[HEX_TEXT_BYTES]);
#define UUID_TEXT_BYTES 37
const char *output_uuid(const uint8_t uuid[16], char buf[UUID_TEXT_BYTES]);
/* "2026-11-21T18:35:07Z" */
#define TIME_TEXT_BYTES 32
const char *output_time(int64_t ns, char buf[TIME_TEXT_BYTES]);

/* A JSON string of text that may not be UTF-8 (then escaped as above); JSON null for NULL. */
json_t *output_json_text(const char *text);
/* Sizes are integers; beyond 2^63 - 1, which no image reaches, they would be null. */
json_t *output_json_size(uint64_t bytes);
/* Prints and releases one object. Returns an exit status: memory, or stdout, may have failed. */
int output_json(json_t *object);

/* Flushes stdout. Returns status, or EXIT_SYSTEM with a message if what was printed did not get out. */
int output_finish(int status);

#endif
