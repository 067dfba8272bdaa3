/* SPDX-License-Identifier: MIT */
/*
 * See bus.h. Regions are kept sorted by space and start, and never overlap: one binary search finds who an access is
 * for. Few regions and no cache: a lookup costs a fraction of the exit that brought us here.
 */
#include "bus.h"

#include <stdlib.h>
#include <string.h>

void bus_init(struct bus *bus)
{
	memset(bus, 0, sizeof(*bus));
	pthread_mutex_init(&bus->lock, NULL);
}

void bus_free(struct bus *bus)
{
	while (bus->nr_devices) {
		struct device *dev = bus->device[--bus->nr_devices];

		dev->ops->destroy(dev);
	}
	bus->nr_regions = 0;
	pthread_mutex_destroy(&bus->lock);
}

void bus_add_device(struct bus *bus, struct device *dev)
{
	if (bus->nr_devices == BUS_MAX_DEVICES)
		abort();
	bus->device[bus->nr_devices++] = dev;
}

/* Index of the first region that starts after addr, or that is of a later space. */
static unsigned region_after(const struct bus *bus, enum bus_space space, uint64_t addr)
{
	unsigned low = 0, high = bus->nr_regions;

	while (low < high) {
		unsigned mid = (low + high) / 2;
		const struct bus_region *r = &bus->region[mid];

		if (r->space > space || (r->space == space && r->start > addr))
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

bool bus_map(struct bus *bus, enum bus_space space, uint64_t start, uint64_t bytes, struct device *dev, unsigned region)
{
	unsigned at = region_after(bus, space, start);

	if (bus->nr_regions == BUS_MAX_REGIONS || bytes == 0 || bytes - 1 > UINT64_MAX - start)
		return false;
	if (at > 0) {
		const struct bus_region *before = &bus->region[at - 1];

		if (before->space == space && start - before->start < before->bytes)
			return false;
	}
	if (at < bus->nr_regions) {
		const struct bus_region *after = &bus->region[at];

		if (after->space == space && after->start - start < bytes)
			return false;
	}
	memmove(&bus->region[at + 1], &bus->region[at], (bus->nr_regions - at) * sizeof(bus->region[0]));
	bus->region[at] =
		(struct bus_region){ .space = space, .start = start, .bytes = bytes, .dev = dev, .region = region };
	bus->nr_regions++;
	return true;
}

void bus_unmap(struct bus *bus, struct device *dev, unsigned region)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < bus->nr_regions; i++)
		if (bus->region[i].dev != dev || bus->region[i].region != region)
			bus->region[kept++] = bus->region[i];
	bus->nr_regions = kept;
}

/* Under the lock. NULL: nobody's. */
static const struct bus_region *find_region(const struct bus *bus, enum bus_space space, uint64_t addr, unsigned bytes)
{
	unsigned at = region_after(bus, space, addr);
	const struct bus_region *r;

	if (at == 0)
		return NULL;
	r = &bus->region[at - 1];
	if (r->space != space || addr - r->start >= r->bytes || bytes > r->bytes - (addr - r->start))
		return NULL;
	return r;
}

void bus_read(struct bus *bus, enum bus_space space, uint64_t addr, void *data, unsigned bytes)
{
	const struct bus_region *r;
	uint64_t value = UINT64_MAX;

	pthread_mutex_lock(&bus->lock);
	r = find_region(bus, space, addr, bytes);
	if (r)
		value = r->dev->ops->read(r->dev, r->region, addr - r->start, bytes);
	pthread_mutex_unlock(&bus->lock);
	memcpy(data, &value, bytes); /* host and guest are little-endian */
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, const void *data, unsigned bytes)
{
	const struct bus_region *r;
	uint64_t value = 0;

	memcpy(&value, data, bytes);
	pthread_mutex_lock(&bus->lock);
	r = find_region(bus, space, addr, bytes);
	if (r)
		r->dev->ops->write(r->dev, r->region, addr - r->start, bytes, value);
	pthread_mutex_unlock(&bus->lock);
}
