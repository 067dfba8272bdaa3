/* SPDX-License-Identifier: MIT */
/* Operations on the content of the top. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checked.h"
#include "model.h"

static struct mfile *top(struct model *m)
{
	return &m->files[m->top];
}

/* Random bytes, repeating ones (they compress), zeros, or some blocks of each. */
static void fill(uint8_t *buf, uint64_t bytes, uint32_t seed)
{
	uint64_t state = seed, pattern = rng_next(&state);
	unsigned kind = seed % 8;

	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t v = 0;

		if (i % 4096 == 0 && seed % 8 >= 6)
			kind = (unsigned)(rng_next(&state) % 6);
		if (kind <= 2)
			v = rng_next(&state);
		else if (kind <= 4)
			v = pattern + (i / 8 & 7);
		memcpy(buf + i, &v, (size_t)min_u64(8, bytes - i));
	}
}

static unsigned write_flags(uint32_t r)
{
	return (r % 16 == 0 ? IMG_IO_FUA : 0u) | (r >> 4 & 1 ? IMG_IO_DETECT_ZEROES : 0u) |
	       (r >> 5 & 1 ? IMG_IO_COMPRESS : 0u);
}

static void touches(struct model *m, uint64_t bytes, uint64_t off)
{
	m->touched_off = off;
	m->touched_bytes = bytes;
}

static int write_at(struct model *m, uint64_t bytes, uint64_t off, uint32_t seed, unsigned flags)
{
	struct img_error err = { 0 };

	bytes = min_u64(min_u64(bytes, IO_BYTES), top(m)->head.size_bytes - off);
	if (m->verbose)
		printf("      write 0x%" PRIx64 " at 0x%" PRIx64 " flags 0x%x\n", bytes, off, flags);
	fill(m->buf, bytes, seed);
	touches(m, bytes, off);
	if (expect(m, img_pwrite(m->img, m->buf, bytes, off, flags, &err), 0, &err, "write") != 0)
		return -1;
	flat_write(&top(m)->head, m->buf, bytes, off);
	return 0;
}

/* Any offset and length. */
int op_write(struct model *m, const uint32_t *r)
{
	uint64_t size = top(m)->head.size_bytes;
	static const uint32_t most[] = { 512, 4096, 20000, 200000 };

	if (size == 0)
		return 0;
	return write_at(m, 1 + r[1] % most[r[3] >> 8 & 3], r[0] % size, r[2], write_flags(r[3]));
}

int op_write_blocks(struct model *m, const uint32_t *r)
{
	uint64_t size = top(m)->head.size_bytes, block = m->block_bytes;

	if (size == 0)
		return 0;
	return write_at(m, block * (1 + r[1] % (r[1] >> 8 & 7 ? 4 : 40)), r[0] % size / block * block, r[2],
			write_flags(r[3]));
}

int op_write_units(struct model *m, const uint32_t *r)
{
	uint64_t size = top(m)->head.size_bytes, unit = m->unit_bytes;

	if (size == 0)
		return 0;
	return write_at(m, unit * (1 + r[1] % 2), r[0] % size / unit * unit, r[2] / 8 * 8 + 3 + r[2] % 5,
			write_flags(r[3]) | IMG_IO_COMPRESS);
}

static void pick_range(struct model *m, const uint32_t *r, uint64_t *bytes, uint64_t *off)
{
	uint64_t size = top(m)->head.size_bytes, block = m->block_bytes;

	*off = r[0] % size;
	*bytes = 1 + r[1] % ((r[3] & 3) == 0 ? size : 100000);
	if (r[3] >> 2 & 1) {
		*off = *off / block * block;
		*bytes = round_up(*bytes, block);
	}
	if ((r[3] >> 3 & 31) == 0) {
		*off = 0;
		*bytes = size;
	}
	*bytes = min_u64(*bytes, size - *off);
}

int op_zero(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	uint64_t bytes, off;

	if (top(m)->head.size_bytes == 0)
		return 0;
	pick_range(m, r, &bytes, &off);
	if (m->verbose)
		printf("      zero 0x%" PRIx64 " at 0x%" PRIx64 "\n", bytes, off);
	touches(m, bytes, off);
	if (expect(m, img_zero(m->img, bytes, off, r[2] & 1 ? IMG_IO_NO_UNMAP : 0, &err), 0, &err, "zero") != 0)
		return -1;
	flat_zero(&top(m)->head, bytes, off);
	return 0;
}

