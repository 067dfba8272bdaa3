/* SPDX-License-Identifier: MIT */
/* Between space.c (allocation) and space_map.c (pages on disk). */
#ifndef LIMG_SPACE_H
#define LIMG_SPACE_H

#include "engine.h"

uint64_t space_fixed_end(uint64_t group); /* first AU of the group after its fixed ones; group 0: 194 */
uint32_t space_fixed_in(uint64_t group);  /* how many fixed AUs it has */
uint64_t space_fixed_count(uint64_t nr_groups);
void space_fixed_bits(uint64_t group, uint8_t *map);
int space_groups_room(struct engine *e, uint64_t nr, struct img_error *err);   /* lock held */
int space_group_load(struct engine *e, uint64_t index, struct img_error *err); /* lock held */
/* Reads and verifies one page of the map: bitmap (level 0) or table. */
int space_page_read(struct engine *e, unsigned level, uint64_t index, unsigned version, uint64_t csum, uint8_t *page,
		    struct img_error *err);
uint64_t space_page_au(unsigned level, uint64_t index, unsigned version);

#endif
