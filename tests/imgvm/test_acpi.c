/* SPDX-License-Identifier: MIT */
/*
 * The tables as a system walks them, put into memory by us and by a loader that does what SeaBIOS's does. What they say
 * is read a second time by a judge that is not ours: iasl takes them apart, and compiles what it has found.
 */
#include "fw_cfg_reader.h"

#include <stdio.h>
#include <unistd.h>

#include "acpi.h"
#include "pci.h"
#include "platform.h"

#define RAM_BYTES (UINT64_C(64) << 20)
#define HIGH_GPA  UINT64_C(0x3000040) /* where our loader puts files; both are no rounder than what was asked for */
#define FSEG_GPA  UINT64_C(0xf6f10)

struct walk {
	struct memory *mem;
	uint64_t fadt, madt, dsdt, facs;
};

static uint64_t number(const struct memory *mem, uint64_t gpa, unsigned bytes)
{
	const void *p = memory_at(mem, gpa, bytes);
	uint64_t v = 0;

	assert_non_null(p);
	memcpy(&v, p, bytes);
	return v;
}

static uint8_t sum(const struct memory *mem, uint64_t gpa, uint64_t bytes)
{
	const uint8_t *p = memory_at(mem, gpa, bytes);
	uint8_t v = 0;

	assert_non_null(p);
	for (uint64_t i = 0; i < bytes; i++)
		v = (uint8_t)(v + p[i]);
	return v;
}

static void check_table(const struct memory *mem, uint64_t gpa, const char *signature, uint64_t min_bytes)
{
	uint64_t bytes = number(mem, gpa + 4, 4);

	assert_memory_equal(memory_at(mem, gpa, 4), signature, 4);
	assert_true(bytes >= min_bytes);
	assert_int_equal(sum(mem, gpa, bytes), 0);
	assert_int_equal(gpa % 4, 0);
}

/* An RSDT or XSDT names the same two tables. */
static void check_root(struct walk *w, uint64_t root, const char *signature, unsigned pointer_bytes)
{
	check_table(w->mem, root, signature, 36);
	assert_int_equal(number(w->mem, root + 4, 4), 36 + 2 * pointer_bytes);
	w->fadt = number(w->mem, root + 36, pointer_bytes);
	w->madt = number(w->mem, root + 36 + pointer_bytes, pointer_bytes);
	check_table(w->mem, w->fadt, "FACP", 276);
	check_table(w->mem, w->madt, "APIC", 44);
}

static void check_gas(const struct memory *mem, uint64_t gpa, unsigned bits, unsigned port)
{
	assert_int_equal(number(mem, gpa, 1), 1);
	assert_int_equal(number(mem, gpa + 1, 1), bits);
	assert_int_equal(number(mem, gpa + 2, 1), 0);
	assert_int_equal(number(mem, gpa + 4, 8), port);
}

static void check_fadt(struct walk *w)
{
	const struct memory *mem = w->mem;
	uint64_t fadt = w->fadt, flags = number(mem, fadt + 112, 4);

	w->facs = number(mem, fadt + 36, 4);
	w->dsdt = number(mem, fadt + 40, 4);
	assert_int_equal(number(mem, fadt + 140, 8), w->dsdt);
	assert_memory_equal(memory_at(mem, w->facs, 4), "FACS", 4);
	assert_int_equal(w->facs % 64, 0);
	assert_int_equal(number(mem, w->facs + 4, 4), 64);
	check_table(mem, w->dsdt, "DSDT", 36);
	assert_int_equal(number(mem, fadt + 46, 2), PM_SCI);
	assert_int_equal(number(mem, fadt + 48, 4), 0); /* no SMI command: always ACPI */
	assert_int_equal(number(mem, fadt + 56, 4), PM_EVT_PORT);
	assert_int_equal(number(mem, fadt + 64, 4), PM_CNT_PORT);
	assert_int_equal(number(mem, fadt + 76, 4), PM_TIMER_PORT);
	check_gas(mem, fadt + 148, 32, PM_EVT_PORT);
	check_gas(mem, fadt + 172, 16, PM_CNT_PORT);
	check_gas(mem, fadt + 208, 32, PM_TIMER_PORT);
	check_gas(mem, fadt + 116, 8, PM_RESET_PORT);
	assert_int_equal(number(mem, fadt + 128, 1) & 0x04, 0x04);
	assert_true(flags & 1u << 10);		      /* there is a reset register */
	assert_true(flags & 1u << 8);		      /* the timer has 32 bits */
	assert_false(flags & 1u << 4);		      /* the power button is a fixed one */
	assert_false(flags & 1u << 20);		      /* not hardware-reduced */
	assert_false(number(mem, fadt + 109, 2) & 2); /* no 8042 */
}