/* Whole blocks read as zeros where the format says so; other bytes may also be as before. */
int op_discard(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct flat *head = &top(m)->head;
	uint64_t bytes, off, block = m->block_bytes, size = head->size_bytes;

	if (size == 0)
		return 0;
	pick_range(m, r, &bytes, &off);
	if (m->verbose)
		printf("      discard 0x%" PRIx64 " at 0x%" PRIx64 "\n", bytes, off);
	touches(m, bytes, off);
	if (expect(m, img_discard(m->img, bytes, off, 0, &err), 0, &err, "discard") != 0)
		return -1;
	for (uint64_t at = off; at < off + bytes;) {
		uint64_t n = min_u64(round_down(at, block) + block, off + bytes) - at;
		bool whole = at % block == 0 && (n == block || at + n == size);

		if (expect(m, img_pread(m->img, m->buf, n, at, 0, &err), 0, &err, "read after discard") != 0)
			return -1;
		flat_read(head, m->buf2, n, at);
		for (uint64_t i = 0; i < n; i++) {
			if (m->buf[i] != 0 && ((top(m)->format->discard_zeroes && whole) || m->buf[i] != m->buf2[i]))
				return fail(m,
					    "byte 0x%" PRIx64 " is 0x%02x after a discard of 0x%" PRIx64
					    " at 0x%" PRIx64,
					    at + i, m->buf[i], bytes, off);
		}
		flat_write(head, m->buf, n, at);
		at += n;
	}
	return 0;
}

int op_read(struct model *m, const uint32_t *r)
{
	uint64_t bytes, off;

	if (top(m)->head.size_bytes == 0)
		return 0;
	pick_range(m, r, &bytes, &off);
	return check_range(m, m->img, &top(m)->head, bytes, off, "read");
}

int op_flush(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };

	(void)r;
	return expect(m, img_flush(m->img, 0, &err), 0, &err, "flush");
}

int op_checkpoint(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };

	(void)r;
	return expect(m, img_flush(m->img, IMG_FLUSH_CHECKPOINT, &err), 0, &err, "checkpoint");
}

int op_extents(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct img_extent ext[7];
	const struct flat *head = &top(m)->head;
	uint64_t bytes, off;

	if (head->size_bytes == 0)
		return 0;
	pick_range(m, r, &bytes, &off);
	while (bytes > 0) {
		size_t nr = 0;

		if (expect(m, img_extents(m->img, bytes, off, 0, ext, 1 + r[2] % 7, &nr, &err), 0, &err, "extents") !=
		    0)
			return -1;
		if (nr == 0 || nr > 1 + r[2] % 7)
			return fail(m, "extents gave %zu entries", nr);
		for (size_t i = 0; i < nr; i++) {
			if (ext[i].off != off || ext[i].bytes == 0 || ext[i].bytes > bytes)
				return fail(m, "extent of 0x%" PRIx64 " at 0x%" PRIx64 ", wanted from 0x%" PRIx64,
					    ext[i].bytes, ext[i].off, off);
			if (!(ext[i].flags & IMG_EXT_DATA) == !(ext[i].flags & IMG_EXT_ZERO))
				return fail(m, "extent at 0x%" PRIx64 " has flags 0x%x", off, ext[i].flags);
			if (ext[i].flags & IMG_EXT_ZERO && !flat_is_zero(head, ext[i].bytes, off))
				return fail(m, "extent of 0x%" PRIx64 " at 0x%" PRIx64 " is no zeros", ext[i].bytes,
					    off);
			off += ext[i].bytes;
			bytes -= ext[i].bytes;
		}
	}
	return 0;
}

int op_vm_write(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct flat *vm = &top(m)->vm;
	uint64_t off = r[0] % (vm->size_bytes + 100000), bytes = 1 + r[1] % 80000;

	if (off + bytes > (1u << 20))
		return 0;
	fill(m->buf, bytes, r[2]);
	if (expect(m, img_vmstate_write(m->img, m->buf, bytes, off, &err), 0, &err, "vmstate write") != 0)
		return -1;
	if (off + bytes > vm->size_bytes)
		flat_resize(vm, off + bytes);
	flat_write(vm, m->buf, bytes, off);
	return 0;
}

