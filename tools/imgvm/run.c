/* SPDX-License-Identifier: MIT */
/*
 * See run.h. One thread, this one, owns the machine; guests and devices have threads of their own and tell by event_fd
 * what they want. The loop waits for that, for clients of the control socket, for keys, for signals and for the timer,
 * and in between verifies what a resumed machine has of its RAM, a step at a time.
 *
 * The way up: signals blocked (so that no other thread takes them), outputs opened, machine_create(); in the middle of
 * that, when all files are open and there are no threads yet, the control socket is bound and Landlock closes the file
 * system (see sandbox.h); then seccomp; then the guest runs. The way down: terminal, machine, outputs; from its first
 * step on a second signal ends the process at once.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "fail.h"

#define VERIFY_DELAY_NS UINT64_C(200000000) /* a guest that was just resumed has better use for the processor */
#define CLOSE_MS	1000		    /* what a slow reader of our output gets at the end */
#define RETRY_MS	20		    /* between offers of input to a guest that does not read */
#define BACKGROUND_MS	500		    /* between looks at whether we own the terminal again */

void run_end(struct run *run, int status)
{
	if (run->ended)
		return;
	run->ended = true;
	run->status = status;
}

int run_fail(struct run *run, const struct img_error *err)
{
	events_error(&run->events, err);
	return cli_fail(run->opts->target[0].path, err);
}

void run_verify_later(struct run *run)
{
	run->verify_ns = events_now_ns() + VERIFY_DELAY_NS;
}

static void emit(struct run *run, const char *name)
{
	if (run->events.on)
		events_emit(&run->events, name, NULL);
}

/* ---- what the machine wants -------------------------------------------------------------------------------------- */

static void reset(struct run *run)
{
	struct img_error err = { .code = IMG_OK };

	emit(run, "reset");
	if (run->opts->no_reboot)
		run_end(run, RUN_RESET);
	else if (machine_reset(&run->machine, &err) != 0)
		run_end(run, run_fail(run, &err));
}

static void stuck(struct run *run)
{
	struct img_error err = { .code = IMG_OK };

	vm_error(run->machine.vm, &err);
	(void)run_fail(run, &err);
	run_end(run, RUN_STUCK);
}

static void handle_machine(struct run *run)
{
	unsigned events = machine_events(&run->machine);

	if (events & 1u << MACHINE_SERIAL) {
		run->more_serial = run_move_serial(run);
		run_offer_input(run);
	}
	if (events & 1u << MACHINE_ERROR) {
		stuck(run);
	} else if (events & 1u << MACHINE_POWEROFF) {
		emit(run, "poweroff");
		run_end(run, EXIT_DONE);
	} else if (events & 1u << MACHINE_RESET && !run->ended) {
		reset(run);
	}
}