static void check_madt(struct walk *w, unsigned nr_vcpus)
{
	const struct memory *mem = w->mem;
	uint64_t at = w->madt + 44, end = w->madt + number(mem, w->madt + 4, 4), overridden = 0;
	unsigned nr_apics = 0, nr_ioapics = 0, nr_nmis = 0;

	assert_int_equal(number(mem, w->madt + 36, 4), 0xfee00000);
	while (at < end) {
		uint64_t bytes = number(mem, at + 1, 1);

		assert_true(bytes >= 6 && bytes <= end - at);
		switch (number(mem, at, 1)) {
		case 0:
			assert_int_equal(number(mem, at + 3, 1), nr_apics++);
			assert_int_equal(number(mem, at + 4, 4), 1);
			break;
		case 1:
			nr_ioapics++;
			assert_true(number(mem, at + 2, 1) >= nr_vcpus);
			assert_int_equal(number(mem, at + 4, 4), 0xfec00000);
			assert_int_equal(number(mem, at + 8, 4), 0);
			break;
		case 2:
			assert_int_equal(number(mem, at + 3, 1), number(mem, at + 4, 4));
			assert_int_equal(number(mem, at + 8, 2), 0x0d); /* level, active high */
			overridden |= UINT64_C(1) << number(mem, at + 4, 4);
			break;
		case 4:
			nr_nmis++;
			assert_int_equal(number(mem, at + 2, 1), 0xff);
			assert_int_equal(number(mem, at + 5, 1), 1);
			break;
		default: fail();
		}
		at += bytes;
	}
	assert_int_equal(nr_apics, nr_vcpus);
	assert_int_equal(nr_ioapics, 1);
	assert_int_equal(nr_nmis, 1);
	assert_true(overridden >> PM_SCI & 1);
	for (unsigned slot = 1; slot < PCI_MAX_SLOTS; slot++)
		assert_true(overridden >> PCI_GSI(slot) & 1);
}

static void check_all(struct walk *w, uint64_t rsdp, unsigned nr_vcpus)
{
	struct walk old = { .mem = w->mem };

	assert_memory_equal(memory_at(w->mem, rsdp, 8), "RSD PTR ", 8);
	assert_int_equal(rsdp % 16, 0);
	assert_int_equal(number(w->mem, rsdp + 15, 1), 2);
	assert_int_equal(sum(w->mem, rsdp, 20), 0);
	assert_int_equal(sum(w->mem, rsdp, number(w->mem, rsdp + 20, 4)), 0);
	check_root(&old, number(w->mem, rsdp + 16, 4), "RSDT", 4);
	check_root(w, number(w->mem, rsdp + 24, 8), "XSDT", 8);
	assert_true(old.fadt == w->fadt && old.madt == w->madt);
	check_fadt(w);
	check_madt(w, nr_vcpus);
}

static void test_installed(void **unused)
{
	struct img_error err = { 0 };
	struct memory mem;

	(void)unused;
	for (unsigned nr_vcpus = 1; nr_vcpus <= 8; nr_vcpus++) {
		struct walk w = { .mem = &mem };
		uint64_t rsdp;

		assert_int_equal(memory_init(&mem, RAM_BYTES, &err), 0);
		rsdp = acpi_install(&mem, nr_vcpus);
		assert_in_range(rsdp, ACPI_GPA, ACPI_GPA + ACPI_BYTES - 36);
		check_all(&w, rsdp, nr_vcpus);
		assert_in_range(w.dsdt + number(&mem, w.dsdt + 4, 4), ACPI_GPA, ACPI_GPA + ACPI_BYTES);
		memory_free(&mem);
	}
}

/* ---- the loader -------------------------------------------------------------------------------------------------- */

struct loaded {
	char name[56];
	uint64_t gpa;
	uint32_t bytes;
};

static struct loaded *find_loaded(struct loaded *files, const uint8_t *name)
{
	for (unsigned i = 0; i < 2; i++)
		if (files[i].bytes && strcmp(files[i].name, (const char *)name) == 0)
			return &files[i];
	fail_msg("%s was not allocated", (const char *)name);
	return NULL;
}

