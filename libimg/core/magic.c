/* SPDX-License-Identifier: MIT */
/* See magic.h. Sources: the formats' own documents; format-spec/inspect.md lists them. */
#include <string.h>

#include "checked.h"
#include "magic.h"

/* from_end: offset counted back from the end of the file. */
static const struct magic {
	const char *format;
	enum magic_kind kind;
	bool from_end;
	uint32_t off, bytes;
	const char *text;
} magics[] = {
	{ "qcow", MAGIC_IMAGE, false, 0, 8, "QFI\xfb\0\0\0\1" }, /* version 1; later ones are qcow2 */
	{ "qed", MAGIC_IMAGE, false, 0, 4, "QED\0" },
	{ "vmdk", MAGIC_IMAGE, false, 0, 4, "KDMV" },
	{ "vmdk", MAGIC_IMAGE, false, 0, 4, "COWD" },
	{ "vmdk", MAGIC_IMAGE, false, 0, 21, "# Disk DescriptorFile" },
	{ "vmdk", MAGIC_IMAGE, false, 0, 8, "\xbe\xba\xfe\xca\0\0\0\0" }, /* a seSparse extent */
	{ "vdi", MAGIC_IMAGE, false, 64, 4, "\x7f\x10\xda\xbe" },
	{ "vhdx", MAGIC_IMAGE, false, 0, 8, "vhdxfile" },
	{ "vhd", MAGIC_IMAGE, false, 0, 8, "conectix" },
	{ "vhd", MAGIC_IMAGE, true, 512, 8, "conectix" },
	{ "vhd", MAGIC_IMAGE, true, 511, 8, "conectix" }, /* old Virtual PC wrote footers of 511 bytes */
	{ "luks", MAGIC_IMAGE, false, 0, 6, "LUKS\xba\xbe" },
	{ "parallels", MAGIC_IMAGE, false, 0, 16, "WithoutFreeSpace" },
	{ "parallels", MAGIC_IMAGE, false, 0, 16, "WithouFreSpacExt" },
	{ "bochs", MAGIC_IMAGE, false, 0, 18, "Bochs Virtual HD I" },
	{ "cloop", MAGIC_IMAGE, false, 0, 27, "#!/bin/sh\n#V2.0 Format\nmodp" },
	{ "asif", MAGIC_IMAGE, false, 0, 4, "shdw" },
	{ "dmg", MAGIC_IMAGE, true, 512, 4, "koly" },
	{ "dmg", MAGIC_IMAGE, false, 0, 8, "encrcdsa" }, /* encrypted */
	{ "sparseimage", MAGIC_IMAGE, false, 0, 4, "sprs" },
	{ "a disc", MAGIC_CONTENT, false, 32769, 5, "CD001" },
	{ "a disc", MAGIC_CONTENT, false, 32769, 4, "NSR0" },
	{ "a disc", MAGIC_CONTENT, false, 32769, 5, "BEA01" },
	{ "a GPT", MAGIC_CONTENT, false, 512, 8, "EFI PART" },
	{ "a boot sector", MAGIC_CONTENT, false, 510, 2, "\x55\xaa" },
	{ "tar", MAGIC_ARCHIVE, false, 257, 5, "ustar" }, /* OVA is one */
	{ "gzip", MAGIC_ARCHIVE, false, 0, 3, "\x1f\x8b\x08" },
	{ "zip", MAGIC_ARCHIVE, false, 0, 4, "PK\3\4" },
	{ "xz", MAGIC_ARCHIVE, false, 0, 6,
	  "\xfd"
	  "7zXZ\0" },
	{ "zstd", MAGIC_ARCHIVE, false, 0, 4, "\x28\xb5\x2f\xfd" },
	{ "bzip2", MAGIC_ARCHIVE, false, 0, 4, "BZh9" },
	{ "7z", MAGIC_ARCHIVE, false, 0, 6, "7z\xbc\xaf\x27\x1c" },
};

static bool fits(const struct magic *m, const struct probe_data *data)
{
	const uint8_t *at;

	if (m->from_end) {
		if (data->tail_bytes < m->off)
			return false;
		at = data->tail + data->tail_bytes - m->off;
		return m->bytes <= m->off && memcmp(at, m->text, m->bytes) == 0;
	}
	return data->head_bytes >= m->off + m->bytes && memcmp(data->head + m->off, m->text, m->bytes) == 0;
}

bool magic_knows(const char *format)
{
	for (size_t i = 0; i < ARRAY_LEN(magics); i++)
		if (magics[i].kind == MAGIC_IMAGE && strcmp(magics[i].format, format) == 0)
			return true;
	return false;
}

void magic_scan(const struct probe_data *data, magic_fn fn, void *ctx)
{
	for (size_t i = 0; i < ARRAY_LEN(magics); i++) {
		const struct magic *m = &magics[i];

		/* A format of our own judges itself. */
		if (!registry_find(m->format) && fits(m, data))
			fn(ctx, m->format, m->kind, m->from_end ? data->file_bytes - m->off : m->off);
	}
}
