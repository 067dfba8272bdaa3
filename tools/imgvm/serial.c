/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. Registers and bits are those of the PC16550D data sheet (National Semiconductor, 1995), section 8.
 *
 * The line has no speed. A byte written is sent at once, into a ring that the host empties; while the ring is full the
 * transmitter is not empty, so that a guest waits for whoever reads. Received bytes wait in another ring, "the wire";
 * its first FIFO_BYTES (without FIFOs: one) are what the receiver holds, and there is never an overrun. What is left in
 * the FIFO below its trigger level counts as timed out at once.
 *
 * The interrupt line follows the registers after every access. IRQ 4 is edge-triggered, and edges must not get lost:
 * reading IIR withdraws the transmitter's request, the next byte written makes a new one, which is a new edge.
 *
 * All is under `lock`, because output is fetched without the bus lock. irq_line() is called under it, event() is not.
 * Output that nobody has fetched is the host's: it outlives reset and load.
 */
#include "platform.h"

#include <stdlib.h>
#include <string.h>

#include "fail.h"

#define SERIAL_TAG     STATE_TAG('S', 'E', 'R', 'L')
#define SERIAL_VERSION 1u
#define SERIAL_PORT    0x3f8u
#define SERIAL_PORTS   8u
#define SERIAL_GSI     4u

#define TX_BYTES   65536u
#define TX_RESUME  (TX_BYTES / 2) /* a full ring is full until no more than this is left: few, long waits */
#define WIRE_BYTES 256u
#define FIFO_BYTES 16u

enum {
	REG_DATA, /* RBR, THR; DLL with DLAB */
	REG_IER,  /* DLM with DLAB */
	REG_IIR,  /* FCR when written */
	REG_LCR,
	REG_MCR,
	REG_LSR,
	REG_MSR,
	REG_SCR,
};
#define IER_RX	     0x01u
#define IER_TX	     0x02u
#define IER_LINE     0x04u
#define IER_MODEM    0x08u
#define IER_MASK     0x0fu
#define IIR_NONE     0x01u
#define IIR_MODEM    0x00u
#define IIR_TX	     0x02u
#define IIR_RX	     0x04u
#define IIR_TIMEOUT  0x0cu
#define IIR_FIFOS    0xc0u
#define FCR_ENABLE   0x01u
#define FCR_CLEAR_RX 0x02u
#define FCR_TRIGGER  0xc0u
#define FCR_KEPT     (FCR_ENABLE | FCR_TRIGGER)
#define LCR_DLAB     0x80u
#define MCR_DTR	     0x01u
#define MCR_RTS	     0x02u
#define MCR_OUT1     0x04u
#define MCR_OUT2     0x08u
#define MCR_LOOP     0x10u
#define MCR_MASK     0x1fu
#define LSR_DATA     0x01u
#define LSR_THRE     0x20u
#define LSR_TEMT     0x40u
#define MSR_DELTAS   0x0fu /* of CTS, DSR, DCD; RI: trailing edge */
#define MSR_CTS	     0x10u
#define MSR_DSR	     0x20u
#define MSR_RI	     0x40u
#define MSR_DCD	     0x80u
#define MSR_PEER     (MSR_CTS | MSR_DSR | MSR_DCD) /* somebody is at the other end, always */
#define DIVISOR_9600 12u			   /* as many BIOSes leave it */

struct serial {
	struct device dev;
	pthread_mutex_t lock;
	/* lock: */
	uint8_t ier, fcr, lcr, mcr, msr, scr, dll, dlm;
	bool tx_request;   /* the transmitter ran empty and nobody was told yet */
	bool tx_full;	   /* THRE is withheld */
	bool irq;	   /* level of the line, as the host was told */
	bool wire_refused; /* serial_input() took less than it was offered */
	uint16_t wire_at, nr_wire;
	uint32_t tx_at, nr_tx;
	uint8_t wire[WIRE_BYTES];
	uint8_t tx[TX_BYTES];
};

static struct serial *to_serial(struct device *dev)
{
	return (struct serial *)dev;
}

/* ---- interrupts -------------------------------------------------------------------------------------------------- */

