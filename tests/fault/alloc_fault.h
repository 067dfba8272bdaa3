/* SPDX-License-Identifier: MIT */
/* Memory allocation that fails on order: the linker puts these before the C library's (-Wl,--wrap), the library knows
 * nothing. */
#ifndef TESTS_ALLOC_FAULT_H
#define TESTS_ALLOC_FAULT_H

#include <stdbool.h>
#include <stdint.h>

/* From now on the nth allocation (from 1; 0: none) fails, and with for_good all after it. Counting starts anew. */
void alloc_fault_arm(uint64_t nth, bool for_good);
void alloc_fault_disarm(void);
/* Failures since it was armed. */
uint64_t alloc_fault_failed(void);

#endif
