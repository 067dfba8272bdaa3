/* SPDX-License-Identifier: MIT */
/*
 * The rules of an inspection, and how findings are reported. One table gives each rule its name, severity and meaning;
 * policies and documents speak of rules by name. A hostile image can break a rule millions of times: after the first
 * few findings of a kind the rest is counted, and told in one line at the end.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "inspect.h"

#define EACH_MAX 4u

static const struct img_inspect_rule rules[INSPECT_IDS] = {
	[INSPECT_SEVERAL_FORMATS] = { "several-formats", IMG_SEVERITY_UNSAFE,
				      "head, tail or text of the file fit more than one format" },
	[INSPECT_FORMAT_MISMATCH] = { "format-mismatch", IMG_SEVERITY_UNSAFE,
				      "the content is of another format than the one that was named" },
	[INSPECT_FORMAT_NOT_ALLOWED] = { "format-not-allowed", IMG_SEVERITY_UNSAFE,
					 "a format that the policy does not allow" },
	[INSPECT_UNVERIFIED] = { "unverified-format", IMG_SEVERITY_UNSAFE,
				 "a format of which only headers and references can be judged" },
	[INSPECT_HYBRID_ISO] = { "hybrid-iso", IMG_SEVERITY_UNSAFE,
				 "an ISO 9660 or UDF disc that is a partitioned disk as well" },
	[INSPECT_NESTED_IMAGE] = { "nested-image", IMG_SEVERITY_UNSAFE,
				   "the disk's content is itself an image: written out as raw it would be taken for one" },
	[INSPECT_ARCHIVE] = { "archive", IMG_SEVERITY_UNSAFE, "an archive or package, not a disk" },
	[INSPECT_HEAD_TAIL] = { "head-tail-differ", IMG_SEVERITY_UNSAFE,
				"copies of a header say different things, or one is missing" },
	[INSPECT_TRAILING] = { "trailing-data", IMG_SEVERITY_UNSAFE, "data behind the end of the image" },
	[INSPECT_BACKING] = { "backing-file", IMG_SEVERITY_UNSAFE, "names a backing file" },
	[INSPECT_BACKING_FORMAT] = { "backing-format-missing", IMG_SEVERITY_UNSAFE,
				     "the format of the backing file is not recorded: readers would guess it" },
	[INSPECT_DATA_FILE] = { "data-file", IMG_SEVERITY_UNSAFE, "names a file that holds its data" },
	[INSPECT_EXTENT_FILE] = { "extent-file", IMG_SEVERITY_UNSAFE, "names files that hold parts of the disk" },
	[INSPECT_PARENT] = { "parent", IMG_SEVERITY_UNSAFE, "needs a parent image" },
	[INSPECT_HIDDEN_REFERENCE] = { "hidden-reference", IMG_SEVERITY_UNSAFE,
				       "names a file where readers should not look for one" },
	[INSPECT_REFERENCE_SYNTAX] = { "reference-syntax", IMG_SEVERITY_UNSAFE,
				       "a reference is a URL, a JSON text or another protocol, not a path" },
	[INSPECT_REFERENCE_OUTSIDE] = { "reference-outside", IMG_SEVERITY_UNSAFE,
					"a reference leads out of the image's folder" },
	[INSPECT_BAD_HEADER] = { "bad-header", IMG_SEVERITY_UNPARSEABLE, "the header makes no sense" },
	[INSPECT_TRUNCATED] = { "truncated", IMG_SEVERITY_UNPARSEABLE, "the file ends before the image does" },
	[INSPECT_UNKNOWN_FEATURE] = { "unknown-feature", IMG_SEVERITY_UNSAFE,
				      "features that are not known and that readers must know" },
	[INSPECT_OPTIONAL_FEATURE] = { "optional-feature", IMG_SEVERITY_NOTE,
				       "features that are not known and that readers may ignore" },
	[INSPECT_UNKNOWN_EXTENSION] = { "unknown-extension", IMG_SEVERITY_UNSAFE,
					"a header extension that is not known" },
	[INSPECT_DUPLICATE_EXTENSION] = { "duplicate-extension", IMG_SEVERITY_UNSAFE,
					  "a header extension occurs twice: readers may disagree which one counts" },
	[INSPECT_BAD_EXTENSION] = { "bad-extension", IMG_SEVERITY_UNSAFE, "a header extension has the wrong shape" },
	[INSPECT_SLACK] = { "slack", IMG_SEVERITY_NOTE, "the header area holds bytes that belong to nothing" },
	[INSPECT_TABLE_BOUNDS] = { "table-bounds", IMG_SEVERITY_UNSAFE,
				   "a table lies outside the file, or at no place for one" },
	[INSPECT_TABLE_OVERLAP] = { "table-overlap", IMG_SEVERITY_UNSAFE, "structures lie on each other" },
	[INSPECT_ENTRY_BOUNDS] = { "entry-bounds", IMG_SEVERITY_UNSAFE, "an entry of a table leads outside the file" },
	[INSPECT_ALIASED] = { "aliased-data", IMG_SEVERITY_UNSAFE, "places of one disk share their data" },
	[INSPECT_EXPANSION] = { "expansion", IMG_SEVERITY_UNSAFE, "far more data than the file has room for" },
	[INSPECT_INCONSISTENT] = { "inconsistent", IMG_SEVERITY_UNSAFE,
				   "structures contradict each other or the format" },
	[INSPECT_LEAKS] = { "leaks", IMG_SEVERITY_NOTE, "space that is marked as used and belongs to nothing" },
	[INSPECT_LIMIT] = { "limit", IMG_SEVERITY_UNSAFE, "exceeds a limit of the policy" },
	[INSPECT_NOT_INSPECTED] = { "not-inspected", IMG_SEVERITY_UNSAFE, "something could not be judged in time" },
	[INSPECT_CONTROL_CHARACTERS] = { "control-characters", IMG_SEVERITY_UNSAFE,
					 "names with control, invisible or direction-changing characters" },
	[INSPECT_DESCRIPTOR] = { "descriptor", IMG_SEVERITY_UNSAFE,
				 "the text that describes the disk is not understood" },
	[INSPECT_SUBFORMAT] = { "subformat", IMG_SEVERITY_UNSAFE, "a kind of image that is not one file by itself" },
	[INSPECT_DIRTY] = { "dirty", IMG_SEVERITY_NOTE, "the last writer did not end cleanly" },
	[INSPECT_CORRUPT] = { "corrupt", IMG_SEVERITY_UNSAFE, "marked as corrupt by a program that met damage" },
	[INSPECT_REPLAY] = { "replay-needed", IMG_SEVERITY_NOTE, "a log has to be replayed before the image is whole" },
	[INSPECT_COMMITTING] = { "commit-interrupted", IMG_SEVERITY_UNSAFE,
				 "a commit into its parent began and has not ended" },
	[INSPECT_SNAPSHOTS] = { "snapshots", IMG_SEVERITY_NOTE,
				"holds internal snapshots: more content than the disk shows" },
	[INSPECT_DUPLICATE_NAME] = { "duplicate-name", IMG_SEVERITY_UNSAFE,
				     "snapshots or bitmaps of one name: readers may disagree which one is meant" },
	[INSPECT_MACHINE_STATE] = { "machine-state", IMG_SEVERITY_NOTE, "holds the state of a running machine" },
	[INSPECT_BITMAPS] = { "bitmaps", IMG_SEVERITY_NOTE, "holds dirty bitmaps" },
	[INSPECT_ENCRYPTED] = { "encrypted", IMG_SEVERITY_NOTE, "encrypted: the content cannot be judged" },
	[INSPECT_LUKS_VERSION] = { "luks-version", IMG_SEVERITY_UNSAFE, "a version of LUKS that is not judged" },
	[INSPECT_KEY_COST] = { "key-derivation-cost", IMG_SEVERITY_UNSAFE, "to try a key costs more than it should" },
	[INSPECT_CONTENT] = { "content", IMG_SEVERITY_NOTE, "what the disk holds at first sight" },
	[INSPECT_MBR_INVALID] = { "mbr-invalid", IMG_SEVERITY_UNSAFE,
				  "the boot sector's partition table makes no sense" },
	[INSPECT_MBR_HYBRID] = { "mbr-hybrid", IMG_SEVERITY_UNSAFE,
				 "MBR and GPT both define partitions, which readers see differently" },
	[INSPECT_MBR_EMPTY] = { "mbr-empty", IMG_SEVERITY_UNSAFE, "a boot sector without any partition" },
	[INSPECT_GPT_DIFFER] = { "gpt-copies-differ", IMG_SEVERITY_UNSAFE,
				 "the two copies of the GPT are whole and different" },
	[INSPECT_GPT_PRIMARY] = { "gpt-primary-damaged", IMG_SEVERITY_UNSAFE,
				  "only the second copy of the GPT is whole: some readers use it, others see no table" },
	[INSPECT_GPT_BACKUP] = { "gpt-backup-damaged", IMG_SEVERITY_NOTE, "only the first copy of the GPT is whole" },
	[INSPECT_GPT_ELSEWHERE] = { "gpt-backup-elsewhere", IMG_SEVERITY_NOTE,
				    "the second copy of the GPT is not at the end of the disk" },
};

const struct img_inspect_rule *img_inspect_rule(size_t i)
{
	return i < ARRAY_LEN(rules) ? &rules[i] : NULL;
}

/* ---- findings ---------------------------------------------------------------------------------------------------- */

