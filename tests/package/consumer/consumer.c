/* SPDX-License-Identifier: MIT */
/* What a user of the library writes first: create an image, write, read it back, and see an error. */
#include <libimg.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_bytes = 1 << 20 };
	struct img_open_options open = { .struct_size = sizeof(open), .format = "raw", .flags = IMG_OPEN_WRITE };
	struct img_error err = { 0 };
	char back[16] = "";
	struct img *img = NULL;

	if (argc != 2)
		return 2;
	if (img_create(argv[1], &create, &err) || img_open(argv[1], &open, &img, &err) ||
	    img_pwrite(img, "hello from here", sizeof(back), 4096, 0, &err) ||
	    img_pread(img, back, sizeof(back), 4096, 0, &err) || img_close(img, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		return 1;
	}
	if (strcmp(back, "hello from here") != 0 || img_open("/nonexistent/x", NULL, &img, &err) != IMG_E_NOENT)
		return 1;
	printf("libimg %s\n", img_version());
	return 0;
}
