/* SPDX-License-Identifier: MIT */
/* See device.h. */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "confined.h"

bool is_block_device(const char *path)
{
	struct stat sb;

	return stat(path, &sb) == 0 && S_ISBLK(sb.st_mode);
}

int claim_device(const char *path, bool forced, int *fd)
{
	*fd = -1;
	if (!forced) {
		cli_message(path,
			    "the block device exists, and what it holds would be lost: overwrite it with --force");
		return EXIT_REFUSED;
	}
	*fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (*fd >= 0)
		return EXIT_DONE;
	if (errno != EBUSY)
		return cli_fail_errno(path, "cannot open");
	cli_message(path, "the device is mounted or otherwise in use");
	return EXIT_IN_USE;
}

int convert_into_device(struct img *src, const char *path, const struct img_copy_options *copy, struct img_error *err)
{
	struct img_open_options open = {
		.struct_size = sizeof(open), .format = "raw", .flags = IMG_OPEN_WRITE, .host = confined_host()
	};
	struct img_copy_options options = *copy;
	struct img *dst;
	int ret, closed;

	options.flags |= IMG_COPY_KEEP_REST;
	ret = img_open(path, &open, &dst, err);
	if (ret == 0) {
		ret = img_copy(src, dst, &options, err);
		closed = img_close(dst, ret == 0 ? err : NULL);
		ret = ret == 0 ? closed : ret;
	}
	return ret == 0 ? EXIT_DONE : cli_status(ret);
}