static void tell(struct inspector *in, enum inspect_id id, enum img_severity severity, uint64_t off, const char *text)
{
	struct img_inspect_finding f = { .id = rules[id].id, .severity = severity, .file_off = off };

	switch (severity) {
	case IMG_SEVERITY_NOTE: in->out->notes++; break;
	case IMG_SEVERITY_UNSAFE: in->out->unsafe++; break;
	case IMG_SEVERITY_UNPARSEABLE: in->out->unparseable++; break;
	}
	(void)snprintf(f.msg, sizeof(f.msg), "%s%s", in->where, text);
	in->fn(in->ctx, &f);
}

static void vfound(struct inspector *in, enum inspect_id id, enum img_severity severity, uint64_t off, const char *fmt,
		   va_list ap) __attribute__((format(printf, 5, 0)));
static void vfound(struct inspector *in, enum inspect_id id, enum img_severity severity, uint64_t off, const char *fmt,
		   va_list ap)
{
	char text[sizeof(((struct img_inspect_finding *)NULL)->msg)];

	if (in->nr[id]++ >= EACH_MAX)
		return;
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	tell(in, id, severity, off, text);
}

void inspect_found(struct inspector *in, enum inspect_id id, uint64_t off, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfound(in, id, rules[id].severity, off, fmt, ap);
	va_end(ap);
}

