/* SPDX-License-Identifier: MIT */
/* The items that SeaBIOS reads, files, what lies beyond them, and saved state. */
#include "fw_cfg_reader.h"

#include "platform.h"

static void test_items(void **unused)
{
	struct fixture f;
	uint8_t buf[8];

	(void)unused;
	fixture_init(&f);
	fw_cfg_create(&f.bus, &f.host, 3);
	fw_select(&f, 0);
	fw_read(&f, buf, 8);
	assert_memory_equal(buf, "QEMU\0\0\0\0", 8);
	fw_select(&f, 1);
	fw_read(&f, buf, 5);
	assert_memory_equal(buf, "\1\0\0\0\0", 5); /* the ports, no DMA */
	for (unsigned item = 5; item <= 0xf; item += 0xa) {
		fw_select(&f, item);
		fw_read(&f, buf, 3);
		assert_memory_equal(buf, "\3\0\0", 3);
	}
	for (unsigned item = 2; item < 0x10000; item += item < 0x40 ? 1 : 997) {
		if (item == 5 || item == 0xf)
			continue;
		fw_select(&f, item);
		fw_read(&f, buf, 8);
		assert_memory_equal(buf, "\0\0\0\0\0\0\0\0", 8);
	}
	assert_int_equal(in(&f, 0x511, 2), 0xffff);
	assert_int_equal(in(&f, 0x510, 1), 0xff);
	fw_select(&f, 0);
	outb(&f, 0x511, 1); /* nothing can be written */
	outb(&f, 0x510, 5); /* a selector has 16 bits */
	assert_int_equal(inb(&f, 0x511), 'Q');
	bus_free(&f.bus);
}

static void test_files(void **unused)
{
	char name[56];
	struct fixture f;
	struct device *dev;
	uint8_t *data;
	uint32_t bytes;

	(void)unused;
	fixture_init(&f);
	dev = fw_cfg_create(&f.bus, &f.host, 1);
	assert_int_equal(fw_find(&f, "etc/a", &bytes), 0);
	fw_cfg_add(dev, "etc/a", "hello", 5);
	fw_cfg_add(dev, "etc/empty", "", 0);
	memset(name, 'n', sizeof(name));
	name[55] = '\0';
	fw_cfg_add(dev, name, "\0\1\2", 3);
	data = fw_file(&f, "etc/a", &bytes);
	assert_int_equal(bytes, 5);
	assert_memory_equal(data, "hello", 5);
	assert_int_equal(inb(&f, 0x511), 0); /* behind its end */
	free(data);
	data = fw_file(&f, "etc/empty", &bytes);
	assert_int_equal(bytes, 0);
	assert_int_equal(inb(&f, 0x511), 0);
	free(data);
	data = fw_file(&f, name, &bytes);
	assert_int_equal(bytes, 3);
	assert_memory_equal(data, "\0\1\2", 3);
	free(data);
	for (unsigned i = 3; i < 24; i++)
		fw_cfg_add(dev, i == 23 ? "last" : "more", &i, sizeof(i));
	assert_int_equal(fw_find(&f, "last", &bytes), 0x20 + 23);
	bus_free(&f.bus);
}

static void test_state(void **unused)
{
	struct fixture f;
	struct device *dev;
	uint8_t saved[16], buf[4];
	size_t bytes;

	(void)unused;
	fixture_init(&f);
	dev = fw_cfg_create(&f.bus, &f.host, 1);
	fw_cfg_add(dev, "etc/a", "hello", 5);
	fw_select(&f, 0x20);
	fw_read(&f, buf, 2);
	bytes = fixture_save(dev, saved, sizeof(saved));
	dev->ops->reset(dev);
	assert_int_equal(inb(&f, 0x511), 'Q');
	assert_int_equal(fixture_load(dev, saved, bytes), 0);
	fw_read(&f, buf, 4);
	assert_memory_equal(buf, "llo\0", 4);
	fixture_hostile_state(dev, 0);
	/* far beyond everything */
	memset(saved, 0xff, sizeof(saved));
	assert_int_equal(fixture_load(dev, saved, bytes), 0);
	assert_int_equal(inb(&f, 0x511), 0);
	saved[0] = 0x20;
	saved[1] = 0;
	assert_int_equal(fixture_load(dev, saved, bytes), 0);
	assert_int_equal(inb(&f, 0x511), 0);
	bus_free(&f.bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_items),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
