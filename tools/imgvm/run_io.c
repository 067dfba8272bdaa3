/* SPDX-License-Identifier: MIT */
/*
 * What the guest prints and what it is told, between its devices and ours: part of run.c's loop. Output stays in the
 * device while there is no room for it outside, so that a guest waits for a slow reader as it would for a slow line.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fail.h"
#include "platform.h"
#include "run.h"

#define MAX_PIECES	16u /* then others have their turn: a guest may print faster than we send */
#define CONSOLE_WAIT_MS 100 /* what the virtio console waits for a slow reader before bytes are lost */

/* ---- the virtio console ------------------------------------------------------------------------------------------ */

int ring_init(struct console_ring *ring, bool discard, struct img_error *err)
{
	pthread_condattr_t attr;

	ring->discard = discard;
	pthread_mutex_init(&ring->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ring->room, &attr);
	pthread_condattr_destroy(&attr);
	ring->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ring->event_fd < 0)
		return fail_errno(err, "eventfd");
	ring->buf = discard ? NULL : malloc(RUN_CONSOLE_BYTES);
	return discard || ring->buf ? 0 : fail(err, IMG_E_NOMEM, "out of memory");
}

void ring_done(struct console_ring *ring)
{
	if (ring->event_fd >= 0)
		close(ring->event_fd);
	free(ring->buf);
}

/* Under lock: waits for the loop to make room, but not for ever. */
static bool ring_wait(struct console_ring *ring)
{
	uint64_t at_ns = events_now_ns() + CONSOLE_WAIT_MS * UINT64_C(1000000);
	struct timespec until = { .tv_sec = (time_t)(at_ns / 1000000000), .tv_nsec = (long)(at_ns % 1000000000) };

	while (ring->used == RUN_CONSOLE_BYTES) {
		if (pthread_cond_timedwait(&ring->room, &ring->lock, &until) != 0)
			return ring->used < RUN_CONSOLE_BYTES;
	}
	return true;
}

void ring_put(void *ctx, const void *data, size_t bytes)
{
	struct console_ring *ring = ctx;
	const char *at = data;
	uint64_t one = 1;

	if (ring->discard)
		return;
	pthread_mutex_lock(&ring->lock);
	for (size_t i = 0; i < bytes; i++) {
		if (ring->used == RUN_CONSOLE_BYTES && !ring_wait(ring))
			break;
		ring->buf[(ring->head + ring->used++) % RUN_CONSOLE_BYTES] = at[i];
	}
	pthread_mutex_unlock(&ring->lock);
	if (write(ring->event_fd, &one, sizeof(one)) < 0)
		return; /* full: the loop has been told long ago */
}

static void note_output(struct run *run)
{
	if (run->first_output_ns)
		return;
	run->first_output_ns = events_now_ns();
	if (run->events.on)
		events_emit(&run->events, "first_output", NULL);
}

/* Takes from the ring what there is room for outside. Returns how much. */
static size_t ring_take(struct console_ring *ring, char *out, size_t cap)
{
	size_t bytes;

	pthread_mutex_lock(&ring->lock);
	for (bytes = 0; bytes < cap && ring->used; bytes++) {
		out[bytes] = ring->buf[ring->head];
		ring->head = (ring->head + 1) % RUN_CONSOLE_BYTES;
		ring->used--;
	}
	if (bytes)
		pthread_cond_signal(&ring->room);
	pthread_mutex_unlock(&ring->lock);
	return bytes;
}

bool run_move_console(struct run *run)
{
	uint64_t count;
	char piece[1024];

	if (read(run->ring.event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return false;
	for (unsigned i = 0; i < MAX_PIECES; i++) {
		size_t room = sink_room(&run->console);
		size_t bytes = ring_take(&run->ring, piece, room < sizeof(piece) ? room : sizeof(piece));

		if (bytes == 0)
			return false;
		note_output(run);
		sink_put(&run->console, piece, bytes);
	}
	return true;
}

/* ---- the serial port --------------------------------------------------------------------------------------------- */

bool run_move_serial(struct run *run)
{
	char piece[4096];

	for (unsigned i = 0; i < MAX_PIECES; i++) {
		size_t room = sink_room(&run->serial);
		size_t bytes = room < sizeof(piece) ? room : sizeof(piece);

		bytes = bytes ? serial_fetch(run->machine.serial, piece, bytes) : 0;
		if (bytes == 0)
			return false;
		sink_put(&run->serial, piece, bytes);
		note_output(run);
	}
	return true;
}

void run_drain(struct run *run, int timeout_ms)
{
	struct pollfd fds[2];

	do {
		sink_flush(&run->serial);
		sink_flush(&run->console);
		while (run_move_serial(run) || run_move_console(run))
			continue;
		fds[0] = (struct pollfd){ .fd = run->serial.used ? run->serial.fd : -1, .events = POLLOUT };
		fds[1] = (struct pollfd){ .fd = run->console.used ? run->console.fd : -1, .events = POLLOUT };
	} while ((run->serial.used || run->console.used) && poll(fds, 2, timeout_ms) > 0);
}

void run_offer_input(struct run *run)
{
	struct machine *m = &run->machine;
	size_t taken;

	if (run->input_used == 0)
		return;
	taken = run->opts->input_to_console ? virtio_console_input(m->console, run->input, run->input_used) :
					      serial_input(m->serial, &m->bus, run->input, run->input_used);
	run->input_used -= taken;
	memmove(run->input, run->input + taken, run->input_used);
}

static const char help_text[] = "\n" PROGRAM ": Ctrl-a x quits, Ctrl-a Ctrl-a sends Ctrl-a\n";

/* A terminal is read even if the guest takes nothing: Ctrl-a x must get through. */
void run_read_input(struct run *run)
{
	char keys[512];
	size_t got, room = RUN_INPUT_BYTES - run->input_used;
	size_t cap = run->terminal.is_tty || room > sizeof(keys) ? sizeof(keys) : room;

	switch (terminal_read(&run->terminal, keys, cap, &got)) {
	case TERMINAL_QUIT: run_end(run, RUN_QUIT); break;
	case TERMINAL_HELP:
		sink_put(run->opts->input_to_console ? &run->console : &run->serial, help_text, sizeof(help_text) - 1);
		break;
	case TERMINAL_NONE: break;
	}
	if (got > room)
		got = room;
	memcpy(run->input + run->input_used, keys, got);
	run->input_used += got;
	run_offer_input(run);
}