/* Idle work, after the start and after going back. */
static void verify(struct run *run)
{
	struct img_error err = { .code = IMG_OK }, why = { .code = IMG_OK };
	int more = machine_verify_step(&run->machine, &err);

	if (more > 0)
		return;
	run->verify_ns = UINT64_MAX;
	/* what parsing state and building a filter took for a moment */
	malloc_trim(0);
	if (more == 0) {
		if (run->machine.base[0])
			emit(run, "verified");
		return;
	}
	machine_pause(&run->machine);
	fail(&why, err.code, "the memory that the machine was resumed with: %s", err.msg);
	run_end(run, run_fail(run, &why));
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static void handle_signal(struct run *run)
{
	struct signalfd_siginfo info;

	if (read(run->signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGCONT)
		terminal_enter(&run->terminal);
	else
		run_end(run, RUN_QUIT);
}

enum slot {
	SLOT_MACHINE,
	SLOT_SIGNAL,
	SLOT_TIMER,
	SLOT_CONSOLE,
	SLOT_INPUT,
	SLOT_SERIAL_OUT,
	SLOT_CONSOLE_OUT,
	SLOT_EVENTS_OUT,
	NR_SLOTS
};

static struct pollfd sink_poll(const struct sink *s)
{
	return (struct pollfd){ .fd = s->used ? s->fd : -1, .events = POLLOUT };
}

/* Returns how long to wait, in ms. */
static int fill_poll(struct run *run, struct pollfd *fds)
{
	bool full = run->input_used == RUN_INPUT_BYTES && !run->terminal.is_tty;
	bool readable = !full && terminal_readable(&run->terminal);
	int timeout = -1;

	fds[SLOT_MACHINE] = (struct pollfd){ .fd = run->machine.event_fd, .events = POLLIN };
	fds[SLOT_SIGNAL] = (struct pollfd){ .fd = run->signal_fd, .events = POLLIN };
	fds[SLOT_TIMER] = (struct pollfd){ .fd = run->timer_fd, .events = POLLIN };
	fds[SLOT_CONSOLE] =
		(struct pollfd){ .fd = sink_room(&run->console) ? run->ring.event_fd : -1, .events = POLLIN };
	fds[SLOT_INPUT] = (struct pollfd){ .fd = readable ? run->terminal.fd : -1, .events = POLLIN };
	fds[SLOT_SERIAL_OUT] = sink_poll(&run->serial);
	fds[SLOT_CONSOLE_OUT] = sink_poll(&run->console);
	fds[SLOT_EVENTS_OUT] = sink_poll(&run->events.sink);
	if (run->terminal.fd >= 0 && run->terminal.is_tty && !readable)
		timeout = BACKGROUND_MS;
	if (run->input_used && run->machine.running)
		timeout = RETRY_MS;
	if (run->verify_ns != UINT64_MAX) {
		uint64_t now = events_now_ns();
		uint64_t wait_ms = now < run->verify_ns ? (run->verify_ns - now) / 1000000 + 1 : 0;

		if (timeout < 0 || wait_ms < (uint64_t)timeout)
			timeout = (int)wait_ms;
	}
	return run->more_serial || run->more_console ? 0 : timeout;
}

static void handle_poll(struct run *run, const struct pollfd *fds)
{
	if (fds[SLOT_SERIAL_OUT].revents)
		sink_flush(&run->serial);
	if (fds[SLOT_CONSOLE_OUT].revents)
		sink_flush(&run->console);
	if (fds[SLOT_EVENTS_OUT].revents)
		sink_flush(&run->events.sink);
	/* there may be room now for what the devices hold back */
	if (fds[SLOT_SERIAL_OUT].revents || run->more_serial)
		run->more_serial = run_move_serial(run);
	if (fds[SLOT_CONSOLE].revents || fds[SLOT_CONSOLE_OUT].revents || run->more_console)
		run->more_console = run_move_console(run);
	if (fds[SLOT_MACHINE].revents)
		handle_machine(run);
	if (fds[SLOT_INPUT].revents)
		run_read_input(run);
	if (fds[SLOT_SIGNAL].revents)
		handle_signal(run);
	if (fds[SLOT_TIMER].revents)
		run_end(run, RUN_TIMEOUT);
}

static void loop(struct run *run)
{
	struct pollfd fds[NR_SLOTS + SERVER_MAX_FDS];

	while (!run->ended) {
		int timeout = fill_poll(run, fds);
		unsigned nr_server = run->server ? server_poll_fds(run->server, fds + NR_SLOTS) : 0;
		int ready = poll(fds, NR_SLOTS + nr_server, timeout);

		if (ready < 0 && errno != EINTR) {
			run_end(run, cli_fail_errno(NULL, "poll"));
			return;
		}
		if (ready > 0 || run->more_serial || run->more_console) {
			handle_poll(run, fds);
			if (nr_server && !run->ended)
				server_handle(run->server, fds + NR_SLOTS, nr_server);
		}
		if (ready == 0 && run->input_used)
			run_offer_input(run);
		if (!run->ended && events_now_ns() >= run->verify_ns)
			verify(run);
	}
}

/* ---- up and down ------------------------------------------------------------------------------------------------- */

static int open_signals(struct run *run, struct img_error *err)
{
	static const int numbers[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCONT };
	struct sigaction ignore = { .sa_handler = SIG_IGN }, old;
	sigset_t set;

	sigaction(SIGPIPE, &ignore, NULL);
	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
		/* nohup and shells without job control ignore some of them on purpose */
		if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaddset(&set, numbers[i]);
	}
	pthread_sigmask(SIG_BLOCK, &set, &run->old_signals);
	run->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return run->signal_fd < 0 ? fail_errno(err, "signals") : 0;
}

static int open_timer(struct run *run, struct img_error *err)
{
	struct itimerspec at = { .it_value = { .tv_sec = run->opts->timeout_s } };

	if (!run->opts->timeout_s)
		return 0;
	run->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (run->timer_fd < 0 || timerfd_settime(run->timer_fd, 0, &at, NULL) != 0)
		return fail_errno(err, "timer");
	return 0;
}

static int open_output(struct sink *s, const char *path, struct img_error *err)
{
	if (path)
		return sink_open(s, path, err);
	sink_none(s);
	return 0;
}

static int open_debug_port(struct run *run, struct img_error *err)
{
	const char *path = run->opts->debug_port;

	if (!path)
		return 0;
	run->debug_fd = strcmp(path, "-") == 0 ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0) :
						 open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOCTTY | O_CLOEXEC, 0666);
	return run->debug_fd < 0 ? fail_errno(err, "%.180s", path) : 0;
}