static void run_command(struct fixture *f, struct memory *mem, struct loaded *files, const uint8_t *c)
{
	uint32_t command, a, start, bytes;

	memcpy(&command, c, 4);
	if (command == 1) {
		uint8_t zone = c[64];
		struct loaded *file = &files[zone - 1];
		uint8_t *data;

		assert_in_range(zone, 1, 2);
		memcpy(&a, c + 60, 4);
		assert_true(a && !(a & (a - 1)));
		strcpy(file->name, (const char *)c + 4);
		file->gpa = zone == 1 ? HIGH_GPA : FSEG_GPA;
		assert_int_equal(file->gpa % a, 0);
		data = fw_file(f, file->name, &file->bytes);
		assert_non_null(data);
		memcpy(memory_at(mem, file->gpa, file->bytes), data, file->bytes);
		free(data);
	} else if (command == 2) {
		struct loaded *dest = find_loaded(files, c + 4), *src = find_loaded(files, c + 60);
		uint64_t v;

		memcpy(&a, c + 116, 4);
		assert_true(c[120] == 4 || c[120] == 8);
		assert_true(a + c[120] <= dest->bytes);
		v = number(mem, dest->gpa + a, c[120]);
		assert_true(v < src->bytes);
		v += src->gpa;
		memcpy(memory_at(mem, dest->gpa + a, c[120]), &v, c[120]);
	} else {
		struct loaded *file = find_loaded(files, c + 4);
		uint8_t *at;

		assert_int_equal(command, 3);
		memcpy(&a, c + 60, 4);
		memcpy(&start, c + 64, 4);
		memcpy(&bytes, c + 68, 4);
		assert_true(a < file->bytes && bytes <= file->bytes && start <= file->bytes - bytes);
		at = memory_at(mem, file->gpa + a, 1);
		*at = (uint8_t)(*at - sum(mem, file->gpa + start, bytes));
	}
}

static void test_loaded(void **unused)
{
	struct img_error err = { 0 };
	struct loaded files[2] = { 0 };
	struct fixture f;
	struct memory mem;
	struct walk w = { .mem = &mem };
	uint8_t *commands;
	uint32_t bytes;

	(void)unused;
	fixture_init(&f);
	assert_int_equal(memory_init(&mem, RAM_BYTES, &err), 0);
	acpi_add_fw_cfg(fw_cfg_create(&f.bus, &f.host, 2), 2);
	commands = fw_file(&f, "etc/table-loader", &bytes);
	assert_non_null(commands);
	assert_true(bytes && bytes % 128 == 0);
	for (uint32_t at = 0; at < bytes; at += 128)
		run_command(&f, &mem, files, commands + at);
	check_all(&w, FSEG_GPA, 2);
	free(commands);
	memory_free(&mem);
	bus_free(&f.bus);
}

/* ---- iasl -------------------------------------------------------------------------------------------------------- */

static void write_table(const struct memory *mem, uint64_t gpa, const char *dir, const char *name)
{
	uint64_t bytes = number(mem, gpa + 4, 4);
	char path[160];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s.aml", dir, name);
	file = fopen(path, "wb");
	assert_non_null(file);
	assert_int_equal(fwrite(memory_at(mem, gpa, bytes), 1, bytes, file), bytes);
	assert_int_equal(fclose(file), 0);
}

/* Fails with the output of the command if it fails, or if it prints what grep -E finds. */
static void expect_quiet(const char *dir, const char *command, const char *complaint)
{
	char line[512];
	int status;

	snprintf(line, sizeof(line), "cd %s && { %s; } >log 2>&1 && ! grep -E '%s' log", dir, command, complaint);
	status = system(line);
	if (status == 0)
		return;
	snprintf(line, sizeof(line), "cat %s/log >&2", dir);
	if (system(line) != 0)
		print_error("no log\n");
	fail_msg("%s", command);
}

static void test_iasl(void **unused)
{
	struct img_error err = { 0 };
	char dir[] = "/tmp/test-acpi-XXXXXX", command[64];
	struct memory mem;
	struct walk w = { .mem = &mem };

	(void)unused;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(memory_init(&mem, RAM_BYTES, &err), 0);
	check_all(&w, acpi_install(&mem, 4), 4);
	write_table(&mem, w.dsdt, dir, "dsdt");
	write_table(&mem, w.fadt, dir, "facp");
	write_table(&mem, w.madt, dir, "apic");
	write_table(&mem, w.facs, dir, "facs");
	expect_quiet(dir, "for t in dsdt facp apic facs; do iasl -d $t.aml; done",
		     "Error|ERROR|Warning|Invalid|invalid|Could not|Unknown|Incorrect");
	expect_quiet(dir,
		     "grep -q 'PNP0A03' dsdt.dsl && grep -q 'PNP0501' dsdt.dsl && grep -q '_S5' dsdt.dsl && "
		     "grep -q ACPI0007 dsdt.dsl && grep -q _PRT dsdt.dsl",
		     "x");
	expect_quiet(dir, "iasl -p again dsdt.dsl", "[1-9][0-9]* (Errors|Warnings)");
	snprintf(command, sizeof(command), "rm -r %s", dir);
	assert_int_equal(system(command), 0);
	memory_free(&mem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_installed),
		cmocka_unit_test(test_loaded),
	};
	const struct CMUnitTest foreign[] = { cmocka_unit_test(test_iasl) };
	int failed = cmocka_run_group_tests(tests, NULL, NULL);

	if (failed)
		return failed;
	if (system("iasl -v >/dev/null 2>&1") != 0) {
		printf("SKIPPED: there is no iasl to judge the tables (package acpica-tools)\n");
		return 77;
	}
	return cmocka_run_group_tests(foreign, NULL, NULL);
}