static unsigned trigger_level(const struct serial *s)
{
	static const uint8_t level[] = { 1, 4, 8, 14 };

	return s->fcr & FCR_ENABLE ? level[s->fcr >> 6] : 1;
}

/* The most urgent request, as IIR tells it. */
static uint8_t iir(const struct serial *s)
{
	if (s->ier & IER_RX && s->nr_wire)
		return s->nr_wire >= trigger_level(s) ? IIR_RX : IIR_TIMEOUT;
	if (s->ier & IER_TX && s->tx_request)
		return IIR_TX;
	if (s->ier & IER_MODEM && s->msr & MSR_DELTAS)
		return IIR_MODEM;
	return IIR_NONE;
}

static void update_irq(struct serial *s)
{
	bool level = iir(s) != IIR_NONE;

	if (level != s->irq)
		s->dev.host->irq_line(s->dev.host->machine, SERIAL_GSI, level);
	s->irq = level;
}

/* ---- what a byte does -------------------------------------------------------------------------------------------- */

static bool wire_push(struct serial *s, uint8_t byte)
{
	if (s->nr_wire == WIRE_BYTES)
		return false;
	s->wire[(s->wire_at + s->nr_wire) % WIRE_BYTES] = byte;
	s->nr_wire++;
	return true;
}

static void wire_drop(struct serial *s, unsigned nr)
{
	if (nr > s->nr_wire)
		nr = s->nr_wire;
	s->wire_at = (uint16_t)((s->wire_at + nr) % WIRE_BYTES);
	s->nr_wire = (uint16_t)(s->nr_wire - nr);
}

/* True if the host must be told that there is output. */
static bool transmit(struct serial *s, uint8_t byte)
{
	bool first = false;

	if (s->mcr & MCR_LOOP) {
		wire_push(s, byte);
	} else if (s->nr_tx < TX_BYTES) { /* else a guest that does not wait for THRE: lost, as on a real one */
		first = s->nr_tx == 0;
		s->tx[(s->tx_at + s->nr_tx) % TX_BYTES] = byte;
		s->nr_tx++;
		s->tx_full = s->nr_tx == TX_BYTES;
	}
	s->tx_request = !s->tx_full;
	return first;
}