int op_vm_zero(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct flat *vm = &top(m)->vm;
	uint64_t off = r[0] % (vm->size_bytes + 100000), bytes = 1 + r[1] % (r[2] & 1 ? 600000 : 30000);

	if (r[2] & 2)
		off = off / 4096 * 4096;
	if (off + bytes > (1u << 20))
		return 0;
	if (expect(m, img_vmstate_zero(m->img, bytes, off, &err), 0, &err, "vmstate zero") != 0)
		return -1;
	if (off + bytes > vm->size_bytes)
		flat_resize(vm, off + bytes);
	flat_zero(vm, bytes, off);
	return 0;
}

int op_vm_read(struct model *m, const uint32_t *r)
{
	struct msnap *s = r[0] & 1 ? pick_snap(m, r[1]) : NULL;
	const struct flat none = { 0 };

	return check_vm(m, m->img, s ? s->name : NULL, !s ? &top(m)->vm : s->has_vm ? &s->vm : &none);
}

int op_vm_load(struct model *m, const uint32_t *r)
{
	struct msnap *s = r[0] & 1 ? pick_snap(m, r[1]) : NULL;
	const struct flat none = { 0 }, *truth = !s ? &top(m)->vm : s->has_vm ? &s->vm : &none;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = truth->size_bytes / page, off, bytes;
	struct img_error err = { 0 };
	uint8_t *mem;
	int ret;

	if (pages == 0)
		return 0;
	off = r[2] % pages * page;
	bytes = (1 + r[3] % (pages - off / page)) * page;
	mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return fail(m, "no memory to load machine state into");
	memset(mem, 0xa5, bytes);
	ret = expect(
		m, img_vmstate_load(m->img, s ? s->name : NULL, mem, bytes, off, r[0] & 2 ? IMG_VMSTATE_MAP : 0, &err),
		0, &err, "vmstate load");
	if (ret == 0 && flat_compare(truth, mem, bytes, off) != UINT64_MAX)
		ret = fail(m, "vmstate of %s is loaded wrong within 0x%" PRIx64 " at 0x%" PRIx64, s ? s->name : "head",
			   bytes, off);
	if (ret == 0)
		ret = expect(m, img_vmstate_verify(m->img, s ? s->name : NULL, bytes, off, &err), 0, &err,
			     "vmstate verify");
	munmap(mem, bytes);
	return ret;
}

int op_vm_resize(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	uint64_t bytes = r[0] & 1 ? r[1] % 200000 : 0;

	if (expect(m, img_vmstate_resize(m->img, bytes, &err), 0, &err, "vmstate resize") != 0)
		return -1;
	flat_resize(&top(m)->vm, bytes);
	return 0;
}

int op_resize(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct flat *head = &top(m)->head;
	uint64_t now = head->size_bytes, size = r[0] % (m->geometry.max_bytes / 512) * 512;
	bool may_shrink = r[3] & 1;
	int want, ret;

	if (r[3] & 6)
		size = now / 2 / 512 * 512 + r[1] % (now + 1) / 512 * 512;
	if (r[3] & 8)
		size = round_up(size, m->block_bytes);
	size = min_u64(size, m->geometry.max_bytes);
	if (top(m)->format->plain && size == 0)
		size = 512;
	if (top(m)->format->several) /* one that has room in one file can grow, once; there is no room for many files */
		size = min_u64(size, now + 4 * 65536);
	want = size < now && !may_shrink ? IMG_E_REFUSED : 0;
	if (m->verbose)
		printf("      resize %" PRIu64 " to %" PRIu64 "\n", now, size);
	touches(m, size, 0);
	ret = img_resize(m->img, size, may_shrink ? IMG_RESIZE_SHRINK : 0, &err);
	if (ret == IMG_E_UNSUPPORTED && ((top(m)->nr_snaps && top(m)->is_v2) || top(m)->format->several))
		return 0;
	if (ret == IMG_E_REFUSED && size == 0 && m->has_bitmaps)
		return 0;
	if (expect(m, ret, want, &err, "resize") != 0)
		return -1;
	if (want != 0)
		return 0;
	flat_resize(head, size);
	bitmaps_resized(m, m->top, now);
	return 0;
}
