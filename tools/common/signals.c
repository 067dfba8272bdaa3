/* SPDX-License-Identifier: MIT */
/* See signals.h. */
#include "signals.h"

#include <signal.h>
#include <stddef.h>

static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
#define NR_NUMBERS (sizeof(numbers) / sizeof(numbers[0]))

static volatile sig_atomic_t interrupted; /* by the signal of this number; 0: not yet */

static void handle(int signal_nr)
{
	interrupted = signal_nr;
}

void signals_install(void)
{
	struct sigaction action = { .sa_handler = SIG_IGN }, old;

	sigaction(SIGPIPE, &action, NULL);
	action.sa_handler = handle;
	action.sa_flags = (int)SA_RESETHAND; /* no SA_RESTART: a read from a terminal or pipe ends */
	for (size_t i = 0; i < NR_NUMBERS; i++) {
		/* nohup and shells without job control ignore some of them on purpose */
		if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(numbers[i], &action, NULL);
	}
}

void signals_end_it(void)
{
	struct sigaction action = { .sa_handler = SIG_DFL }, old;

	for (size_t i = 0; i < NR_NUMBERS; i++)
		if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler == handle)
			sigaction(numbers[i], &action, NULL);
	signals_pass_on();
}

void signals_pass_on(void)
{
	if (!interrupted)
		return;
	signal(interrupted, SIG_DFL);
	raise(interrupted);
}

bool signals_interrupted(void)
{
	return interrupted != 0;
}
