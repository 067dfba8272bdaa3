/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. The controller of keyboard and mouse with neither attached (IBM PS/2 Hardware Interface Technical
 * Reference, "Keyboard and Auxiliary Device Controller"): firmware that looks for them gets its answers at once, and
 * software resets the machine. A byte for a device is answered by "resend", which drivers take for "nobody there".
 *
 * The A20 gate is open and stays so, whatever is written: no software since 1990 wants it closed.
 *
 * Port 0x61 is answered by KVM's timer in the kernel, which knows counter 2; ours is for a kernel that leaves it out.
 */
#include "platform.h"

#include <stdlib.h>

#include "fail.h"

#define I8042_TAG     STATE_TAG('8', '0', '4', '2')
#define I8042_VERSION 1u

enum { REGION_DATA, REGION_COMMAND, REGION_PORT_A, REGION_PORT_B };
#define PORT_DATA    0x60u
#define PORT_COMMAND 0x64u
#define PORT_A	     0x92u
#define PORT_B	     0x61u

#define STATUS_OUTPUT	 0x01u /* a byte waits at 0x60 */
#define STATUS_SYSTEM	 0x04u /* the self-test has passed */
#define STATUS_COMMAND	 0x08u /* the last write went to 0x64 */
#define STATUS_UNLOCKED	 0x10u
#define STATUS_AUX	 0x20u /* the waiting byte is the mouse's */
#define OUTPUT_NOT_RESET 0x01u /* of the output port */
#define OUTPUT_A20	 0x02u
#define MODE_SYSTEM	 0x04u /* of the command byte */
#define MODE_DISABLED	 0x30u /* keyboard, mouse */
#define PORT_A_RESET	 0x01u
#define PORT_A_A20	 0x02u
#define PORT_B_WRITABLE	 0x03u /* gate of timer 2, speaker */
#define PORT_B_REFRESH	 0x10u /* toggles: old software measures time by it */
#define REPLY_RESEND	 0xfeu
#define REPLY_SELF_TEST	 0x55u
#define REPLY_GOOD	 0x00u

enum command {
	CMD_READ_MODE = 0x20,
	CMD_WRITE_MODE = 0x60,
	CMD_DISABLE_AUX = 0xa7,
	CMD_ENABLE_AUX = 0xa8,
	CMD_TEST_AUX = 0xa9,
	CMD_SELF_TEST = 0xaa,
	CMD_TEST_KEYBOARD = 0xab,
	CMD_DISABLE_KEYBOARD = 0xad,
	CMD_ENABLE_KEYBOARD = 0xae,
	CMD_READ_OUTPUT = 0xd0,
	CMD_WRITE_OUTPUT = 0xd1,
	CMD_WRITE_KEYBOARD_OUT = 0xd2, /* as if the keyboard had sent it */
	CMD_WRITE_AUX_OUT = 0xd3,
	CMD_WRITE_AUX = 0xd4,
	CMD_PULSE = 0xf0, /* to 0xff: output lines whose bit is 0 go low for a moment; line 0 is reset */
};

struct i8042 {
	struct device dev;
	uint8_t mode;	 /* command byte */
	uint8_t command; /* that waits for a byte at 0x60; 0: none */
	uint8_t status;	 /* OUTPUT, AUX and COMMAND of it */
	uint8_t output;	 /* the byte that waits */
	uint8_t port_a, port_b;
};

static struct i8042 *to_i8042(struct device *dev)
{
	return (struct i8042 *)dev;
}

static void reset_machine(struct i8042 *k)
{
	k->dev.host->event(k->dev.host->machine, MACHINE_RESET);
}

static void reply(struct i8042 *k, uint8_t byte, unsigned aux)
{
	k->output = byte;
	k->status = (uint8_t)((k->status & ~STATUS_AUX) | STATUS_OUTPUT | aux);
}

static void run_command(struct i8042 *k, uint8_t command)
{
	k->command = 0;
	k->status |= STATUS_COMMAND;
	switch (command) {
	case CMD_READ_MODE: reply(k, k->mode, 0); break;
	case CMD_SELF_TEST: reply(k, REPLY_SELF_TEST, 0); break;
	case CMD_TEST_AUX:
	case CMD_TEST_KEYBOARD: reply(k, REPLY_GOOD, 0); break;
	case CMD_READ_OUTPUT: reply(k, OUTPUT_NOT_RESET | OUTPUT_A20, 0); break;
	case CMD_WRITE_MODE:
	case CMD_WRITE_OUTPUT:
	case CMD_WRITE_KEYBOARD_OUT:
	case CMD_WRITE_AUX_OUT:
	case CMD_WRITE_AUX: k->command = command; break;
	case CMD_DISABLE_KEYBOARD: k->mode |= 0x10; break;
	case CMD_ENABLE_KEYBOARD: k->mode &= (uint8_t)~0x10; break;
	case CMD_DISABLE_AUX: k->mode |= 0x20; break;
	case CMD_ENABLE_AUX: k->mode &= (uint8_t)~0x20; break;
	default:
		if (command >= CMD_PULSE && !(command & OUTPUT_NOT_RESET))
			reset_machine(k);
		break;
	}
}

