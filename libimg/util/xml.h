/* SPDX-License-Identifier: MIT */
/*
 * A reader for the XML that stands in images: property lists in DMG, descriptors of Parallels disks. It is part of the
 * parser of an untrusted file, so it is small: no documents beside this one, no definitions of types or entities, no
 * allocation, no recursion, one pass over a buffer that the caller bounds. Attributes are skipped.
 *
 * Well-formedness is checked as far as it decides what is read: tags nest and match, entities are the five predefined
 * ones or numbers, nothing follows the outermost element but comments. Source: XML 1.0, fifth edition, sections 2 to 4.
 */
#ifndef UTIL_XML_H
#define UTIL_XML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XML_MAX_DEPTH 32u

enum xml_event {
	XML_BAD = -1, /* not well-formed, or more than is understood: x->at is where */
	XML_DONE = 0, /* the document is over */
	XML_OPEN,     /* an element begins: name */
	XML_CLOSE,    /* it ends: name; <a/> gives OPEN and CLOSE */
	XML_TEXT,     /* text: as it stands, to be decoded by xml_decode(); one element may have several */
};

/* A part of the buffer, not terminated. */
struct xml_span {
	const char *text;
	size_t bytes;
};

struct xml {
	const char *begin, *at, *end;
	struct xml_span name; /* OPEN, CLOSE */
	struct xml_span text; /* TEXT */
	bool verbatim;	      /* TEXT: from CDATA, there are no entities in it */
	/* its own */
	struct xml_span open[XML_MAX_DEPTH];
	unsigned depth;
	bool empty; /* the element that was opened last is <a/> */
	bool over;  /* the outermost element is closed */
};

/* text stays the caller's and must not change while x is in use. */
void xml_start(struct xml *x, const char *text, size_t bytes);
/* After XML_BAD and XML_DONE it gives the same again. */
enum xml_event xml_next(struct xml *x);

/*
 * The text of the last XML_TEXT with its entities resolved, in UTF-8, NUL-terminated. Returns its length, or -1 where
 * it does not fit into cap bytes, holds a NUL or an entity that does not exist.
 */
long xml_decode(const struct xml *x, char *out, size_t cap);

bool xml_is(struct xml_span span, const char *word);

#endif
