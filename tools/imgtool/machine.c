/* SPDX-License-Identifier: MIT */
/* See machine.h. */
#include "machine.h"

#include <unistd.h>

#include "control.h"

int machine_connect(const char *path)
{
	int fd;

	return control_connect(path, &fd, NULL) == 0 ? fd : -1;
}

int machine_ask(int fd, const char *path, const struct common_args *common, void (*print)(const json_t *answer),
		const char *command, const char *name, const char *key, const char *value)
{
	json_t *request = key && value ? json_pack("{s:s, s:s, s:s}", "command", command, "name", name, key, value) :
					 json_pack("{s:s, s:s}", "command", command, "name", name);
	struct img_error err = { .code = IMG_OK };
	json_t *answer = NULL;
	int status = EXIT_DONE;

	if (!request) {
		cli_message(path, "a machine takes only names that are UTF-8");
		status = EXIT_USAGE;
	} else if (control_call(fd, request, &answer, &err) != 0) {
		status = cli_fail(path, &err);
	} else if (print && !common->quiet) {
		print(answer);
	}
	json_decref(answer);
	json_decref(request);
	close(fd);
	return status;
}