static void take_data(struct i8042 *k, uint8_t byte)
{
	uint8_t command = k->command;

	k->command = 0;
	k->status &= (uint8_t)~STATUS_COMMAND;
	switch (command) {
	case CMD_WRITE_MODE: k->mode = byte; break;
	case CMD_WRITE_OUTPUT:
		if (!(byte & OUTPUT_NOT_RESET))
			reset_machine(k);
		break;
	case CMD_WRITE_KEYBOARD_OUT: reply(k, byte, 0); break;
	case CMD_WRITE_AUX_OUT: reply(k, byte, STATUS_AUX); break;
	case CMD_WRITE_AUX: reply(k, REPLY_RESEND, STATUS_AUX); break;
	default: reply(k, REPLY_RESEND, 0); break;
	}
}

static uint64_t i8042_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct i8042 *k = to_i8042(dev);

	(void)off;
	if (bytes != 1)
		return UINT64_MAX;
	switch (region) {
	case REGION_DATA: k->status &= (uint8_t) ~(STATUS_OUTPUT | STATUS_AUX); return k->output;
	case REGION_COMMAND: return k->status | STATUS_UNLOCKED | (k->mode & MODE_SYSTEM ? STATUS_SYSTEM : 0);
	case REGION_PORT_A: return k->port_a | PORT_A_A20;
	default: k->port_b ^= PORT_B_REFRESH; return k->port_b;
	}
}

static void i8042_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct i8042 *k = to_i8042(dev);

	(void)off;
	if (bytes != 1)
		return;
	switch (region) {
	case REGION_DATA: take_data(k, (uint8_t)value); break;
	case REGION_COMMAND: run_command(k, (uint8_t)value); break;
	case REGION_PORT_A:
		if (value & ~(uint64_t)k->port_a & PORT_A_RESET)
			reset_machine(k);
		k->port_a = (uint8_t)value;
		break;
	default: k->port_b = (uint8_t)((k->port_b & PORT_B_REFRESH) | (value & PORT_B_WRITABLE)); break;
	}
}

static void i8042_reset(struct device *dev)
{
	struct i8042 *k = to_i8042(dev);

	k->mode = MODE_SYSTEM | MODE_DISABLED;
	k->command = k->status = k->output = 0;
	k->port_a = PORT_A_A20;
	k->port_b = 0;
}

static void i8042_save(struct device *dev, struct state_writer *out)
{
	struct i8042 *k = to_i8042(dev);

	state_begin(out, dev->tag, dev->instance, dev->version);
	state_put8(out, k->mode);
	state_put8(out, k->command);
	state_put8(out, k->status);
	state_put8(out, k->output);
	state_put8(out, k->port_a);
	state_put8(out, k->port_b);
	state_end(out);
}

static int i8042_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct i8042 *k = to_i8042(dev);
	uint8_t v[6];
	int ret;

	state_get(in, v, sizeof(v));
	ret = state_done(in, "keyboard controller", err);
	if (ret != 0)
		return ret;
	if (v[2] & ~(STATUS_OUTPUT | STATUS_AUX | STATUS_COMMAND) || v[5] & ~(PORT_B_WRITABLE | PORT_B_REFRESH))
		return fail(err, IMG_E_CORRUPT, "keyboard controller: status 0x%x, port 0x61 0x%x", v[2], v[5]);
	k->mode = v[0];
	k->command = v[1]; /* one that waits for no byte is answered as if there were none */
	k->status = v[2];
	k->output = v[3];
	k->port_a = v[4];
	k->port_b = v[5];
	return 0;
}

static void i8042_destroy(struct device *dev)
{
	free(to_i8042(dev));
}

static const struct device_ops i8042_ops = {
	.name = "i8042",
	.read = i8042_read,
	.write = i8042_write,
	.reset = i8042_reset,
	.save = i8042_save,
	.load = i8042_load,
	.destroy = i8042_destroy,
};

struct device *i8042_create(struct bus *bus, const struct machine_host *host)
{
	struct i8042 *k = calloc(1, sizeof(*k));

	if (!k)
		abort();
	k->dev = (struct device){ .ops = &i8042_ops, .host = host, .tag = I8042_TAG, .version = I8042_VERSION };
	i8042_reset(&k->dev);
	bus_add_device(bus, &k->dev);
	bus_map(bus, BUS_PIO, PORT_DATA, 1, &k->dev, REGION_DATA);
	bus_map(bus, BUS_PIO, PORT_COMMAND, 1, &k->dev, REGION_COMMAND);
	bus_map(bus, BUS_PIO, PORT_A, 1, &k->dev, REGION_PORT_A);
	bus_map(bus, BUS_PIO, PORT_B, 1, &k->dev, REGION_PORT_B);
	return &k->dev;
}
