/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. The MC146818A real-time clock (Motorola, 1984) and its 114 bytes of memory.
 *
 * The clock is the host's UTC, read when the guest reads: it cannot be set (guests keep their own time and write it
 * back at shutdown, which must not fail), it has no alarm, and "update in progress" is never seen. Nothing of the
 * time is saved: a machine that is resumed reads the time of the day on which it is.
 *
 * What SeaBIOS and older systems look for in the memory is set at creation, and again at every reset.
 */
#include "platform.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fail.h"
#include "memory.h"

#define CMOS_TAG     STATE_TAG('C', 'M', 'O', 'S')
#define CMOS_VERSION 1u
#define CMOS_PORT    0x70u /* index; data is the next */
#define CMOS_BYTES   128u
#define INDEX_MASK   0x7fu /* bit 7 masks NMIs */

enum {
	REG_SECONDS = 0x00,
	REG_SECONDS_ALARM = 0x01,
	REG_MINUTES = 0x02,
	REG_MINUTES_ALARM = 0x03,
	REG_HOURS = 0x04,
	REG_HOURS_ALARM = 0x05,
	REG_WEEKDAY = 0x06,
	REG_DAY = 0x07,
	REG_MONTH = 0x08,
	REG_YEAR = 0x09,
	REG_A = 0x0a,
	REG_B = 0x0b,
	REG_C = 0x0c,
	REG_D = 0x0d,
	REG_CENTURY = 0x32, /* the FADT names it */
};
#define A_DEFAULT 0x26u /* 32768 Hz, periodic rate 1024 Hz; bit 7: update in progress */
#define A_MASK	  0x7fu
#define B_24H	  0x02u
#define B_BINARY  0x04u
#define D_VALID	  0x80u /* the battery is good */
#define PM_BIT	  0x80u /* of hours, in 12-hour mode */

/* Where PC firmware keeps what it found (RBIL, CMOS.LST); from 0x34 on as QEMU tells SeaBIOS (its src/hw/rtc.h). */
enum {
	MEM_BASE_KIB = 0x15,	  /* 16 bits: below 640 KiB */
	MEM_EXTENDED_KIB = 0x17,  /* 16 bits: from 1 MiB on */
	MEM_EXTENDED_KIB2 = 0x30, /* the same */
	MEM_ABOVE_16M = 0x34,	  /* 16 bits: units of 64 KiB */
	MEM_ABOVE_4G = 0x5b,	  /* 24 bits: units of 64 KiB */
	MEM_LAST_CPU = 0x5f,	  /* how many there are, less one */
};
#define MIB UINT64_C(0x100000)

struct cmos {
	struct device dev;
	uint64_t ram_bytes;
	unsigned nr_vcpus;
	uint8_t index;
	uint8_t mem[CMOS_BYTES]; /* the clock's registers in it are not used, but for alarms, A and B */
};

static struct cmos *to_cmos(struct device *dev)
{
	return (struct cmos *)dev;
}

static uint8_t encode(const struct cmos *c, int v)
{
	return (uint8_t)(c->mem[REG_B] & B_BINARY ? v : v / 10 * 16 + v % 10);
}

static uint8_t encode_hour(const struct cmos *c, int hour)
{
	if (c->mem[REG_B] & B_24H)
		return encode(c, hour);
	return (uint8_t)(encode(c, (hour + 11) % 12 + 1) | (hour >= 12 ? PM_BIT : 0));
}

static bool is_clock(uint8_t index)
{
	return index == REG_SECONDS || index == REG_MINUTES || index == REG_HOURS ||
	       (index >= REG_WEEKDAY && index <= REG_YEAR) || index == REG_CENTURY;
}

static uint8_t read_clock(const struct cmos *c)
{
	time_t now = time(NULL);
	struct tm tm;

	gmtime_r(&now, &tm);
	switch (c->index) {
	case REG_SECONDS: return encode(c, tm.tm_sec);
	case REG_MINUTES: return encode(c, tm.tm_min);
	case REG_HOURS: return encode_hour(c, tm.tm_hour);
	case REG_WEEKDAY: return encode(c, tm.tm_wday + 1);
	case REG_DAY: return encode(c, tm.tm_mday);
	case REG_MONTH: return encode(c, tm.tm_mon + 1);
	case REG_YEAR: return encode(c, tm.tm_year % 100);
	default: return encode(c, 19 + tm.tm_year / 100);
	}
}

