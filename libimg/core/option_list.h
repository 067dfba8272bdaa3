/* SPDX-License-Identifier: MIT */
/* Creation options as text: "key=value,key=value". For drivers; errors are IMG_E_INVALID and name the driver's layer. */
#ifndef CORE_OPTION_LIST_H
#define CORE_OPTION_LIST_H

#include "libimg.h"

typedef int (*option_fn)(void *ctx, const char *key, const char *value, struct img_error *err);

/*
 * Calls fn with each pair, in their order, until it fails. A comma in a value is written twice, as with qemu-img. text
 * NULL: none. IMG_E_INVALID: no value; IMG_E_NOMEM.
 */
int option_each(const char *text, const char *layer, option_fn fn, void *ctx, struct img_error *err);

/* "subformat is dynamic or fixed, not 'x'": IMG_E_INVALID. */
int option_wrong(const char *layer, const char *key, const char *range, const char *value, struct img_error *err);

/* Bytes of "64K", "1M", "32256", "2T"; 0: no such number, or above max. */
uint64_t option_bytes(const char *value, uint64_t max);

/* The same, 0 for what is no power of two from min to max. */
uint64_t option_power(const char *value, uint64_t min, uint64_t max);

/* on, true, yes; off, false, no. False: neither, and *out is false. */
bool option_bool(const char *value, bool *out);

/* 32 hexadecimal digits, with dashes where people put them; bytes in the order of the text. */
bool option_uuid(const char *value, uint8_t out[16]);

#endif
