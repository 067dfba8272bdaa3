/* SPDX-License-Identifier: MIT */
/*
 * See pci.h. Register numbers are those of the PCI Local Bus Specification 3.0, 6.1; mechanism 1 is 3.2.2.3.2.
 *
 * A function's `writable` says all of what the guest may change, command register and BAR included, so that writing,
 * resetting and checking saved state are the same few lines for every register. Where a BAR lies is looked at for all
 * functions together, first unmapping, then mapping: two functions that swap their addresses find each other's free.
 *
 * The bridge is the 440FX that SeaBIOS looks for. Its PAM registers, which switch 0xc0000 to 0xfffff between ROM and
 * RAM, cannot be written and say that RAM is there: the whole range is RAM all the time, and firmware puts itself in.
 */
#include "pci.h"

#include <stdlib.h>
#include <string.h>

#include "fail.h"

enum {
	CFG_VENDOR = 0x00,
	CFG_DEVICE = 0x02,
	CFG_COMMAND = 0x04,
	CFG_STATUS = 0x06,
	CFG_CLASS_REV = 0x08,
	CFG_BAR0 = 0x10,
	CFG_SUB_VENDOR = 0x2c,
	CFG_SUB_DEVICE = 0x2e,
	CFG_CAP_PTR = 0x34,
	CFG_INT_LINE = 0x3c,
	CFG_INT_PIN = 0x3d,
	CFG_CAPS = 0x40, /* first byte after the header */
};
#define COMMAND_MEMORY	     0x0002u
#define COMMAND_MASTER	     0x0004u
#define COMMAND_PARITY	     0x0040u
#define COMMAND_SERR	     0x0100u
#define COMMAND_INTX_DISABLE 0x0400u
#define COMMAND_WRITABLE     (COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE)
#define STATUS_CAP_LIST	     0x0010u
#define INT_PIN_A	     1u

#define PORT_ADDRESS   0xcf8u /* 4 bytes; PORT_DATA follows */
#define PORTS	       8u
#define PORT_RESET_OFF 1u   /* 0xcf9 (82371SB, 4.2.6.1): */
#define RESET_CPU      0x04 /* going from 0 to 1 resets */
#define RESET_KIND     0x02 /* hard or soft: the same here */
#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_VALID  0x80fffffcu

/* 82441FX (290549-001). PAM0's upper half, bit 4: reads of 0xf0000 to 0xfffff go to RAM. */
#define BRIDGE_VENDOR	  0x8086u
#define BRIDGE_DEVICE	  0x1237u
#define BRIDGE_CLASS_REV  0x06000002u
#define BRIDGE_SUB_VENDOR 0x1af4u /* with BRIDGE_SUB_DEVICE: what SeaBIOS takes for a virtual machine */
#define BRIDGE_SUB_DEVICE 0x1100u
#define BRIDGE_PAM0	  0x59u
#define BRIDGE_PAM_READ	  0x10u

#define PCI_TAG	    STATE_TAG('P', 'C', 'I', 'H')
#define PCI_VERSION 1u

struct pci {
	struct device dev;
	struct bus *bus;
	struct pci_function bridge;
	struct pci_function *slot[PCI_MAX_SLOTS];
	uint32_t address;      /* CONFIG_ADDRESS */
	uint8_t reset_control; /* 0xcf9 */
	pthread_mutex_t intx_lock;
	uint32_t intx;	    /* intx_lock: slots that want their line high */
	uint32_t intx_mask; /* intx_lock: slots that the command register keeps low */
	uint32_t lines;	    /* intx_lock: a bit a GSI, as the host was told */
};

static struct pci *to_pci(struct device *dev)
{
	return (struct pci *)dev;
}

static uint32_t get_le(const uint8_t *p, unsigned bytes)
{
	uint32_t v = 0;

	memcpy(&v, p, bytes);
	return v;
}

static void put_le(uint8_t *p, unsigned bytes, uint32_t v)
{
	memcpy(p, &v, bytes);
}

/* ---- interrupt pins ---------------------------------------------------------------------------------------------- */

