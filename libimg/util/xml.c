/* SPDX-License-Identifier: MIT */
/* See xml.h. */
#include "xml.h"

#include <string.h>

void xml_start(struct xml *x, const char *text, size_t bytes)
{
	static const char mark[] = "\xef\xbb\xbf"; /* byte order mark */

	memset(x, 0, sizeof(*x));
	x->begin = x->at = text;
	x->end = text + bytes;
	if (bytes >= 3 && memcmp(text, mark, 3) == 0)
		x->at += 3;
}

bool xml_is(struct xml_span span, const char *word)
{
	return strlen(word) == span.bytes && memcmp(span.text, word, span.bytes) == 0;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static bool is_name_start(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == ':' || (unsigned char)c >= 0x80;
}

static bool is_name(char c)
{
	return is_name_start(c) || (c >= '0' && c <= '9') || c == '-' || c == '.';
}

static void skip_blanks(struct xml *x)
{
	while (x->at < x->end && is_blank(*x->at))
		x->at++;
}

static bool starts(const struct xml *x, const char *word)
{
	size_t bytes = strlen(word);

	return (size_t)(x->end - x->at) >= bytes && memcmp(x->at, word, bytes) == 0;
}

/* Behind the next occurrence of word; false: there is none. */
static bool skip_past(struct xml *x, const char *word)
{
	const char *found = memmem(x->at, (size_t)(x->end - x->at), word, strlen(word));

	if (found)
		x->at = found + strlen(word);
	return found != NULL;
}

static bool take_name(struct xml *x, struct xml_span *out)
{
	out->text = x->at;
	if (x->at == x->end || !is_name_start(*x->at))
		return false;
	while (x->at < x->end && is_name(*x->at))
		x->at++;
	out->bytes = (size_t)(x->at - out->text);
	return true;
}

/* The name of a type may stand there, with where its definition is, which is not looked at; definitions may not. */
static bool skip_doctype(struct xml *x)
{
	char quote = 0;

	for (; x->at < x->end; x->at++) {
		char c = *x->at;

		if (quote) {
			quote = c == quote ? 0 : quote;
		} else if (c == '"' || c == '\'') {
			quote = c;
		} else if (c == '>') {
			x->at++;
			return true;
		} else if (c == '[') {
			return false;
		}
	}
	return false;
}

/* Comments, processing instructions, the type: true when one was there and is skipped, *bad when it is not whole. */
static bool skip_other(struct xml *x, bool *bad)
{
	if (starts(x, "<!--")) {
		x->at += 4;
		*bad = !skip_past(x, "-->");
	} else if (starts(x, "<?")) {
		*bad = !skip_past(x, "?>");
	} else if (starts(x, "<!DOCTYPE") && x->depth == 0 && !x->over) {
		*bad = !skip_doctype(x);
	} else {
		return false;
	}
	return true;
}

static bool skip_attributes(struct xml *x)
{
	struct xml_span name;

	for (;;) {
		bool blank = x->at < x->end && is_blank(*x->at);
		const char *close;

		skip_blanks(x);
		if (x->at == x->end || *x->at == '>' || *x->at == '/')
			return x->at < x->end;
		if (!blank || !take_name(x, &name))
			return false;
		skip_blanks(x);
		if (x->at == x->end || *x->at++ != '=')
			return false;
		skip_blanks(x);
		if (x->at == x->end || (*x->at != '"' && *x->at != '\''))
			return false;
		close = memchr(x->at + 1, *x->at, (size_t)(x->end - x->at - 1));
		if (!close)
			return false;
		x->at = close + 1;
	}
}

static enum xml_event open_element(struct xml *x)
{
	x->at++;
	if (x->over || x->depth == XML_MAX_DEPTH || !take_name(x, &x->name) || !skip_attributes(x))
		return XML_BAD;
	x->empty = *x->at == '/';
	if (x->empty)
		x->at++;
	if (x->at == x->end || *x->at++ != '>')
		return XML_BAD;
	x->open[x->depth++] = x->name;
	return XML_OPEN;
}

static enum xml_event pop(struct xml *x)
{
	x->name = x->open[--x->depth];
	x->over = x->depth == 0;
	return XML_CLOSE;
}

static enum xml_event close_element(struct xml *x)
{
	struct xml_span name, open;

	x->at += 2;
	if (x->depth == 0 || !take_name(x, &name))
		return XML_BAD;
	skip_blanks(x);
	if (x->at == x->end || *x->at++ != '>')
		return XML_BAD;
	open = x->open[x->depth - 1];
	if (open.bytes != name.bytes || memcmp(open.text, name.text, name.bytes) != 0)
		return XML_BAD;
	return pop(x);
}

static enum xml_event take_cdata(struct xml *x)
{
	x->at += 9;
	x->text.text = x->at;
	if (x->depth == 0 || !skip_past(x, "]]>"))
		return XML_BAD;
	x->text.bytes = (size_t)(x->at - 3 - x->text.text);
	x->verbatim = true;
	return XML_TEXT;
}

static enum xml_event take_text(struct xml *x)
{
	const char *next = memchr(x->at, '<', (size_t)(x->end - x->at));

	x->text = (struct xml_span){ x->at, (size_t)((next ? next : x->end) - x->at) };
	x->verbatim = false;
	if (x->depth == 0 || !next)
		return XML_BAD;
	x->at = next;
	return XML_TEXT;
}

/* Some writers end their document with a NUL, or several. */
static bool only_nuls(const struct xml *x)
{
	for (const char *at = x->at; at < x->end; at++) {
		if (*at != '\0')
			return false;
	}
	return true;
}

static enum xml_event next(struct xml *x)
{
	bool bad = false;

	if (x->empty) {
		x->empty = false;
		return pop(x);
	}
	do {
		if (x->depth == 0)
			skip_blanks(x);
	} while (skip_other(x, &bad) && !bad);
	if (bad)
		return XML_BAD;
	if (x->over && only_nuls(x))
		return XML_DONE;
	if (x->at == x->end)
		return XML_BAD;
	if (starts(x, "</"))
		return close_element(x);
	if (starts(x, "<![CDATA["))
		return take_cdata(x);
	return *x->at == '<' ? open_element(x) : take_text(x);
}

enum xml_event xml_next(struct xml *x)
{
	const char *began = x->at;
	enum xml_event event = next(x);

	if (event == XML_BAD || event == XML_DONE) {
		x->at = began;
		x->empty = false;
	}
	return event;
}

/* ---- entities ---------------------------------------------------------------------------------------------------- */

static size_t put_utf8(uint32_t code, char *out)
{
	if (code < 0x80) {
		out[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		out[0] = (char)(0xc0 | code >> 6);
		out[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000) {
		out[0] = (char)(0xe0 | code >> 12);
		out[1] = (char)(0x80 | (code >> 6 & 0x3f));
		out[2] = (char)(0x80 | (code & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | code >> 18);
	out[1] = (char)(0x80 | (code >> 12 & 0x3f));
	out[2] = (char)(0x80 | (code >> 6 & 0x3f));
	out[3] = (char)(0x80 | (code & 0x3f));
	return 4;
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : 16;
}

/* "#65", "#x41": 0 where it is none. */
static uint32_t number_of(struct xml_span e)
{
	int base = e.bytes > 1 && e.text[1] == 'x' ? 16 : 10;
	size_t i = base == 16 ? 2 : 1;
	uint32_t code = 0;

	if (i == e.bytes)
		return 0;
	for (; i < e.bytes; i++) {
		int d = digit(e.text[i]);

		if (d >= base || code > 0x10ffff)
			return 0;
		code = code * (uint32_t)base + (uint32_t)d;
	}
	return code <= 0x10ffff && (code < 0xd800 || code > 0xdfff) ? code : 0;
}

static uint32_t entity(struct xml_span e)
{
	static const struct {
		const char *name;
		char value;
	} known[] = { { "lt", '<' }, { "gt", '>' }, { "amp", '&' }, { "quot", '"' }, { "apos", '\'' } };

	if (e.bytes > 0 && e.text[0] == '#')
		return number_of(e);
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (xml_is(e, known[i].name))
			return (uint32_t)known[i].value;
	}
	return 0;
}

long xml_decode(const struct xml *x, char *out, size_t cap)
{
	const char *at = x->text.text, *end = at + x->text.bytes;
	size_t n = 0;

	while (at < end) {
		uint32_t code = (unsigned char)*at;
		char utf8[4] = { *at };
		size_t bytes = 1;

		if (*at == '&' && !x->verbatim) {
			const char *semicolon = memchr(at, ';', (size_t)(end - at));

			if (!semicolon)
				return -1;
			code = entity((struct xml_span){ at + 1, (size_t)(semicolon - at - 1) });
			bytes = code ? put_utf8(code, utf8) : 0;
			at = semicolon;
		}
		at++;
		if (code == 0 || n + bytes >= cap)
			return -1;
		memcpy(out + n, utf8, bytes);
		n += bytes;
	}
	if (cap == 0)
		return -1;
	out[n] = '\0';
	return (long)n;
}
