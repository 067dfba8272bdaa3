/* SPDX-License-Identifier: MIT */
/* The registry as the public API shows it: which formats there are, and what they can be asked for. */
#include "driver.h"

const char *img_format_name(size_t i)
{
	const struct img_driver *drv = registry_at(i);

	return drv ? drv->name : NULL;
}

int img_format_can_create(const char *format)
{
	const struct img_driver *drv = format ? registry_find(format) : NULL;

	return drv && drv->kind == DRIVER_FORMAT && drv->create;
}

const char *img_format_options(const char *format)
{
	const struct img_driver *drv = format ? registry_find(format) : NULL;

	if (!drv || drv->kind != DRIVER_FORMAT)
		return NULL;
	return drv->create_help ? drv->create_help : "";
}
