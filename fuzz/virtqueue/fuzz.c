/* SPDX-License-Identifier: MIT */
/*
 * A guest that does what the input says to a virtio device: a program of register accesses, ring and descriptor bytes,
 * kicks and resets, over disk, console or random numbers. Requests are handled on this thread, so that an input does
 * the same every time.
 *
 * Beyond crashes: a read-only disk keeps its bytes; whatever a guest has done can be saved, loaded, and is the same
 * when saved again; and a reset makes the device as it was when it was new, which is how one input follows another.
 */
#include "fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include "virtio_driver.h"
#include "virtio_int.h"

#define DISK_BYTES	 (UINT64_C(64) << 10)
#define MAX_ACTIONS	 400
#define MAX_REQUESTS	 300 /* a request may write into the ring it came from, for ever */
#define MAX_DISK_SECTORS 4096u
#define STATE_BYTES	 8192

enum { START_READ_ONLY = 1, START_NOT = 2, START_KIND_SHIFT = 2, START_FEATURES_SHIFT = 4 };
enum { KIND_CONSOLE = 1, KIND_RNG = 2 };

/* A device on a board of its own; made once. */
struct rig {
	struct board b;
	struct virtio *v;
	uint8_t fresh[STATE_BYTES]; /* saved when it was new */
	size_t fresh_bytes;
};

static struct rig rigs[4][2]; /* by kind and by READ_ONLY */
static struct img *disk;
static uint8_t pattern[DISK_BYTES];

static void open_disk(void)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = "raw", .flags = IMG_OPEN_WRITE };
	int fd = memfd_create("disk", MFD_CLOEXEC);

	FUZZ_CHECK(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
	FUZZ_CHECK(img_open_fd(fd, &opts, &disk, NULL) == 0);
	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = (uint8_t)(i * 167 + i / 256);
}

static void fill_disk(void)
{
	FUZZ_CHECK(img_resize(disk, DISK_BYTES, IMG_RESIZE_SHRINK, NULL) == 0);
	FUZZ_CHECK(img_pwrite(disk, pattern, DISK_BYTES, 0, 0, NULL) == 0);
}

static void drop_output(void *ctx, const void *data, size_t bytes)
{
	(void)ctx;
	FUZZ_CHECK(data && bytes);
}

static struct virtio *create(struct board *b, unsigned start)
{
	struct virtio_console_options console = { .out = drop_output };
	struct virtio_blk_options blk = { .img = disk, .read_only = start & START_READ_ONLY, .serial = "fuzz" };

	switch (start >> START_KIND_SHIFT & 3) {
	case KIND_CONSOLE: return virtio_console_create(&console, &b->bus, b->pci, &b->host, &b->mem, NULL);
	case KIND_RNG: return virtio_rng_create(&b->bus, b->pci, &b->host, &b->mem, NULL);
	default: return virtio_blk_create(&blk, &b->bus, b->pci, &b->host, &b->mem, NULL);
	}
}

static size_t save(struct virtio *v, uint8_t *buf)
{
	struct state_writer w;
	size_t bytes = 0;

	state_start(&w, buf, STATE_BYTES);
	v->dev.ops->save(&v->dev, &w);
	FUZZ_CHECK(state_finish(&w, &bytes, NULL) == 0);
	return bytes;
}

static struct rig *get_rig(unsigned start)
{
	static uint8_t now[STATE_BYTES];
	struct rig *rig = &rigs[start >> START_KIND_SHIFT & 3][start & START_READ_ONLY];

	if (!rig->v) {
		board_init(&rig->b);
		rig->v = create(&rig->b, start);
		FUZZ_CHECK(rig->v);
		rig->fresh_bytes = save(rig->v, rig->fresh);
	}
	rig->v->dev.ops->reset(&rig->v->dev);
	FUZZ_CHECK(save(rig->v, now) == rig->fresh_bytes && memcmp(now, rig->fresh, rig->fresh_bytes) == 0);
	/* all zeros */
	FUZZ_CHECK(madvise(rig->b.mem.base, DRIVER_RAM_BYTES, MADV_DONTNEED) == 0);
	return rig;
}

