/* SPDX-License-Identifier: MIT */
/* The one table of drivers. A new format is one line here. */
#include <string.h>

#include "checked.h"
#include "driver.h"

extern const struct img_driver limg_driver, qcow2_driver, vdi_driver, vhd_driver, raw_driver, file_driver, pipe_driver;
extern const struct img_driver asif_driver, bochs_driver, cloop_driver, dmg_driver, qcow_driver, qed_driver, vhdx_driver;
extern const struct img_driver parallels_driver, vmdk_driver;

/* clang-format off */
static const struct img_driver *const formats[] = {
	&limg_driver,
	&qcow2_driver,
	&vdi_driver,
	&vhd_driver,
	&vmdk_driver,
	&parallels_driver,
	/* read only */
	&asif_driver,
	&bochs_driver,
	&cloop_driver,
	&dmg_driver,
	&qcow_driver,
	&qed_driver,
	&vhdx_driver,
	&raw_driver, /* last: it recognises nothing */
};
/* clang-format on */

const struct img_driver *registry_at(size_t i)
{
	return i < ARRAY_LEN(formats) ? formats[i] : NULL;
}

const struct img_driver *registry_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
		if (strcmp(formats[i]->name, name) == 0)
			return formats[i];
	}
	return NULL;
}

const struct img_driver *registry_host_file(void)
{
	return &file_driver;
}

const struct img_driver *registry_host_pipe(void)
{
	return &pipe_driver;
}