/* Under intx_lock. */
static void update_lines(struct pci *pci)
{
	uint32_t lines = 0, changed;

	for (unsigned slot = 1; slot < PCI_MAX_SLOTS; slot++)
		if (pci->intx & ~pci->intx_mask & 1u << slot)
			lines |= 1u << PCI_GSI(slot);
	changed = lines ^ pci->lines;
	pci->lines = lines;
	for (unsigned gsi = 0; changed; gsi++, changed >>= 1)
		if (changed & 1)
			pci->dev.host->irq_line(pci->dev.host->machine, gsi, lines >> gsi & 1);
}

void pci_set_intx(struct pci_function *fn, bool level)
{
	struct pci *pci = fn->pci;
	uint32_t bit = 1u << fn->slot;

	pthread_mutex_lock(&pci->intx_lock);
	pci->intx = level ? pci->intx | bit : pci->intx & ~bit;
	update_lines(pci);
	pthread_mutex_unlock(&pci->intx_lock);
}

static void follow_intx_disable(struct pci_function *fn)
{
	struct pci *pci = fn->pci;
	bool disabled = get_le(fn->config + CFG_COMMAND, 2) & COMMAND_INTX_DISABLE;
	uint32_t bit = 1u << fn->slot;

	pthread_mutex_lock(&pci->intx_lock);
	pci->intx_mask = disabled ? pci->intx_mask | bit : pci->intx_mask & ~bit;
	update_lines(pci);
	pthread_mutex_unlock(&pci->intx_lock);
}

/* ---- BARs -------------------------------------------------------------------------------------------------------- */

static bool bar_decodes(const struct pci_function *fn, uint64_t *gpa)
{
	*gpa = get_le(fn->config + CFG_BAR0, 4);
	return fn->bar_bytes && (get_le(fn->config + CFG_COMMAND, 2) & COMMAND_MEMORY) && *gpa >= PCI_MMIO_START &&
	       *gpa <= PCI_MMIO_END - fn->bar_bytes;
}

static void tell(struct pci_function *fn)
{
	if (fn->changed)
		fn->changed(fn);
}

static void update_bars(struct pci *pci)
{
	uint64_t gpa;

	for (unsigned slot = 0; slot < PCI_MAX_SLOTS; slot++) {
		struct pci_function *fn = pci->slot[slot];

		if (!fn || !fn->mapped || (bar_decodes(fn, &gpa) && gpa == fn->bar_gpa))
			continue;
		bus_unmap(pci->bus, fn->dev, fn->bar_region);
		fn->mapped = false;
		tell(fn);
	}
	for (unsigned slot = 0; slot < PCI_MAX_SLOTS; slot++) {
		struct pci_function *fn = pci->slot[slot];

		if (!fn || fn->mapped || !bar_decodes(fn, &gpa) ||
		    !bus_map(pci->bus, BUS_MMIO, gpa, fn->bar_bytes, fn->dev, fn->bar_region))
			continue;
		fn->mapped = true;
		fn->bar_gpa = gpa;
		tell(fn);
	}
}

/* The writable bits of [off, off + bytes) become those of value; what follows from that happens. */
static void config_write(struct pci_function *fn, unsigned off, unsigned bytes, uint32_t value)
{
	for (unsigned i = 0; i < bytes; i++) {
		uint8_t mask = fn->writable[off + i];

		fn->config[off + i] = (uint8_t)((fn->config[off + i] & ~mask) | ((value >> 8 * i) & mask));
	}
	if (off < CFG_BAR0 + 4) {
		follow_intx_disable(fn);
		update_bars(fn->pci);
	}
	tell(fn);
}

/* ---- for owners -------------------------------------------------------------------------------------------------- */

void pci_function_init(struct pci_function *fn, struct device *dev, uint16_t vendor, uint16_t device,
		       uint32_t class_rev, uint16_t sub_vendor, uint16_t sub_device)
{
	memset(fn, 0, sizeof(*fn));
	fn->dev = dev;
	put_le(fn->config + CFG_VENDOR, 2, vendor);
	put_le(fn->config + CFG_DEVICE, 2, device);
	put_le(fn->config + CFG_CLASS_REV, 4, class_rev);
	put_le(fn->config + CFG_SUB_VENDOR, 2, sub_vendor);
	put_le(fn->config + CFG_SUB_DEVICE, 2, sub_device);
	put_le(fn->writable + CFG_COMMAND, 2, COMMAND_WRITABLE);
}