/* An address that is likely to matter, or any. */
static uint64_t take_gpa(struct fuzz_input *in)
{
	static const uint64_t base[] = {
		DRIVER_DATA,	 DRIVER_DATA + 0x1000,	RING_DESC(0),	      RING_AVAIL(0),  RING_USED(0),
		RING_DESC(1),	 MEMORY_VGA_START - 8,	DRIVER_RAM_BYTES - 8, UINT64_MAX - 7, MEMORY_VGA_END - 8,
		MEMORY_HOLE - 8, DRIVER_DATA + 0x20000, DRIVER_DATA + 0xff8,  RING_AVAIL(1),  RING_USED(1),
	};
	unsigned code = (unsigned)fuzz_take(in, 1);

	if (code % 16 == 15)
		return fuzz_take(in, 8);
	return base[code % 16] + code / 16;
}

static uint32_t take_length(struct fuzz_input *in)
{
	static const uint32_t common[] = { 0, 1, 16, 512, 4096, 20, 15, 32, 513, 1u << 20, 0xffffffff, 65536 };
	unsigned code = (unsigned)fuzz_take(in, 1);

	return code < sizeof(common) / sizeof(common[0]) ? common[code] : (uint32_t)fuzz_take(in, 4);
}

static void write_guest(struct board *b, uint64_t gpa, const void *data, size_t bytes)
{
	void *to = memory_at(&b->mem, gpa, bytes);

	if (to)
		memcpy(to, data, bytes);
}

static void put_bytes(struct driver *d, struct fuzz_input *in)
{
	uint64_t gpa = take_gpa(in);
	size_t bytes = 1 + fuzz_take(in, 1) % 32;
	uint8_t data[32];

	for (size_t i = 0; i < bytes; i++)
		data[i] = (uint8_t)fuzz_take(in, 1);
	write_guest(d->b, gpa, data, bytes);
}

/* queue, index, address, length, flags and next; the table may be one of those that indirect descriptors name */
static void put_desc(struct driver *d, struct fuzz_input *in)
{
	unsigned where = (unsigned)fuzz_take(in, 1), flags_next = (unsigned)fuzz_take(in, 1);
	uint64_t table = where & 0x80 ? DRIVER_DATA : RING_DESC(where & 1);
	uint64_t words[2];

	words[0] = take_gpa(in);
	words[1] = take_length(in) | (uint64_t)(flags_next & 7) << 32 | (uint64_t)(flags_next >> 3) << 48;
	write_guest(d->b, table + (where >> 1 & 0x1f) * 16u, words, sizeof(words));
}

static void put_header(struct driver *d, struct fuzz_input *in)
{
	static const uint32_t types[] = { 0, 1, 4, 8, 11, 13, 2, 14 };
	uint64_t gpa = take_gpa(in);
	uint32_t type = types[fuzz_take(in, 1) % 8];
	uint64_t words[2] = { type, fuzz_take(in, 2) % 160 };

	write_guest(d->b, gpa, words, sizeof(words));
}

static void offer(struct driver *d, struct fuzz_input *in)
{
	unsigned code = (unsigned)fuzz_take(in, 1);

	driver_offer(d, code & 1, code >> 1);
}

static void access_bar(struct driver *d, struct fuzz_input *in, bool write)
{
	uint64_t off = fuzz_take(in, 2) % VIRTIO_BAR_BYTES;
	unsigned bytes = 1u << fuzz_take(in, 1) % 4;

	/* the bus lets no access leave a region */
	if (write)
		mmio_write(d->b, d->bar + off, bytes, fuzz_take(in, bytes));
	else
		mmio_read(d->b, d->bar + off, bytes);
}

