/* SPDX-License-Identifier: MIT */
/*
 * The file of a parent. Most formats record one name. VHD and VHDX record several of the same file, made on other hosts
 * and for other places: they are tried in order, each under the policy, and the first at which something is, is the
 * parent's file. Whether it is the right one is not asked here: an image that is in the way of the right one, and is
 * another, is an error (its id does not match), never a reason to look further.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "parent_file.h"

#define LAYER	   "chain"
#define NAME_SHOWN 48 /* bytes of a name in a message that holds several */

static const char *name_at(const struct backing_ref *ref, unsigned i)
{
	return i == 0 ? ref->name : ref->other[i - 1];
}

static unsigned nr_names(const struct backing_ref *ref)
{
	unsigned nr = 1;

	while (nr <= BACKING_OTHERS && name_at(ref, nr)[0] != '\0')
		nr++;
	return nr;
}

/* 'a', 'b' or 'c': those from the first on but skip. */
static void list_names(const struct backing_ref *ref, unsigned nr, unsigned skip, char *out, size_t room)
{
	unsigned left = nr - (skip < nr);
	size_t n = 0;

	out[0] = '\0';
	for (unsigned i = 0; i < nr; i++) {
		int len;

		if (i == skip)
			continue;
		left--;
		len = snprintf(out + n, room - n, "'%.*s'%s", NAME_SHOWN, name_at(ref, i),
			       left > 1	 ? ", " :
			       left == 1 ? " or " :
					   "");
		if (len < 0 || (size_t)len >= room - n)
			break;
		n += (size_t)len;
	}
}

static int nothing_there(const char *child_path, const struct backing_ref *ref, unsigned nr, unsigned refused,
			 const struct img_error *why, struct img_error *err)
{
	char names[(BACKING_OTHERS + 1) * (NAME_SHOWN + 8)];

	list_names(ref, nr, refused, names, sizeof(names));
	if (refused < nr)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER, "nothing is at %s; and %s", names, why->msg);
	return error_set(err, IMG_E_NOENT, why->sys_errno, NO_OFFSET, LAYER,
			 "the backing file is not there: nothing is at %s, named by %s", names, child_path);
}

int parent_file_open(const char *child_path, const struct backing_ref *ref, enum img_refs refs,
		     const struct host_open *host, const struct image_env *env, struct node **file, char **path,
		     unsigned *which, struct img_error *err)
{
	unsigned nr = nr_names(ref), refused = nr;
	struct img_error first = { .code = IMG_OK };

	if (which)
		*which = 0;
	if (nr == 1)
		return env->open_file(env->ctx, child_path, ref->name, refs, host, file, path, err);
	for (unsigned i = 0; i < nr; i++) {
		struct img_error why = { .code = IMG_OK };
		int ret = env->open_file(env->ctx, child_path, name_at(ref, i), refs, host, file, path, &why);

		if (ret == 0 && which)
			*which = i;
		if (ret == 0)
			return 0;
		if (ret != IMG_E_NOENT && ret != IMG_E_REFUSED) { /* something is there */
			if (err && err->code == IMG_OK)
				*err = why;
			return ret;
		}
		if (ret == IMG_E_REFUSED && refused == nr)
			refused = i;
		if (i == 0 || refused == i)
			first = why;
	}
	return nothing_there(child_path, ref, nr, refused, &first, err);
}

/* As who asks only where it is. */
static int find(const char *child_path, const struct backing_ref *ref, enum img_refs refs, const struct image_env *env,
		char **path, unsigned *which, struct img_error *err)
{
	struct host_open host = { .use = SHARE_PEEK_USE, .no_lock = true };
	struct node *file;
	int ret;

	*path = NULL;
	ret = parent_file_open(child_path, ref, refs, &host, env, &file, path, which, err);
	if (ret == 0)
		node_close(file, NULL);
	return ret;
}

void parent_file_settle(const char *child_path, struct backing_ref *ref, enum img_refs refs,
			const struct image_env *env)
{
	unsigned which;
	char *path;

	if (nr_names(ref) == 1 || find(child_path, ref, refs, env, &path, &which, NULL) != 0)
		return;
	free(path);
	if (which > 0)
		memcpy(ref->name, ref->other[which - 1], sizeof(ref->name));
	memset(ref->other, 0, sizeof(ref->other));
}

int parent_file_path(const char *child_path, const struct backing_ref *ref, enum img_refs refs,
		     const struct image_env *env, char **out, struct img_error *err)
{
	return find(child_path, ref, refs, env, out, NULL, err);
}
