/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. The port to which SeaBIOS writes its log, a byte at a time, once it has read the port's number of
 * readiness from it. It keeps nothing between two bytes, so there is nothing to save, and a machine may be resumed with
 * or without it.
 */
#include "platform.h"

#include <stdlib.h>
#include <unistd.h>

#define DEBUGCON_PORT  0x402u
#define DEBUGCON_READY 0xe9u

struct debugcon {
	struct device dev;
	int fd;
};

static uint64_t debugcon_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	(void)dev;
	(void)region;
	(void)off;
	return bytes == 1 ? DEBUGCON_READY : UINT64_MAX;
}

static void debugcon_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct debugcon *d = (struct debugcon *)dev;
	uint8_t byte = (uint8_t)value;

	(void)region;
	(void)off;
	/* a log that cannot be written must not stop the guest */
	if (bytes == 1 && write(d->fd, &byte, 1) < 0)
		return;
}

static void debugcon_reset(struct device *dev)
{
	(void)dev;
}

static void debugcon_destroy(struct device *dev)
{
	free(dev);
}

static const struct device_ops debugcon_ops = {
	.name = "debugcon",
	.read = debugcon_read,
	.write = debugcon_write,
	.reset = debugcon_reset,
	.destroy = debugcon_destroy,
};

struct device *debugcon_create(struct bus *bus, const struct machine_host *host, int fd)
{
	struct debugcon *d = calloc(1, sizeof(*d));

	if (!d)
		abort();
	d->dev = (struct device){ .ops = &debugcon_ops, .host = host };
	d->fd = fd;
	bus_add_device(bus, &d->dev);
	bus_map(bus, BUS_PIO, DEBUGCON_PORT, 1, &d->dev, 0);
	return &d->dev;
}
