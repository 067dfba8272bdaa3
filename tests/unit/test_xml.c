/* SPDX-License-Identifier: MIT */
/* The reader of XML: what it gives for well-formed documents, and that everything else is refused, also byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checked.h"
#include "xml.h"

/* "<a>" "text" "</a>" ... ; "!" at the end where it is not well-formed. */
static void describe(const char *text, size_t bytes, char *out, size_t cap)
{
	char decoded[64];
	enum xml_event event;
	size_t n = 0;
	struct xml x;

	xml_start(&x, text, bytes);
	out[0] = '\0';
	while ((event = xml_next(&x)) > 0 && n < cap) {
		if (event == XML_OPEN)
			n += (size_t)snprintf(out + n, cap - n, "<%.*s>", (int)x.name.bytes, x.name.text);
		if (event == XML_CLOSE)
			n += (size_t)snprintf(out + n, cap - n, "</%.*s>", (int)x.name.bytes, x.name.text);
		if (event == XML_TEXT)
			n += (size_t)snprintf(out + n, cap - n, "%s",
					      xml_decode(&x, decoded, sizeof(decoded)) < 0 ? "?" : decoded);
	}
	if (event == XML_BAD && n < cap)
		snprintf(out + n, cap - n, "!");
	assert_int_equal(xml_next(&x), event);
}

static void expect(const char *text, const char *want)
{
	char got[256], *exact = malloc(strlen(text) + 1);

	assert_non_null(exact);
	memcpy(exact, text, strlen(text)); /* no NUL to stop at */
	describe(exact, strlen(text), got, sizeof(got));
	free(exact);
	if (strcmp(got, want) != 0)
		fail_msg("%s: %s, not %s", text, got, want);
}

static void well_formed(void **state)
{
	(void)state;
	expect("<a/>", "<a></a>");
	expect("<a></a>", "<a></a>");
	expect("\xef\xbb\xbf<?xml version=\"1.0\"?>\n<!-- x --><a>t</a>\n<!-- y -->\n", "<a>t</a>");
	expect("<a>one<b/>two</a >", "<a>one<b></b>two</a>");
	expect("<a x='1' y = \">\"><b z=\"\"/></a>", "<a><b></b></a>");
	expect("<!DOCTYPE plist PUBLIC \"-//A//B>\" 'c>'><a/>", "<a></a>");
	expect("<a>1<!-- 2 -->3<?p 4?>5</a>", "<a>135</a>");
	expect("<a><![CDATA[<&>]]></a>", "<a><&></a>");
	expect("<a>&lt;&gt;&amp;&quot;&apos;&#65;&#x42;&#xe9;&#x20ac;&#x1f4be;</a>",
	       "<a><>&\"'AB\xc3\xa9\xe2\x82\xac\xf0\x9f\x92\xbe</a>");
	expect("<a.b-c:d_1/>", "<a.b-c:d_1></a.b-c:d_1>");
}

static void refused(void **state)
{
	static const char *const texts[] = {
		"",
		" ",
		"t",
		"<",
		"<a",
		"<a>",
		"<a/",
		"<a></b>",
		"<a></a",
		"</a>",
		"<a><b></a></b>",
		"<a/><b/>",
		"<a/>t",
		"< a/>",
		"<1/>",
		"<a b/>",
		"<a b=1/>",
		"<a b='1/>",
		"<a b='1'c='2'/>",
		"<a><!-- </a>",
		"<a><![CDATA[</a>",
		"<?p",
		"<!DOCTYPE a",
		"<!DOCTYPE a [<!ENTITY b 'c'>]><a/>",
		"<a/><!DOCTYPE a>",
		"<a><!DOCTYPE a></a>",
		"<![CDATA[x]]>",
		"<a>t",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		char got[256];

		describe(texts[i], strlen(texts[i]), got, sizeof(got));
		if (got[0] == '\0' || got[strlen(got) - 1] != '!')
			fail_msg("%s: %s", texts[i], got);
	}
}

static void entities_that_do_not_exist(void **state)
{
	(void)state;
	expect("<a>&x;</a>", "<a>?</a>");
	expect("<a>&</a>", "<a>?</a>");
	expect("<a>&;</a>", "<a>?</a>");
	expect("<a>&#;</a>", "<a>?</a>");
	expect("<a>&#x;</a>", "<a>?</a>");
	expect("<a>&#0;</a>", "<a>?</a>");
	expect("<a>&#12a;</a>", "<a>?</a>");
	expect("<a>&#xd800;</a>", "<a>?</a>");
	expect("<a>&#x110000;</a>", "<a>?</a>");
	expect("<a>&#99999999999;</a>", "<a>?</a>");
}

static void depth_has_an_end(void **state)
{
	char text[256 * 7], got[256 * 8];

	(void)state;
	for (unsigned depth = XML_MAX_DEPTH; depth <= XML_MAX_DEPTH + 1; depth++) {
		size_t n = 0;

		for (unsigned i = 0; i < depth; i++, n += 3)
			memcpy(text + n, "<a>", 3);
		for (unsigned i = 0; i < depth; i++, n += 4)
			memcpy(text + n, "</a>", 4);
		describe(text, n, got, sizeof(got));
		assert_int_equal(got[strlen(got) - 1], depth > XML_MAX_DEPTH ? '!' : '>');
	}
}

static void decoding_stays_inside(void **state)
{
	static const char text[] = "<a>abc&#x1f4be;</a>";
	char out[16];
	struct xml x;

	(void)state;
	xml_start(&x, text, sizeof(text) - 1);
	assert_int_equal(xml_next(&x), XML_OPEN);
	assert_true(xml_is(x.name, "a"));
	assert_false(xml_is(x.name, "ab"));
	assert_int_equal(xml_next(&x), XML_TEXT);
	for (size_t cap = 0; cap < sizeof(out); cap++) {
		memset(out, '#', sizeof(out));
		assert_int_equal(xml_decode(&x, out, cap), cap > 7 ? 7 : -1);
		for (size_t i = cap; i < sizeof(out); i++)
			assert_int_equal(out[i], '#');
	}
}

/* Every prefix, and every change of one byte: an end, no byte beyond the buffer (the sanitizers see to that). */
static void damage_ends(void **state)
{
	static const char text[] = "<?xml?><!DOCTYPE a 'b'><a c=\"d\"><b>&amp;</b><![CDATA[x]]><!-- --></a>";
	char got[512];

	(void)state;
	for (size_t n = 0; n < sizeof(text); n++) {
		char *part = malloc(n ? n : 1);

		assert_non_null(part);
		memcpy(part, text, n);
		describe(part, n, got, sizeof(got));
		free(part);
	}
	for (size_t i = 0; i < sizeof(text) - 1; i++) {
		for (const char *c = "<>/&!\"'[ ]-a";; c++) {
			char *copy = malloc(sizeof(text) - 1);

			assert_non_null(copy);
			memcpy(copy, text, sizeof(text) - 1);
			copy[i] = *c; /* the NUL as well */
			describe(copy, sizeof(text) - 1, got, sizeof(got));
			free(copy);
			if (*c == '\0')
				break;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(well_formed),
		cmocka_unit_test(refused),
		cmocka_unit_test(entities_that_do_not_exist),
		cmocka_unit_test(depth_has_an_end),
		cmocka_unit_test(decoding_stays_inside),
		cmocka_unit_test(damage_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