static uint64_t cmos_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct cmos *c = to_cmos(dev);

	(void)region;
	if (off != 1 || bytes != 1)
		return UINT64_MAX;
	if (is_clock(c->index))
		return read_clock(c);
	return c->mem[c->index];
}

static void cmos_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct cmos *c = to_cmos(dev);

	(void)region;
	if (bytes != 1)
		return;
	if (off == 0)
		c->index = (uint8_t)value & INDEX_MASK;
	else if (c->index == REG_A)
		c->mem[REG_A] = (uint8_t)value & A_MASK;
	else if (!is_clock(c->index) && c->index != REG_C && c->index != REG_D)
		c->mem[c->index] = (uint8_t)value;
}

static void put_le(uint8_t *p, unsigned bytes, uint64_t v)
{
	memcpy(p, &v, bytes);
}

static uint64_t at_most(uint64_t v, uint64_t max)
{
	return v < max ? v : max;
}

static void cmos_reset(struct device *dev)
{
	struct cmos *c = to_cmos(dev);
	uint64_t low = at_most(c->ram_bytes, MEMORY_HOLE);

	c->index = 0;
	memset(c->mem, 0, sizeof(c->mem));
	c->mem[REG_A] = A_DEFAULT;
	c->mem[REG_B] = B_24H;
	c->mem[REG_D] = D_VALID;
	put_le(&c->mem[MEM_BASE_KIB], 2, 640);
	put_le(&c->mem[MEM_EXTENDED_KIB], 2, at_most((low - MIB) >> 10, UINT16_MAX));
	put_le(&c->mem[MEM_EXTENDED_KIB2], 2, at_most((low - MIB) >> 10, UINT16_MAX));
	if (low > 16 * MIB)
		put_le(&c->mem[MEM_ABOVE_16M], 2, (low - 16 * MIB) >> 16);
	put_le(&c->mem[MEM_ABOVE_4G], 3, (c->ram_bytes - low) >> 16);
	c->mem[MEM_LAST_CPU] = (uint8_t)(c->nr_vcpus - 1);
}

static void cmos_save(struct device *dev, struct state_writer *out)
{
	struct cmos *c = to_cmos(dev);

	state_begin(out, dev->tag, dev->instance, dev->version);
	state_put8(out, c->index);
	state_put(out, c->mem, sizeof(c->mem));
	state_end(out);
}

static int cmos_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct cmos *c = to_cmos(dev);
	uint8_t index = state_get8(in), mem[CMOS_BYTES];
	int ret;

	state_get(in, mem, sizeof(mem));
	ret = state_done(in, "CMOS", err);
	if (ret != 0)
		return ret;
	if (index & ~INDEX_MASK || mem[REG_A] & ~A_MASK || mem[REG_C] || mem[REG_D] != D_VALID)
		return fail(err, IMG_E_CORRUPT, "CMOS: index 0x%x, registers A to D 0x%02x%02x%02x%02x", index,
			    mem[REG_A], mem[REG_B], mem[REG_C], mem[REG_D]);
	c->index = index;
	memcpy(c->mem, mem, sizeof(mem));
	return 0;
}

static void cmos_destroy(struct device *dev)
{
	free(to_cmos(dev));
}

static const struct device_ops cmos_ops = {
	.name = "cmos",
	.read = cmos_read,
	.write = cmos_write,
	.reset = cmos_reset,
	.save = cmos_save,
	.load = cmos_load,
	.destroy = cmos_destroy,
};

struct device *cmos_create(struct bus *bus, const struct machine_host *host, uint64_t ram_bytes, unsigned nr_vcpus)
{
	struct cmos *c = calloc(1, sizeof(*c));

	if (!c)
		abort();
	c->dev = (struct device){ .ops = &cmos_ops, .host = host, .tag = CMOS_TAG, .version = CMOS_VERSION };
	c->ram_bytes = ram_bytes;
	c->nr_vcpus = nr_vcpus;
	cmos_reset(&c->dev);
	bus_add_device(bus, &c->dev);
	bus_map(bus, BUS_PIO, CMOS_PORT, 2, &c->dev, 0);
	return &c->dev;
}