/* A register of the common configuration, by its natural width. */
static void write_register(struct driver *d, struct fuzz_input *in)
{
	static const uint8_t regs[][2] = { { 0, 4 },  { 8, 4 },	 { 12, 4 }, { 16, 2 }, { 20, 1 }, { 22, 2 },
					   { 24, 2 }, { 26, 2 }, { 28, 2 }, { 32, 4 }, { 36, 4 }, { 40, 4 },
					   { 44, 4 }, { 48, 4 }, { 52, 4 }, { 20, 1 } };
	const uint8_t *reg = regs[fuzz_take(in, 1) % 16];

	reg_write(d, reg[0], reg[1], fuzz_take(in, reg[1]));
}

static void save_and_load(struct virtio *v, bool through_reset)
{
	static uint8_t first[STATE_BYTES], second[STATE_BYTES];
	size_t bytes = save(v, first);
	struct state_reader r;
	struct state st;

	if (through_reset)
		v->dev.ops->reset(&v->dev);
	FUZZ_CHECK(state_parse(&st, first, bytes, NULL) == 0);
	FUZZ_CHECK(state_open(&st, v->dev.tag, 0, v->dev.version, &r, NULL) == 0);
	FUZZ_CHECK(v->dev.ops->load(&v->dev, &r, NULL) == 0);
	FUZZ_CHECK(save(v, second) == bytes && memcmp(first, second, bytes) == 0);
}

static void act(struct driver *d, struct virtio *v, struct fuzz_input *in)
{
	switch (fuzz_take(in, 1) % 16) {
	case 0: put_bytes(d, in); break;
	case 1:
	case 2:
	case 3: put_desc(d, in); break;
	case 4: put_header(d, in); break;
	case 5:
	case 6: offer(d, in); break;
	case 7:
	case 8: virtio_worker_step(v, MAX_REQUESTS); break;
	case 9: write_register(d, in); break;
	case 10: access_bar(d, in, true); break;
	case 11: access_bar(d, in, false); break;
	case 12: config_write(d->b, d->slot, (unsigned)fuzz_take(in, 1), 1, (uint32_t)fuzz_take(in, 1)); break;
	case 13: save_and_load(v, fuzz_take(in, 1) & 1); break;
	case 14: driver_start(d, fuzz_take(in, 4)); break;
	default:
		if (v->kind->virtio_id == 3)
			virtio_console_input(v, "input", 5);
		else if (v->kind->virtio_id == 2)
			FUZZ_CHECK(img_resize(disk, fuzz_take(in, 2) % MAX_DISK_SECTORS * 512, IMG_RESIZE_SHRINK,
					      NULL) == 0);
		break;
	}
}

static void check_disk(void)
{
	static uint8_t now[DISK_BYTES];
	uint64_t bytes = img_size(disk) < DISK_BYTES ? img_size(disk) : DISK_BYTES;

	FUZZ_CHECK(img_pread(disk, now, bytes, 0, 0, NULL) == 0);
	/* resizing may have cut and grown it again: what it grew by is zero */
	for (uint64_t i = 0; i < bytes; i++)
		FUZZ_CHECK(now[i] == pattern[i] || now[i] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct fuzz_input in = { .at = data, .end = data + bytes };
	unsigned start = (unsigned)fuzz_take(&in, 1);
	struct rig *rig;
	struct driver d;

	if (!disk)
		open_disk();
	fill_disk();
	rig = get_rig(start);
	driver_attach(&d, &rig->b, 1);
	/* event indices, indirect descriptors, flush: one bit each */
	if (!(start & START_NOT))
		driver_start(&d, (uint64_t)(start >> START_FEATURES_SHIFT & 3) << 28 | (start >> 6 & 1) << 9);
	for (unsigned i = 0; i < MAX_ACTIONS && in.at < in.end; i++)
		act(&d, rig->v, &in);
	virtio_worker_step(rig->v, MAX_REQUESTS);
	save_and_load(rig->v, true);
	if (start & START_READ_ONLY)
		check_disk();
	return 0;
}
