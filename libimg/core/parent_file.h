/* SPDX-License-Identifier: MIT */
/* The file that a reference to a parent names: see parent_file.c. */
#ifndef CORE_PARENT_FILE_H
#define CORE_PARENT_FILE_H

#include "image.h"

/*
 * Opens it under the policy: the first of ref's names at which something is. *path receives a malloc()ed path for
 * messages and further references; *which (may be NULL) the number of the name, 0 for ref->name. IMG_E_REFUSED: nothing
 * is at the names that the policy allows, and it forbids others; IMG_E_NOENT: nothing is at any.
 */
int parent_file_open(const char *child_path, const struct backing_ref *ref, enum img_refs refs,
		     const struct host_open *host, const struct image_env *env, struct node **file, char **path,
		     unsigned *which, struct img_error *err);
/* Makes the name at which something is ref's only one. Where none is, or ref has one only, it stays as it is. */
void parent_file_settle(const char *child_path, struct backing_ref *ref, enum img_refs refs,
			const struct image_env *env);
/* Where ref leads: a malloc()ed path that image_open_env() takes, for who reopens the parent for writing (commit). */
int parent_file_path(const char *child_path, const struct backing_ref *ref, enum img_refs refs,
		     const struct image_env *env, char **out, struct img_error *err);

#endif
