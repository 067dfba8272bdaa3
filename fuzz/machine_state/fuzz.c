/* SPDX-License-Identifier: MIT */
/*
 * Saved machine state that nobody saved: the devices of a machine, without its processors, load what the input says.
 *
 * The first byte chooses: the rest of the input is the state itself; or it is a list of changes, each an offset and a
 * byte, to what a machine in the middle of its work has saved, so that what lies behind the checks of lengths and tags
 * is reached as well.
 *
 * Beyond crashes: what was loaded can be saved and loaded again, and is then the same; a device that refuses is as it
 * was; after all that the devices can be read, written and kicked; and a reset makes them new.
 */
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"
#include "platform.h"
#include "virtio_driver.h"
#include "virtio_int.h"

#define DISK_BYTES   (UINT64_C(64) << 10)
#define STATE_BYTES  32768u
#define MAX_REQUESTS 300
#define NR_VIRTIO    3u

struct pc {
	struct board b;
	struct virtio *virtio[NR_VIRTIO];
	struct device *pm; /* its timer runs: what it saves is never the same twice */
};

static struct img *disk;
static uint8_t worked[STATE_BYTES]; /* saved by a machine in the middle of its work */
static size_t worked_bytes;
static uint8_t fresh[STATE_BYTES]; /* saved after a reset */
static size_t fresh_bytes;

static void open_disk(void)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = "raw", .flags = IMG_OPEN_WRITE };
	int fd = memfd_create("disk", MFD_CLOEXEC);

	FUZZ_CHECK(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
	FUZZ_CHECK(img_open_fd(fd, &opts, &disk, NULL) == 0);
}

static void drop_output(void *ctx, const void *data, size_t bytes)
{
	(void)ctx;
	(void)data;
	(void)bytes;
}

static void build(struct pc *pc)
{
	struct virtio_console_options console = { .out = drop_output };
	struct virtio_blk_options blk = { .img = disk, .serial = "fuzz" };
	struct board *b = &pc->b;

	board_init(b);
	serial_create(&b->bus, &b->host);
	i8042_create(&b->bus, &b->host);
	cmos_create(&b->bus, &b->host, DRIVER_RAM_BYTES, 1);
	pc->pm = pm_create(&b->bus, &b->host);
	fw_cfg_create(&b->bus, &b->host, 1);
	pc->virtio[0] = virtio_blk_create(&blk, &b->bus, b->pci, &b->host, &b->mem, NULL);
	pc->virtio[1] = virtio_rng_create(&b->bus, b->pci, &b->host, &b->mem, NULL);
	pc->virtio[2] = virtio_console_create(&console, &b->bus, b->pci, &b->host, &b->mem, NULL);
	FUZZ_CHECK(pc->virtio[0] && pc->virtio[1] && pc->virtio[2]);
}

static size_t finish(struct state_writer *w)
{
	size_t bytes = 0;

	FUZZ_CHECK(state_finish(w, &bytes, NULL) == 0);
	return bytes;
}

static void save_devices(struct pc *pc, const struct device *but, struct state_writer *w)
{
	for (unsigned i = 0; i < pc->b.bus.nr_devices; i++) {
		struct device *dev = pc->b.bus.device[i];

		if (dev->ops->save && dev != but)
			dev->ops->save(dev, w);
	}
}

static size_t save(struct pc *pc, const struct device *but, uint8_t *buf)
{
	struct state_writer w;

	state_start(&w, buf, STATE_BYTES);
	save_devices(pc, but, &w);
	return finish(&w);
}

/* A device that refuses must be as before; those before it in the order have changed. */
static bool load_one(struct device *dev, bool compare, struct state_reader *r)
{
	static uint8_t before[STATE_BYTES], after[STATE_BYTES];
	struct state_writer w;
	size_t bytes;

	state_start(&w, before, sizeof(before));
	dev->ops->save(dev, &w);
	bytes = finish(&w);
	if (dev->ops->load(dev, r, NULL) == 0)
		return true;
	state_start(&w, after, sizeof(after));
	dev->ops->save(dev, &w);
	FUZZ_CHECK(finish(&w) == bytes && (!compare || memcmp(before, after, bytes) == 0));
	return false;
}

static bool load(struct pc *pc, const uint8_t *buf, size_t bytes)
{
	struct machine_shape shape;
	struct state_reader r;
	struct state st;
	bool all = true;

	if (state_parse(&st, buf, bytes, NULL) != 0)
		return false;
	(void)machine_shape_parse(&st, &shape, NULL);
	for (unsigned i = 0; i < pc->b.bus.nr_devices; i++) {
		struct device *dev = pc->b.bus.device[i];

		if (!dev->ops->load)
			continue;
		all &= state_open(&st, dev->tag, dev->instance, dev->version, &r, NULL) == 0 &&
		       load_one(dev, dev != pc->pm, &r);
	}
	(void)state_all_taken(&st, NULL);
	return all;
}

static void step(struct pc *pc)
{
	for (unsigned i = 0; i < NR_VIRTIO; i++)
		virtio_worker_step(pc->virtio[i], MAX_REQUESTS);
}

