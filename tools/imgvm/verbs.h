/* SPDX-License-Identifier: MIT */
/* The verbs; run is in cmd_run.c, the others in cmd_client.c. */
#ifndef IMGVM_VERBS_H
#define IMGVM_VERBS_H

#include "args.h"

extern const struct cli_verb verb_run;
extern const struct cli_verb verb_status;
extern const struct cli_verb verb_pause;
extern const struct cli_verb verb_resume;
extern const struct cli_verb verb_snapshot;
extern const struct cli_verb verb_revert;
extern const struct cli_verb verb_delete;
extern const struct cli_verb verb_rename;
extern const struct cli_verb verb_powerdown;
extern const struct cli_verb verb_reset;
extern const struct cli_verb verb_quit;

#endif
