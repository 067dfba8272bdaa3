/* SPDX-License-Identifier: MIT */
/*
 * Names of files in formats that were made on other systems (VHD, VHDX): UTF-16 and UTF-8, paths of Windows and of this
 * host. Pure.
 */
#ifndef UTIL_FOREIGN_NAME_H
#define UTIL_FOREIGN_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_PATH_MAX 1024u /* with the NUL */

/* To a NUL or the end of bytes. False: no UTF-16, or more than room. */
bool name_from_utf16(const uint8_t *text, size_t bytes, bool big_endian, char *out, size_t room);
/* Without a NUL; *bytes: how many. False: no UTF-8, or more than room. */
bool name_to_utf16(const char *text, bool big_endian, uint8_t *out, size_t room, size_t *bytes);
/* relative: the format says that it is; else of a path with a drive or a server the last part stays. */
void name_from_windows(const char *windows, bool relative, char out[NAME_PATH_MAX]);
/* A relative path begins with ".\" as Windows writes it; an absolute one stays as it is. */
void name_to_windows(const char *host, char out[NAME_PATH_MAX + 2]);
/* "file://..." as macOS writes it. False: none. */
bool name_from_url(const char *url, char out[NAME_PATH_MAX]);

#endif