static uint8_t modem_lines(uint8_t mcr)
{
	if (!(mcr & MCR_LOOP))
		return MSR_PEER;
	return (uint8_t)((mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) | (mcr & MCR_OUT1 ? MSR_RI : 0) |
			 (mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void follow_modem_lines(struct serial *s)
{
	uint8_t now = modem_lines(s->mcr), before = (uint8_t)(s->msr & ~MSR_DELTAS);
	uint8_t changed = now ^ before;

	changed &= (uint8_t) ~(now & MSR_RI); /* RI: from 1 to 0 only */
	s->msr = (uint8_t)(now | (s->msr & MSR_DELTAS) | changed >> 4);
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

static uint8_t read_data(struct serial *s)
{
	uint8_t byte = 0;

	if (s->nr_wire)
		byte = s->wire[s->wire_at];
	wire_drop(s, 1);
	return byte;
}

static uint8_t read_iir(struct serial *s)
{
	uint8_t v = iir(s);

	if (v == IIR_TX)
		s->tx_request = false;
	return (uint8_t)(v | (s->fcr & FCR_ENABLE ? IIR_FIFOS : 0));
}

static uint8_t read_register(struct serial *s, unsigned reg)
{
	uint8_t v;

	switch (reg) {
	case REG_DATA: return s->lcr & LCR_DLAB ? s->dll : read_data(s);
	case REG_IER: return s->lcr & LCR_DLAB ? s->dlm : s->ier;
	case REG_IIR: return read_iir(s);
	case REG_LCR: return s->lcr;
	case REG_MCR: return s->mcr;
	case REG_LSR: return (uint8_t)((s->tx_full ? 0 : LSR_THRE | LSR_TEMT) | (s->nr_wire ? LSR_DATA : 0));
	case REG_MSR:
		v = s->msr;
		s->msr &= (uint8_t)~MSR_DELTAS;
		return v;
	default: return s->scr;
	}
}

static void write_fcr(struct serial *s, uint8_t v)
{
	if (v & FCR_CLEAR_RX || (v ^ s->fcr) & FCR_ENABLE)
		wire_drop(s, s->fcr & FCR_ENABLE ? FIFO_BYTES : 1);
	/* "must be 1 when other FCR bits are written to or they will not be programmed" */
	s->fcr = v & FCR_ENABLE ? v & FCR_KEPT : 0;
}

/* True if the host must be told that there is output. */
static bool write_register(struct serial *s, unsigned reg, uint8_t v)
{
	switch (reg) {
	case REG_DATA:
		if (!(s->lcr & LCR_DLAB))
			return transmit(s, v);
		s->dll = v;
		return false;
	case REG_IER:
		if (s->lcr & LCR_DLAB) {
			s->dlm = v;
			return false;
		}
		/* enabling it while the transmitter is empty is a request: drivers start sending so */
		if (v & ~s->ier & IER_TX && !s->tx_full)
			s->tx_request = true;
		s->ier = v & IER_MASK;
		return false;
	case REG_IIR: write_fcr(s, v); return false;
	case REG_LCR: s->lcr = v; return false;
	case REG_MCR:
		s->mcr = v & MCR_MASK;
		follow_modem_lines(s);
		return false;
	case REG_SCR: s->scr = v; return false;
	default: return false; /* LSR and MSR are for factory tests */
	}
}

static void tell_host(struct serial *s)
{
	s->dev.host->event(s->dev.host->machine, MACHINE_SERIAL);
}

static uint64_t serial_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct serial *s = to_serial(dev);
	bool room;
	uint8_t v;

	(void)region;
	if (bytes != 1)
		return UINT64_MAX;
	pthread_mutex_lock(&s->lock);
	v = read_register(s, (unsigned)off);
	room = s->wire_refused && s->nr_wire <= WIRE_BYTES / 2;
	if (room)
		s->wire_refused = false;
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	if (room)
		tell_host(s);
	return v;
}

static void serial_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct serial *s = to_serial(dev);
	bool output;

	(void)region;
	if (bytes != 1)
		return;
	pthread_mutex_lock(&s->lock);
	output = write_register(s, (unsigned)off, (uint8_t)value);
	if (s->wire_refused && s->nr_wire <= WIRE_BYTES / 2) {
		s->wire_refused = false;
		output = true;
	}
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	if (output)
		tell_host(s);
}

/* ---- the host's side --------------------------------------------------------------------------------------------- */

size_t serial_fetch(struct device *serial, void *buf, size_t cap)
{
	struct serial *s = to_serial(serial);
	size_t nr, first;

	pthread_mutex_lock(&s->lock);
	nr = cap < s->nr_tx ? cap : s->nr_tx;
	first = nr < TX_BYTES - s->tx_at ? nr : TX_BYTES - s->tx_at;
	memcpy(buf, s->tx + s->tx_at, first);
	memcpy((uint8_t *)buf + first, s->tx, nr - first);
	s->tx_at = (uint32_t)((s->tx_at + nr) % TX_BYTES);
	s->nr_tx -= (uint32_t)nr;
	if (s->nr_tx == 0)
		s->tx_at = 0; /* mostly little waits: the ring's other pages stay untouched */
	if (s->tx_full && s->nr_tx <= TX_RESUME) {
		s->tx_full = false;
		s->tx_request = true;
		update_irq(s);
	}
	pthread_mutex_unlock(&s->lock);
	return nr;
}

size_t serial_input(struct device *serial, struct bus *bus, const void *data, size_t bytes)
{
	struct serial *s = to_serial(serial);
	size_t taken = 0;

	pthread_mutex_lock(&bus->lock);
	pthread_mutex_lock(&s->lock);
	/* in loopback the receiver hears itself only, and the wire waits */
	while (taken < bytes && !(s->mcr & MCR_LOOP) && wire_push(s, ((const uint8_t *)data)[taken]))
		taken++;
	s->wire_refused = taken < bytes;
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	pthread_mutex_unlock(&bus->lock);
	return taken;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void power_on(struct serial *s)
{
	s->ier = s->fcr = s->lcr = s->mcr = s->scr = 0;
	s->dll = DIVISOR_9600;
	s->dlm = 0;
	s->msr = MSR_PEER;
	s->tx_request = false;
	s->wire_at = s->nr_wire = 0;
}

static void serial_reset(struct device *dev)
{
	struct serial *s = to_serial(dev);
	bool refused;

	pthread_mutex_lock(&s->lock);
	power_on(s);
	refused = s->wire_refused;
	s->wire_refused = false;
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	if (refused)
		tell_host(s);
}

static void serial_save(struct device *dev, struct state_writer *out)
{
	struct serial *s = to_serial(dev);
	uint8_t wire[WIRE_BYTES] = { 0 };

	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->nr_wire; i++)
		wire[i] = s->wire[(s->wire_at + i) % WIRE_BYTES];
	state_begin(out, dev->tag, dev->instance, dev->version);
	state_put8(out, s->ier);
	state_put8(out, s->fcr);
	state_put8(out, s->lcr);
	state_put8(out, s->mcr);
	state_put8(out, s->msr);
	state_put8(out, s->scr);
	state_put8(out, s->dll);
	state_put8(out, s->dlm);
	/* a transmitter that is full here will have room where the state goes, and the guest must hear of it */
	state_put8(out, s->tx_request || s->tx_full);
	state_put16(out, s->nr_wire);
	state_put(out, wire, sizeof(wire));
	state_end(out);
	pthread_mutex_unlock(&s->lock);
}

static int serial_load(struct device *dev, struct state_reader *in, struct img_error *err)
{
	struct serial *s = to_serial(dev);
	uint8_t reg[8], wire[WIRE_BYTES], tx_request;
	uint16_t nr_wire;
	int ret;

	state_get(in, reg, sizeof(reg));
	tx_request = state_get8(in);
	nr_wire = state_get16(in);
	state_get(in, wire, sizeof(wire));
	ret = state_done(in, "serial port", err);
	if (ret != 0)
		return ret;
	if (reg[0] & ~IER_MASK || reg[1] & ~FCR_KEPT || reg[3] & ~MCR_MASK ||
	    (reg[4] & ~MSR_DELTAS) != modem_lines(reg[3]) || tx_request > 1 || nr_wire > WIRE_BYTES)
		return fail(err, IMG_E_CORRUPT, "serial port: registers that cannot be");
	for (unsigned i = nr_wire; i < WIRE_BYTES; i++)
		if (wire[i])
			return fail(err, IMG_E_CORRUPT, "serial port: input behind its end");
	pthread_mutex_lock(&s->lock);
	s->ier = reg[0];
	s->fcr = reg[1];
	s->lcr = reg[2];
	s->mcr = reg[3];
	s->msr = reg[4];
	s->scr = reg[5];
	s->dll = reg[6];
	s->dlm = reg[7];
	s->tx_request = tx_request && !s->tx_full;
	s->wire_at = 0;
	s->nr_wire = nr_wire;
	memcpy(s->wire, wire, sizeof(wire));
	s->wire_refused = false;
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	tell_host(s); /* there may be room that a full wire has denied before */
	return 0;
}

static void serial_destroy(struct device *dev)
{
	struct serial *s = to_serial(dev);

	pthread_mutex_destroy(&s->lock);
	free(s);
}

static const struct device_ops serial_ops = {
	.name = "serial",
	.read = serial_read,
	.write = serial_write,
	.reset = serial_reset,
	.save = serial_save,
	.load = serial_load,
	.destroy = serial_destroy,
};

struct device *serial_create(struct bus *bus, const struct machine_host *host)
{
	struct serial *s = calloc(1, sizeof(*s));

	if (!s)
		abort();
	s->dev = (struct device){ .ops = &serial_ops, .host = host, .tag = SERIAL_TAG, .version = SERIAL_VERSION };
	pthread_mutex_init(&s->lock, NULL);
	power_on(s);
	bus_add_device(bus, &s->dev);
	bus_map(bus, BUS_PIO, SERIAL_PORT, SERIAL_PORTS, &s->dev, 0);
	return &s->dev;
}