/* All files are open, and there is no thread yet. A machine runs without a control socket where there can be none. */
static int machine_opened(void *ctx, struct img_error *err)
{
	struct run *run = ctx;
	const struct disk_options *disk = &run->opts->machine.disk[0];
	struct img_error why = { .code = IMG_OK };
	int ret = server_open(disk->path, disk->transient || disk->read_only, requests_handle, run, &run->server, &why);

	if (ret == IMG_E_BUSY)
		return fail(err, ret, "%s", why.msg);
	if (ret != 0)
		cli_message(NULL, "no control socket, so that only the keyboard and signals reach the machine: %s",
			    why.msg);
	return sandbox_close_files(&run->sandbox, run->server ? server_folder(run->server) : -1, err);
}

static int open_all(struct run *run, uint64_t start_ns, struct img_error *err)
{
	const struct run_options *opts = run->opts;
	int ret = open_signals(run, err);

	if (ret == 0)
		ret = events_open(&run->events, opts->json ? "-" : NULL, start_ns, err);
	if (ret == 0)
		ret = open_timer(run, err);
	if (ret == 0)
		ret = open_output(&run->serial, opts->serial, err);
	if (ret == 0)
		ret = open_output(&run->console, opts->console, err);
	if (ret == 0)
		ret = open_debug_port(run, err);
	return ret ? ret : ring_init(&run->ring, !opts->console, err);
}

static int create(struct run *run, struct img_error *err)
{
	struct machine_options opts = run->opts->machine;
	int ret;

	opts.debug_fd = run->debug_fd;
	opts.console_out = ring_put;
	opts.console_ctx = &run->ring;
	opts.opened = machine_opened;
	opts.opened_ctx = run;
	ret = machine_create(&run->machine, &opts, err);
	if (ret != 0)
		return ret;
	run->created = true;
	return sandbox_close_calls(&run->sandbox, terminal_rescue, err);
}

static void start(struct run *run)
{
	const struct machine *m = &run->machine;

	terminal_init(&run->terminal, STDIN_FILENO);
	/* keys are for a guest whose answers can be seen; a file is handed on in any case */
	if (run->terminal.is_tty && !(run->opts->serial && strcmp(run->opts->serial, "-") == 0) &&
	    !(run->opts->console && strcmp(run->opts->console, "-") == 0))
		terminal_init(&run->terminal, -1);
	if (run->terminal.is_tty) {
		terminal_guard();
		terminal_enter(&run->terminal);
	}
	run_verify_later(run);
	run->resumed_ns = events_now_ns();
	if (run->events.on)
		events_emit(&run->events, "started",
			    json_pack("{s:i, s:b, s:I, s:i, s:b, s:b}", "pid", (int)getpid(), "resumed",
				      m->disk[0].has_machine, "memory", (json_int_t)m->mem.ram_bytes, "vcpus",
				      (int)m->nr_vcpus, "landlock", run->sandbox.landlock, "seccomp",
				      run->sandbox.seccomp));
	machine_resume(&run->machine);
}

/* From here on a signal has its usual effect: a second Ctrl-C does not wait for a slow disk. */
static void let_signals_through(struct run *run)
{
	if (run->signal_fd < 0)
		return;
	pthread_sigmask(SIG_SETMASK, &run->old_signals, NULL);
}

static int finish(struct run *run)
{
	struct img_error err = { .code = IMG_OK };

	terminal_leave(&run->terminal);
	if (run->created) {
		machine_pause(&run->machine);
		run_drain(run, CLOSE_MS);
	}
	server_close(run->server);
	let_signals_through(run);
	if (run->created && machine_destroy(&run->machine, &err) != 0)
		run->status = run_fail(run, &err);
	return run->status;
}

static void close_all(struct run *run)
{
	if (run->events.on)
		events_emit(&run->events, "exit", json_pack("{s:i}", "status", run->status));
	sink_close(&run->serial, CLOSE_MS);
	sink_close(&run->console, CLOSE_MS);
	sink_close(&run->events.sink, CLOSE_MS);
	ring_done(&run->ring);
	if (run->debug_fd >= 0)
		close(run->debug_fd);
	if (run->timer_fd >= 0)
		close(run->timer_fd);
	if (run->signal_fd >= 0)
		close(run->signal_fd);
}

int run_machine(const struct run_options *opts, uint64_t start_ns)
{
	struct img_error err = { .code = IMG_OK };
	struct run *run = calloc(1, sizeof(*run));
	int status;

	if (!run)
		return cli_fail_errno(NULL, "machine");
	run->opts = opts;
	run->sandbox.mode = opts->sandbox;
	run->signal_fd = run->timer_fd = run->debug_fd = run->ring.event_fd = -1;
	run->verify_ns = UINT64_MAX;
	sink_none(&run->serial);
	sink_none(&run->console);
	sink_none(&run->events.sink);
	terminal_init(&run->terminal, -1);
	if (open_all(run, start_ns, &err) != 0 || create(run, &err) != 0) {
		run->status = run_fail(run, &err);
	} else {
		start(run);
		loop(run);
	}
	status = finish(run);
	close_all(run);
	free(run);
	return status;
}
