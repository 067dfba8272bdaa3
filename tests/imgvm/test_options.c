/* SPDX-License-Identifier: MIT */
/* What imgvm run makes of its command line, and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "options.h"

static struct run_options opts;
static int parsed; /* what options_parse() said; -1: it was not reached */

static int take(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	parsed = options_parse(verb, args, operands[0], &opts);
	return parsed;
}

static const struct cli_verb verb = {
	.name = "run",
	.operands = "IMAGE[@SNAP]",
	.summary = "-",
	.example = "-",
	.min_operands = 1,
	.max_operands = 1,
	.options = run_option_table,
	.nr_options = RUN_OPTIONS,
	.args_bytes = sizeof(struct run_args),
	.run = take,
};

/* Words are separated by spaces. Returns the exit status. */
static int parse(const char *line)
{
	static char words[512];
	char *argv[64];
	int argc = 0;

	assert_true(strlen(line) < sizeof(words));
	strcpy(words, line);
	for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
		argv[argc++] = word;
	parsed = -1;
	return cli_run(&verb, argc, argv);
}

static void good(const char *line)
{
	assert_int_equal(parse(line), EXIT_DONE);
	assert_int_equal(parsed, EXIT_DONE);
}

static void test_defaults(void **state)
{
	(void)state;
	good("a.limg");
	assert_int_equal(opts.machine.nr_disks, 1);
	assert_string_equal(opts.machine.disk[0].path, "a.limg");
	assert_null(opts.machine.disk[0].snapshot);
	assert_null(opts.machine.disk[0].format);
	assert_int_equal(opts.machine.ram_bytes, 0);
	assert_int_equal(opts.machine.nr_vcpus, 0);
	assert_int_equal(opts.machine.debug_fd, -1);
	assert_string_equal(opts.serial, "-");
	assert_null(opts.console);
	assert_false(opts.input_to_console);
	assert_int_equal(opts.sandbox, CONFINE_AUTO);
	assert_int_equal(opts.timeout_s, 0);
	options_free(&opts);
}

static void test_everything(void **state)
{
	(void)state;
	good("--memory 64M -c 2 --kernel k --initrd i --append x --iops 10 --bps 1M --timeout 3 --no-reboot --revert "
	     "--allow-clone --allow-refs any --sandbox require --serial s --console c --debug-port d -f limg a.limg@one");
	assert_int_equal(opts.machine.ram_bytes, 64 << 20);
	assert_int_equal(opts.machine.nr_vcpus, 2);
	assert_string_equal(opts.machine.boot.kernel, "k");
	assert_string_equal(opts.machine.boot.initrd, "i");
	assert_string_equal(opts.machine.boot.append, "x");
	assert_int_equal(opts.machine.iops, 10);
	assert_int_equal(opts.machine.bps, 1 << 20);
	assert_true(opts.machine.allow_clone);
	assert_int_equal(opts.timeout_s, 3);
	assert_true(opts.no_reboot);
	assert_int_equal(opts.sandbox, CONFINE_REQUIRE);
	assert_string_equal(opts.serial, "s");
	assert_string_equal(opts.console, "c");
	assert_string_equal(opts.debug_port, "d");
	assert_string_equal(opts.machine.disk[0].format, "limg");
	assert_string_equal(opts.machine.disk[0].snapshot, "one");
	assert_true(opts.machine.disk[0].revert);
	assert_int_equal(opts.machine.disk[0].refs, IMG_REFS_ANY);
	options_free(&opts);
}

static void test_disks(void **state)
{
	(void)state;
	good("--transient --scratch /tmp -d b.qcow2@s --disk raw:c.img -d ./raw:d a.limg");
	assert_int_equal(opts.machine.nr_disks, 4);
	assert_string_equal(opts.machine.disk[1].path, "b.qcow2");
	assert_string_equal(opts.machine.disk[1].snapshot, "s");
	assert_null(opts.machine.disk[1].format);
	assert_string_equal(opts.machine.disk[2].path, "c.img");
	assert_string_equal(opts.machine.disk[2].format, "raw");
	assert_string_equal(opts.machine.disk[3].path, "./raw:d");
	assert_null(opts.machine.disk[3].format);
	for (unsigned i = 0; i < 4; i++) {
		assert_true(opts.machine.disk[i].transient);
		assert_string_equal(opts.machine.disk[i].scratch, "/tmp");
	}
	options_free(&opts);
	good("-d 2 -d 3 -d 4 -d 5 -d 6 -d 7 -d 8 1");
	options_free(&opts);
	assert_int_equal(parse("-d 2 -d 3 -d 4 -d 5 -d 6 -d 7 -d 8 -d 9 1"), EXIT_USAGE);
}

/* Who has the terminal. */
static void test_outputs(void **state)
{
	(void)state;
	good("--json a");
	assert_null(opts.serial);
	assert_false(opts.input_to_console);
	options_free(&opts);
	good("--json --serial f a");
	assert_string_equal(opts.serial, "f");
	options_free(&opts);
	good("--console - a");
	assert_null(opts.serial);
	assert_string_equal(opts.console, "-");
	assert_true(opts.input_to_console);
	options_free(&opts);
	good("--console f a");
	assert_string_equal(opts.serial, "-");
	assert_false(opts.input_to_console);
	options_free(&opts);
	good("--serial none --console none a");
	assert_null(opts.serial);
	assert_null(opts.console);
	options_free(&opts);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {
		"",
		"a b",
		"--memory 1M a",
		"--memory 2000001 a",
		"--memory 2T a",
		"--memory x a",
		"--cpus 0 a",
		"--cpus 9 a",
		"--initrd i a",
		"--append x a",
		"--kernel k --bios b a",
		"--transient --read-only a",
		"--transient --revert a@s",
		"--read-only --revert a@s",
		"--revert a",
		"--scratch /tmp a",
		"--timeout 0 a",
		"--timeout 10000000000 a",
		"--timeout x a",
		"--iops 0 a",
		"--bps 0 a",
		"--sandbox maybe a",
		"--allow-refs some a",
		"--json --serial - a",
		"--json --console - a",
		"--serial - --console - a",
		"--serial - --debug-port - a",
		"--disk",
		"--unknown a",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		if (parse(bad[i]) != EXIT_USAGE) {
			print_error("accepted: %s\n", bad[i]);
			assert_true(false);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults), cmocka_unit_test(test_everything), cmocka_unit_test(test_disks),
		cmocka_unit_test(test_outputs),	 cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
