/* SPDX-License-Identifier: MIT */
/* A machine from start to end: the loop that everything but the guest itself comes by. */
#ifndef IMGVM_RUN_H
#define IMGVM_RUN_H

#include "events.h"
#include "options.h"
#include "server.h"
#include "terminal.h"

/* What waits for the guest to take it, and what the virtio console has printed: its worker prints, the loop sends. */
#define RUN_INPUT_BYTES	  4096u
#define RUN_CONSOLE_BYTES 65536u

struct console_ring {
	pthread_mutex_t lock;
	pthread_cond_t room;
	int event_fd;	   /* something is there */
	bool discard;	   /* nobody wants it */
	size_t head, used; /* lock; of buf */
	char *buf;	   /* RUN_CONSOLE_BYTES; lock */
};

struct run {
	const struct run_options *opts;
	struct machine machine;
	bool created;
	struct server *server;
	struct sandbox sandbox;
	struct terminal terminal;
	struct events events;
	struct sink serial, console;
	struct console_ring ring;
	int signal_fd, timer_fd, debug_fd;
	sigset_t old_signals;

	bool ended;
	int status; /* why, when ended */
	bool stuck; /* a revert failed half way: only another one, or a reset, makes a machine of it again */

	bool more_serial, more_console; /* the guest prints faster than we send: look again at once */

	char input[RUN_INPUT_BYTES];
	size_t input_used;

	uint64_t resumed_ns;	  /* the guest began to run */
	uint64_t first_output_ns; /* 0: not yet */
	uint64_t verify_ns;	  /* when to verify RAM that was mapped; UINT64_MAX: all is verified */
};

/* start_ns: of main(). Returns an exit status. */
int run_machine(const struct run_options *opts, uint64_t start_ns);

/* Ends the loop, unless it has a reason to end already. */
void run_end(struct run *run, int status);
/* Says what failed, on stderr and as an event. Returns its exit status. */
int run_fail(struct run *run, const struct img_error *err);
/* RAM was mapped: verify it later. */
void run_verify_later(struct run *run);

/* run_io.c */
int ring_init(struct console_ring *ring, bool discard, struct img_error *err);
void ring_done(struct console_ring *ring);
/* The virtio console's output, from its worker; ctx is the ring. */
void ring_put(void *ctx, const void *data, size_t bytes);
/* From the devices to the sinks, as much as there is room for. True: and there may be more. */
bool run_move_console(struct run *run);
bool run_move_serial(struct run *run);
/* At the end: what devices and sinks hold, as long as a reader takes something every so many ms. Machine paused. */
void run_drain(struct run *run, int timeout_ms);
/* Keys, or whatever stdin is, to the device that takes them. */
void run_read_input(struct run *run);
void run_offer_input(struct run *run);

/* requests.c: the commands of the control socket (server_fn; ctx is a struct run). */
json_t *requests_handle(void *ctx, json_t *request);

#endif