/* What a guest would do next, whatever it is that it finds. */
static void poke(struct pc *pc)
{
	struct board *b = &pc->b;
	uint64_t value = 0;

	for (unsigned port = 0; port < 0x1000; port++) {
		bus_read(&b->bus, BUS_PIO, port, &value, 1);
		/* but not the configuration mechanism's own: it would switch off what is to be reached */
		if (port < 0xcf8 || port > 0xcff)
			bus_write(&b->bus, BUS_PIO, port, &value, 1);
	}
	for (unsigned i = 0; i < NR_VIRTIO; i++) {
		const struct pci_function *fn = &pc->virtio[i]->fn;

		for (unsigned off = 0; fn->mapped && off < 0x38; off += 4)
			mmio_read(b, fn->bar_gpa + off, 4);
		for (unsigned vector = 0; fn->mapped && vector < 3; vector++)
			mmio_write(b, fn->bar_gpa + 0x380c + vector * 16, 4, 0);
		if (fn->mapped)
			mmio_read(b, fn->bar_gpa + 0x1000, 1);
	}
	step(pc);
}

/* Every device has a driver, and requests that wait. */
static void work(struct pc *pc)
{
	struct driver d[NR_VIRTIO];

	for (unsigned i = 0; i < NR_VIRTIO; i++) {
		driver_attach(&d[i], &pc->b, i + 1);
		if (i == 0)
			config_write(&pc->b, 1, d[0].msix + 2, 2, 0x8000);
		driver_start(&d[i], i == 0 ? UINT64_C(3) << 28 : 0);
		if (i == 0) {
			reg_write(&d[0], R_QUEUE_VECTOR, 2, 1);
			mmio_write(&pc->b, d[0].bar + 0x3810, 4, 0xfee00000);
		}
		driver_desc(&d[i], 0, 0, DRIVER_DATA, 16, D_NEXT, 1);
		driver_desc(&d[i], 0, 1, DRIVER_DATA + 0x1000, 513, D_WRITE, 0);
		driver_offer(&d[i], 0, 0);
	}
	step(pc);
	driver_offer(&d[0], 0, 0);
	virtio_config_changed(pc->virtio[2]);
}

/* Section MACH as format-spec/machine-state.md has it: the devices do not write it. */
static void put_shape(struct state_writer *w)
{
	static const uint8_t uuid[16] = { 1 };

	state_begin(w, STATE_TAG('M', 'A', 'C', 'H'), 0, 1);
	state_put64(w, DRIVER_RAM_BYTES);
	state_put32(w, 1);
	state_put32(w, 0);
	state_put32(w, 1);
	state_put32(w, 0);
	state_put64(w, DISK_BYTES);
	state_put(w, uuid, sizeof(uuid));
	state_put(w, uuid, sizeof(uuid));
	state_end(w);
}

static void reset(struct pc *pc)
{
	for (unsigned i = 0; i < pc->b.bus.nr_devices; i++)
		pc->b.bus.device[i]->ops->reset(pc->b.bus.device[i]);
	FUZZ_CHECK(madvise(pc->b.mem.base, DRIVER_RAM_BYTES, MADV_DONTNEED) == 0);
}

/* Once. */
static void start(struct pc *pc)
{
	struct state_writer w;

	open_disk();
	build(pc);
	reset(pc);
	fresh_bytes = save(pc, pc->pm, fresh);
	work(pc);
	state_start(&w, worked, sizeof(worked));
	put_shape(&w);
	save_devices(pc, NULL, &w);
	worked_bytes = finish(&w);
	FUZZ_CHECK(load(pc, worked, worked_bytes));
}

/* In: a list of changes, 3 bytes each. */
static size_t changed(struct fuzz_input *in, uint8_t *buf)
{
	memcpy(buf, worked, worked_bytes);
	while (in->at < in->end) {
		size_t off = fuzz_take(in, 2) % worked_bytes;

		buf[off] = (uint8_t)fuzz_take(in, 1);
	}
	return worked_bytes;
}

static void load_and_go_on(struct pc *pc, const uint8_t *buf, size_t bytes)
{
	static uint8_t full[STATE_BYTES], first[STATE_BYTES], second[STATE_BYTES];
	bool all = load(pc, buf, bytes);
	size_t saved = save(pc, pc->pm, first);

	FUZZ_CHECK(load(pc, full, save(pc, NULL, full)));
	FUZZ_CHECK(save(pc, pc->pm, second) == saved && memcmp(first, second, saved) == 0);
	if (all)
		poke(pc);
	/* whatever the state was: the reset button helps */
	reset(pc);
	FUZZ_CHECK(save(pc, pc->pm, first) == fresh_bytes && memcmp(first, fresh, fresh_bytes) == 0);
	work(pc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static uint8_t state[STATE_BYTES];
	static struct pc pc;
	struct fuzz_input in = { .at = data, .end = data + bytes };

	if (!disk)
		start(&pc);
	reset(&pc);
	if (fuzz_take(&in, 1) & 1) {
		size_t nr = changed(&in, state);

		load_and_go_on(&pc, state, nr);
	} else {
		load_and_go_on(&pc, in.at, (size_t)(in.end - in.at));
	}
	return 0;
}