/* Capabilities are appended only, each aligned to 4: the end of the last one is the end of all. */
unsigned pci_add_cap(struct pci_function *fn, uint8_t id, unsigned bytes)
{
	unsigned link = CFG_CAP_PTR, at = fn->caps_end ? fn->caps_end : CFG_CAPS;

	if (bytes < 2 || bytes > sizeof(fn->config) - at)
		abort();
	while (fn->config[link])
		link = fn->config[link] + 1u;
	fn->config[link] = (uint8_t)at;
	fn->config[at] = id;
	fn->caps_end = (at + bytes + 3) & ~3u;
	fn->config[CFG_STATUS] |= STATUS_CAP_LIST;
	return at;
}

void pci_attach(struct device *pcidev, struct pci_function *fn)
{
	struct pci *pci = to_pci(pcidev);
	unsigned slot = 0;

	while (slot < PCI_MAX_SLOTS && pci->slot[slot])
		slot++;
	if (slot == PCI_MAX_SLOTS)
		abort();
	pci->slot[slot] = fn;
	fn->slot = slot;
	fn->pci = pci;
	if (slot) {
		fn->config[CFG_INT_PIN] = INT_PIN_A;
		fn->writable[CFG_INT_LINE] = 0xff;
	}
	if (fn->bar_bytes)
		put_le(fn->writable + CFG_BAR0, 4, ~(fn->bar_bytes - 1));
}

void pci_assign(struct device *pcidev)
{
	struct pci *pci = to_pci(pcidev);
	uint64_t next = PCI_BAR_WINDOW;

	for (unsigned slot = 1; slot < PCI_MAX_SLOTS; slot++) {
		struct pci_function *fn = pci->slot[slot];

		if (!fn)
			continue;
		if (fn->bar_bytes) {
			next = (next + fn->bar_bytes - 1) & ~(uint64_t)(fn->bar_bytes - 1);
			config_write(fn, CFG_BAR0, 4, (uint32_t)next);
			next += fn->bar_bytes;
		}
		config_write(fn, CFG_INT_LINE, 1, PCI_GSI(slot));
		config_write(fn, CFG_COMMAND, 2, COMMAND_MEMORY | COMMAND_MASTER);
	}
}

void pci_function_reset(struct pci_function *fn)
{
	static const uint8_t zero[sizeof(fn->config)];

	pci_set_intx(fn, false);
	pci_function_apply(fn, zero);
}

void pci_function_save(const struct pci_function *fn, struct state_writer *out)
{
	state_put(out, fn->config, sizeof(fn->config));
}

int pci_function_check(const struct pci_function *fn, const uint8_t config[256], struct img_error *err)
{
	for (unsigned i = 0; i < sizeof(fn->config); i++)
		if ((config[i] ^ fn->config[i]) & ~fn->writable[i])
			return fail(err, IMG_E_UNSUPPORTED, "saved PCI slot %u differs at 0x%x: 0x%02x, here 0x%02x",
				    fn->slot, i, config[i], fn->config[i]);
	return 0;
}

void pci_function_apply(struct pci_function *fn, const uint8_t config[256])
{
	for (unsigned i = 0; i < sizeof(fn->config); i++)
		fn->config[i] = (uint8_t)((fn->config[i] & ~fn->writable[i]) | (config[i] & fn->writable[i]));
	follow_intx_disable(fn);
	update_bars(fn->pci);
	tell(fn);
}

/* ---- the device -------------------------------------------------------------------------------------------------- */

/* The function that CONFIG_ADDRESS selects, or NULL. */
static struct pci_function *selected(const struct pci *pci)
{
	unsigned bus = pci->address >> 16 & 0xff, slot = pci->address >> 11 & 0x1f, function = pci->address >> 8 & 7;

