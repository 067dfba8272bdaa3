/* SPDX-License-Identifier: MIT */
/* The parsers of the command line: each text is parsed twice, and the answers are the same. See arguments.h. */
#include "arguments.h"

#include <stdarg.h>
#include <string.h>

void answer_add(struct answer *a, const char *fmt, ...)
{
	size_t at = strlen(a->text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(a->text + at, sizeof(a->text) - at, fmt, ap);
	va_end(ap);
}

void lines_take(struct lines *l, const char *text)
{
	char *save = NULL;

	memset(l, 0, sizeof(*l));
	l->text = strdup(text);
	FUZZ_CHECK(l->text != NULL);
	/* Two newlines are an empty argument. */
	for (char *at = l->text; at && l->nr < MAX_ARGS; at = save) {
		save = strchr(at, '\n');
		if (save)
			*save++ = '\0';
		l->arg[l->nr++] = at;
	}
}

void lines_free(struct lines *l)
{
	free(l->text);
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

static FILE *real_out, *real_err;
static char *printed, *complaint;
static size_t printed_bytes, complaint_bytes;

void quiet_begin(void)
{
	FILE *out = open_memstream(&printed, &printed_bytes), *err = open_memstream(&complaint, &complaint_bytes);

	FUZZ_CHECK(out && err);
	fflush(stdout);
	real_out = stdout;
	real_err = stderr;
	stdout = out;
	stderr = err;
}

static void check_lines(const char *text, size_t bytes)
{
	FUZZ_CHECK(bytes == 0 || text[bytes - 1] == '\n');
	for (size_t i = 0; i < bytes; i++) {
		unsigned char c = (unsigned char)text[i];

		FUZZ_CHECK(c == '\n' || (c >= 0x20 && c != 0x7f));
	}
}

void quiet_end(void)
{
	FILE *out = stdout, *err = stderr;

	stdout = real_out;
	stderr = real_err;
	FUZZ_CHECK(fclose(out) == 0 && fclose(err) == 0);
	if (getenv("FUZZ_VERBOSE"))
		printf("%s%s", printed, complaint);
	check_lines(complaint, complaint_bytes);
	free(printed);
	free(complaint);
	printed = complaint = NULL;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static bool is_word_of(const char *words, const char *value)
{
	const char *at = words;

	while (at && at != value)
		at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL;
	return at != NULL;
}

void check_options(const struct cli_verb *verb, const void *args, struct answer *a)
{
	const struct cli_option *option;

	for (size_t i = 0; (option = cli_option_at(verb, i)) != NULL; i++) {
		const void *at = option->offset == SIZE_MAX ? NULL : (const char *)args + option->offset;
		const struct each_arg *each = at;
		const struct size_arg *size = at;
		const char *text = at && option->kind != OPTION_FLAG ? *(const char *const *)at : NULL;

		if (!at)
			continue;
		answer_add(a, " %s=", option->name);
		switch (option->kind) {
		case OPTION_FLAG: answer_add(a, "%d", *(const bool *)at); break;
		case OPTION_TEXT:
		case OPTION_LIST: answer_add(a, "%s", text ? text : ""); break;
		case OPTION_CHOICE:
		case OPTION_WORD:
			FUZZ_CHECK(!text || is_word_of(option->metavar, text));
			answer_add(a, "%s", text ? text : "");
			break;
		case OPTION_SIZE:
		case OPTION_NUMBER:
			FUZZ_CHECK(size->given || size->value == 0);
			answer_add(a, "%llu", (unsigned long long)size->value);
			break;
		case OPTION_EACH:
			FUZZ_CHECK(each->nr <= EACH_MAX);
			for (unsigned k = 0; k < each->nr; k++)
				answer_add(a, "%s,", each->value[k]);
			break;
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const struct {
		char letter;
		void (*parse)(const char *text, struct answer *a);
	} parsers[] = {
		{ 's', parse_size },	{ 'c', parse_imgtool },	       { 'p', parse_policy }, { 'l', parse_limits },
		{ 't', parse_targets }, { 'o', parse_format_options }, { 'v', parse_imgvm },
	};
	const size_t nr = sizeof(parsers) / sizeof(parsers[0]);
	static struct answer first, again;
	size_t i = 0;
	char *text;

	if (bytes == 0)
		return 0;
	while (i < nr && parsers[i].letter != (char)data[0])
		i++;
	if (i == nr)
		i = data[0] % nr;
	text = calloc(1, bytes);
	FUZZ_CHECK(text != NULL);
	memcpy(text, data + 1, bytes - 1);
	memset(&first, 0, sizeof(first));
	memset(&again, 0, sizeof(again));
	quiet_begin();
	parsers[i].parse(text, &first);
	parsers[i].parse(text, &again);
	quiet_end();
	FUZZ_CHECK(first.status == again.status && strcmp(first.text, again.text) == 0);
	free(text);
	return 0;
}