void inspect_note(struct inspector *in, enum inspect_id id, uint64_t off, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfound(in, id, IMG_SEVERITY_NOTE, off, fmt, ap);
	va_end(ap);
}

void inspect_end(struct inspector *in)
{
	in->where = "";
	for (unsigned id = 0; id < INSPECT_IDS; id++) {
		char text[64];

		if (in->nr[id] <= EACH_MAX)
			continue;
		(void)snprintf(text, sizeof(text), "and %" PRIu32 " more of this kind", in->nr[id] - EACH_MAX);
		tell(in, (enum inspect_id)id, IMG_SEVERITY_NOTE, NO_OFFSET, text);
	}
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

/* U+0080 to U+009F, and what changes direction or cannot be seen: U+200B to U+200F, U+202A to U+202E, U+2060 to U+2069,
 * U+FEFF. */
static bool is_invisible(const uint8_t *t, size_t left)
{
	if (left >= 2 && t[0] == 0xc2 && t[1] < 0xa0)
		return true;
	if (left < 3)
		return false;
	if (t[0] == 0xe2 && t[1] == 0x80)
		return (t[2] >= 0x8b && t[2] <= 0x8f) || (t[2] >= 0xaa && t[2] <= 0xae);
	if (t[0] == 0xe2 && t[1] == 0x81)
		return t[2] >= 0xa0 && t[2] <= 0xa9;
	return t[0] == 0xef && t[1] == 0xbb && t[2] == 0xbf;
}

void inspect_text(struct inspector *in, const uint8_t *text, size_t bytes, uint64_t off, const char *what)
{
	for (size_t i = 0; i < bytes; i++) {
		if (text[i] >= 0x20 && text[i] != 0x7f && !is_invisible(text + i, bytes - i))
			continue;
		inspect_found(in, INSPECT_CONTROL_CHARACTERS, off + i,
			      "%s has a control or invisible character (0x%02x) at byte %zu", what, text[i], i);
		return;
	}
}

static bool has_scheme(const uint8_t *name, size_t bytes)
{
	for (size_t i = 0; i < bytes && name[i] != '/'; i++)
		if (name[i] == ':')
			return true;
	return false;
}

static bool is_separator(uint8_t c)
{
	return c == '/' || c == '\\';
}

static bool leads_outside(const uint8_t *name, size_t bytes)
{
	if (bytes > 0 && is_separator(name[0]))
		return true;
	for (size_t i = 0; i + 1 < bytes; i++) {
		if (name[i] != '.' || name[i + 1] != '.')
			continue;
		if ((i == 0 || is_separator(name[i - 1])) && (i + 2 == bytes || is_separator(name[i + 2])))
			return true;
	}
	return false;
}

void inspect_reference(struct inspector *in, enum inspect_id id, const uint8_t *name, size_t bytes, uint64_t off,
		       const char *what)
{
	int shown = (int)min_u64(bytes, 120);

	inspect_found(in, id, off, "names %s: '%.*s'", what, shown, (const char *)name);
	if (has_scheme(name, bytes))
		inspect_found(in, INSPECT_REFERENCE_SYNTAX, off, "%s is not a plain path: '%.*s'", what, shown,
			      (const char *)name);
	else if (leads_outside(name, bytes))
		inspect_found(in, INSPECT_REFERENCE_OUTSIDE, off, "%s lies outside the image's folder: '%.*s'", what,
			      shown, (const char *)name);
	inspect_text(in, name, bytes, off, what);
}

/* ---- limits ------------------------------------------------------------------------------------------------------ */

bool inspect_limit(struct inspector *in, enum budget_item item, uint64_t wanted, uint64_t off)
{
	struct img_error err = { .code = IMG_OK };

	if (budget_judge(&in->budget, item, wanted, "the image", &err) == 0)
		return false;
	inspect_found(in, item == BUDGET_EXPANSION ? INSPECT_EXPANSION : INSPECT_LIMIT, off, "%s", err.msg);
	return true;
}

void inspect_expansion(struct inspector *in, uint64_t mapped_bytes, uint64_t file_bytes, uint64_t off, const char *what)
{
	if (budget_expansion_fits(&in->budget, mapped_bytes, file_bytes))
		return;
	inspect_found(in, INSPECT_EXPANSION, off,
		      "%s has %" PRIu64 " bytes of data in a file of %" PRIu64 ", above the limit of %" PRIu64
		      " for each byte",
		      what, mapped_bytes, file_bytes, in->budget.limit[BUDGET_EXPANSION]);
}

bool inspect_over(struct inspector *in)
{
	if (in->over)
		return true;
	in->over = budget_now_ms() >= in->end_ms;
	if (in->over)
		inspect_found(in, INSPECT_NOT_INSPECTED, NO_OFFSET,
			      "the inspection took longer than its limit of %" PRIu64 " seconds, and stopped",
			      in->budget.limit[BUDGET_CHECK]);
	return in->over;
}

int inspect_read(struct node *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size = node_size(file), there = off < size ? min_u64(bytes, size - off) : 0;

	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there ? node_pread(file, buf, there, off, 0, err) : 0;
}