	if (!(pci->address & ADDRESS_ENABLE) || bus || function || slot >= PCI_MAX_SLOTS)
		return NULL;
	return pci->slot[slot];
}

static uint64_t pci_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct pci *pci = to_pci(dev);
	struct pci_function *fn;

	(void)region;
	if (off == 0 && bytes == 4)
		return pci->address;
	if (off == PORT_RESET_OFF && bytes == 1)
		return pci->reset_control;
	fn = selected(pci);
	if (off < 4 || !fn)
		return UINT64_MAX;
	return get_le(fn->config + (pci->address & 0xfc) + (off & 3), bytes);
}

static void pci_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct pci *pci = to_pci(dev);
	struct pci_function *fn;

	(void)region;
	if (off == 0 && bytes == 4) {
		pci->address = (uint32_t)value & ADDRESS_VALID;
	} else if (off == PORT_RESET_OFF && bytes == 1) {
		if (value & ~(uint64_t)pci->reset_control & RESET_CPU)
			dev->host->event(dev->host->machine, MACHINE_RESET);
		pci->reset_control = (uint8_t)(value & (RESET_KIND | RESET_CPU));
	} else if (off >= 4) {
		fn = selected(pci);
		if (fn)
			config_write(fn, (pci->address & 0xfc) + (unsigned)(off & 3), bytes, (uint32_t)value);
	}
}

static void pci_reset(struct device *dev)
{
	struct pci *pci = to_pci(dev);

	pci->address = 0;
	pci->reset_control = 0;
	pci_function_reset(&pci->bridge);
}

static void pci_save(struct device *dev, struct state_writer *out)
{
	struct pci *pci = to_pci(dev);

	state_begin(out, dev->tag, dev->instance, dev->version);
	state_put32(out, pci->address);
	state_put8(out, pci->reset_control);
	pci_function_save(&pci->bridge, out);
	state_end(out);
}

static int pci_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct pci *pci = to_pci(dev);
	uint32_t address = state_get32(in);
	uint8_t reset_control = state_get8(in);
	uint8_t config[PCI_STATE_BYTES];
	int ret;

	state_get(in, config, sizeof(config));
	ret = state_done(in, "PCI host bridge", err);
	if (ret == 0 && (address & ~ADDRESS_VALID || reset_control & ~(RESET_KIND | RESET_CPU)))
		ret = fail(err, IMG_E_CORRUPT, "PCI host bridge: address 0x%x, reset control 0x%x", address,
			   reset_control);
	if (ret == 0)
		ret = pci_function_check(&pci->bridge, config, err);
	if (ret != 0)
		return ret;
	pci->address = address;
	pci->reset_control = reset_control;
	pci_function_apply(&pci->bridge, config);
	return 0;
}

static void pci_destroy(struct device *dev)
{
	struct pci *pci = to_pci(dev);

	pthread_mutex_destroy(&pci->intx_lock);
	free(pci);
}

static const struct device_ops pci_ops = {
	.name = "pci",
	.read = pci_read,
	.write = pci_write,
	.reset = pci_reset,
	.save = pci_save,
	.load = pci_load,
	.destroy = pci_destroy,
};

struct device *pci_create(struct bus *bus, const struct machine_host *host)
{
	struct pci *pci = calloc(1, sizeof(*pci));

	if (!pci)
		abort();
	pci->dev = (struct device){ .ops = &pci_ops, .host = host, .tag = PCI_TAG, .version = PCI_VERSION };
	pci->bus = bus;
	pthread_mutex_init(&pci->intx_lock, NULL);
	pci_function_init(&pci->bridge, &pci->dev, BRIDGE_VENDOR, BRIDGE_DEVICE, BRIDGE_CLASS_REV, BRIDGE_SUB_VENDOR,
			  BRIDGE_SUB_DEVICE);
	pci->bridge.config[BRIDGE_PAM0] = BRIDGE_PAM_READ;
	pci_attach(&pci->dev, &pci->bridge);
	bus_add_device(bus, &pci->dev);
	bus_map(bus, BUS_PIO, PORT_ADDRESS, PORTS, &pci->dev, 0);
	return &pci->dev;
}
