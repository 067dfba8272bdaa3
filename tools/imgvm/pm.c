/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. ACPI 6.4, 4.8.3: the fixed hardware, without an SMI command port, so that ACPI is always on. Of the
 * events only the power button happens. The timer's own event (4.8.3.1.1: its top bit has changed) does not: a timer of
 * 32 bits has it every twenty minutes, and no system waits for it.
 *
 * The timer counts the host's monotonic time, from 0 at power-on; in a resumed machine it goes on where it was.
 */
#include "platform.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fail.h"

#define PM_TAG	   STATE_TAG('P', 'M', ' ', ' ')
#define PM_VERSION 1u

#define TIMER_HZ UINT64_C(3579545)
#define NSEC	 UINT64_C(1000000000)

/* Both PM1 status and PM1 enable. */
#define PM1_TIMER	 0x0001u
#define PM1_GLOBAL	 0x0020u
#define PM1_POWER_BUTTON 0x0100u
#define PM1_SLEEP_BUTTON 0x0200u
#define PM1_RTC		 0x0400u
#define PM1_ENABLES	 (PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC)
#define CNT_SCI_ENABLE	 0x0001u /* always 1 here */
#define CNT_BUS_MASTER	 0x0002u
#define CNT_SLEEP_TYPE	 0x1c00u
#define CNT_SLEEP_SHIFT	 10u
#define CNT_SLEEP_ENABLE 0x2000u /* reads as 0 */
#define CNT_KEPT	 (CNT_BUS_MASTER | CNT_SLEEP_TYPE)

enum { OFF_STATUS = 0, OFF_ENABLE = 2, OFF_CONTROL = 4, OFF_TIMER = 8 };

struct pm {
	struct device dev;
	uint16_t status, enable, control;
	bool sci;	   /* level of the line, as the host was told */
	uint64_t timer_ns; /* monotonic time at which the timer was timer_base */
	uint32_t timer_base;
};

static struct pm *to_pm(struct device *dev)
{
	return (struct pm *)dev;
}

static uint64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC + (uint64_t)ts.tv_nsec;
}

static uint32_t timer(const struct pm *pm)
{
	uint64_t ns = monotonic_ns() - pm->timer_ns;

	/* seconds apart: the product would not fit after an hour and a half */
	return (uint32_t)(pm->timer_base + ns / NSEC * TIMER_HZ + ns % NSEC * TIMER_HZ / NSEC);
}

static void update_sci(struct pm *pm)
{
	bool level = pm->status & pm->enable & PM1_ENABLES;

	if (level != pm->sci)
		pm->dev.host->irq_line(pm->dev.host->machine, PM_SCI, level);
	pm->sci = level;
}

/* Registers side by side: software reads and writes them by 1, 2 or 4 bytes. */
static void gather(const struct pm *pm, uint8_t reg[PM_BYTES])
{
	uint16_t control = pm->control | CNT_SCI_ENABLE;
	uint32_t now = timer(pm);

	memset(reg, 0, PM_BYTES);
	memcpy(reg + OFF_STATUS, &pm->status, 2);
	memcpy(reg + OFF_ENABLE, &pm->enable, 2);
	memcpy(reg + OFF_CONTROL, &control, 2);
	memcpy(reg + OFF_TIMER, &now, 4);
}

static uint64_t pm_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	uint8_t reg[PM_BYTES];
	uint64_t v = 0;

	(void)region;
	if (bytes > 4)
		return UINT64_MAX;
	gather(to_pm(dev), reg);
	memcpy(&v, reg + off, bytes);
	return v;
}

static void write_control(struct pm *pm, uint16_t v)
{
	pm->control = v & CNT_KEPT;
	if (v & CNT_SLEEP_ENABLE && (v & CNT_SLEEP_TYPE) >> CNT_SLEEP_SHIFT == PM_S5_TYPE)
		pm->dev.host->event(pm->dev.host->machine, MACHINE_POWEROFF);
}

static void pm_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct pm *pm = to_pm(dev);
	uint8_t reg[PM_BYTES];
	uint16_t status = 0, enable, control;

	(void)region;
	if (bytes > 4)
		return;
	gather(pm, reg);
	memset(reg + OFF_STATUS, 0, sizeof(status)); /* ones clear, what is not written does not */
	memcpy(reg + off, &value, bytes);
	memcpy(&status, reg + OFF_STATUS, 2);
	memcpy(&enable, reg + OFF_ENABLE, 2);
	memcpy(&control, reg + OFF_CONTROL, 2);
	pm->status &= (uint16_t)~status;
	pm->enable = enable & PM1_ENABLES;
	if (off < OFF_CONTROL + 2 && off + bytes > OFF_CONTROL)
		write_control(pm, control);
	update_sci(pm);
}

bool pm_power_button(struct device *dev, struct bus *bus)
{
	struct pm *pm = to_pm(dev);
	bool listens;

	pthread_mutex_lock(&bus->lock);
	listens = pm->enable & PM1_POWER_BUTTON;
	if (listens)
		pm->status |= PM1_POWER_BUTTON;
	update_sci(pm);
	pthread_mutex_unlock(&bus->lock);
	return listens;
}

static void pm_reset(struct device *dev)
{
	struct pm *pm = to_pm(dev);

	pm->status = pm->enable = pm->control = 0;
	pm->timer_ns = monotonic_ns();
	pm->timer_base = 0;
	update_sci(pm);
}

static void pm_save(struct device *dev, struct state_writer *out)
{
	struct pm *pm = to_pm(dev);

	state_begin(out, dev->tag, dev->instance, dev->version);
	state_put16(out, pm->status);
	state_put16(out, pm->enable);
	state_put16(out, pm->control);
	state_put32(out, timer(pm));
	state_end(out);
}

static int pm_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct pm *pm = to_pm(dev);
	uint16_t status = state_get16(in), enable = state_get16(in), control = state_get16(in);
	uint32_t now = state_get32(in);
	int ret = state_done(in, "power management", err);

	if (ret != 0)
		return ret;
	if (status & ~PM1_POWER_BUTTON || enable & ~PM1_ENABLES || control & ~CNT_KEPT)
		return fail(err, IMG_E_CORRUPT, "power management: status 0x%x, enable 0x%x, control 0x%x", status,
			    enable, control);
	pm->status = status;
	pm->enable = enable;
	pm->control = control;
	pm->timer_ns = monotonic_ns();
	pm->timer_base = now;
	update_sci(pm);
	return 0;
}

static void pm_destroy(struct device *dev)
{
	free(to_pm(dev));
}

static const struct device_ops pm_ops = {
	.name = "pm",
	.read = pm_read,
	.write = pm_write,
	.reset = pm_reset,
	.save = pm_save,
	.load = pm_load,
	.destroy = pm_destroy,
};

struct device *pm_create(struct bus *bus, const struct machine_host *host)
{
	struct pm *pm = calloc(1, sizeof(*pm));

	if (!pm)
		abort();
	pm->dev = (struct device){ .ops = &pm_ops, .host = host, .tag = PM_TAG, .version = PM_VERSION };
	pm->timer_ns = monotonic_ns();
	bus_add_device(bus, &pm->dev);
	bus_map(bus, BUS_PIO, PM_BASE, PM_BYTES, &pm->dev, 0);
	return &pm->dev;
}
