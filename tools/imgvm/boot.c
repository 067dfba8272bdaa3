/* SPDX-License-Identifier: MIT */
/*
 * See boot.h. This file holds the files, and sends each call to boot_bios.c or boot_linux.c.
 *
 * A ROM is small and mapped into the guest: it is read once. A kernel and its initrd are tens of megabytes that only a
 * reset needs again: they are held open, and read into the guest when it starts.
 */
#include "boot_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"

/* ---- files ------------------------------------------------------------------------------------------------------- */

int boot_file_read(const struct boot_file *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t *to = buf;

	while (bytes > 0) {
		ssize_t nr = pread(file->fd, to, bytes, (off_t)off);

		if (nr < 0 && errno == EINTR)
			continue;
		if (nr < 0)
			return fail_errno(err, "%.180s", file->path);
		if (nr == 0)
			return fail(err, IMG_E_CHANGED, "%.180s has become shorter", file->path);
		to += nr;
		off += (uint64_t)nr;
		bytes -= (uint64_t)nr;
	}
	return 0;
}

static void *ram_at(struct memory *mem, uint64_t gpa, uint64_t bytes, struct img_error *err)
{
	void *at = memory_at(mem, gpa, bytes);

	if (!at)
		fail(err, IMG_E_LIMIT, "booting needs memory at 0x%llx, 0x%llx bytes: give the machine more",
		     (unsigned long long)gpa, (unsigned long long)bytes);
	return at;
}

int boot_file_load(const struct boot_file *file, struct memory *mem, uint64_t gpa, uint64_t bytes, uint64_t off,
		   struct img_error *err)
{
	void *to;
	int ret;

	if (bytes == 0)
		return 0;
	to = ram_at(mem, gpa, bytes, err);
	if (!to)
		return IMG_E_LIMIT;
	ret = boot_file_read(file, to, bytes, off, err);
	memory_wrote(mem, to, bytes);
	return ret;
}

int boot_put(struct memory *mem, uint64_t gpa, const void *data, uint64_t bytes, struct img_error *err)
{
	void *to = ram_at(mem, gpa, bytes, err);

	if (!to)
		return IMG_E_LIMIT;
	memcpy(to, data, bytes);
	memory_wrote(mem, to, bytes);
	return 0;
}

int boot_file_open(struct boot_file *file, const char *path, struct img_error *err)
{
	struct stat st;

	file->path = strdup(path);
	if (!file->path)
		return fail(err, IMG_E_NOMEM, "out of memory");
	/* O_NONBLOCK: a fifo must not hold us up before we see what it is */
	file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file->fd < 0 && errno == ENOENT)
		return fail(err, IMG_E_NOENT, "%.180s: no such file", path);
	if (file->fd < 0 || fstat(file->fd, &st) != 0)
		return fail_errno(err, "%.180s", path);
	if (!S_ISREG(st.st_mode))
		return fail(err, IMG_E_UNSUPPORTED, "%.180s is not a regular file", path);
	file->bytes = (uint64_t)st.st_size;
	return 0;
}

void boot_file_close(struct boot_file *file)
{
	if (file->fd >= 0)
		close(file->fd);
	free(file->path);
	*file = (struct boot_file){ .fd = -1 };
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

int boot_open(const struct boot_options *opts, struct boot **out, struct img_error *err)
{
	struct boot *boot = calloc(1, sizeof(*boot));
	int ret;

	*out = NULL;
	if (!boot)
		return fail(err, IMG_E_NOMEM, "out of memory");
	boot->kernel.fd = boot->initrd.fd = -1;
	boot->nr_vcpus = opts->nr_vcpus;
	boot->linux_boot = opts->kernel != NULL;
	ret = boot->linux_boot ? boot_linux_open(boot, opts, err) : boot_bios_open(boot, opts, err);
	if (ret != 0)
		boot_free(boot);
	else
		*out = boot;
	return ret;
}

void boot_free(struct boot *boot)
{
	if (!boot)
		return;
	if (boot->rom)
		munmap(boot->rom, boot->rom_bytes);
	boot_file_close(&boot->kernel);
	boot_file_close(&boot->initrd);
	free(boot->append);
	free(boot);
}

bool boot_is_linux(const struct boot *boot)
{
	return boot->linux_boot;
}

const uint8_t *boot_rom(const struct boot *boot, uint64_t *bytes)
{
	*bytes = boot->rom_bytes;
	return boot->rom;
}

void boot_configure(const struct boot *boot, const struct memory *mem, struct device *fw_cfg)
{
	if (!boot->linux_boot)
		boot_bios_configure(boot, mem, fw_cfg);
}

int boot_load(const struct boot *boot, struct memory *mem, struct boot_regs *regs, struct img_error *err)
{
	memset(regs, 0, sizeof(*regs));
	if (boot->linux_boot)
		return boot_linux_load(boot, mem, regs, err);
	return boot_bios_load(boot, mem, err);
}
