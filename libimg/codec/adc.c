/* SPDX-License-Identifier: MIT */
/*
 * Apple Data Compression, of old DMG files; only to expand. A sequence of
 *   1nnnnnnn                     n + 1 bytes follow as they are
 *   00nnnnoo oooooooo            n + 3 bytes again from o + 1 bytes back
 *   01nnnnnn oooooooo oooooooo   n + 4 bytes again from o + 1 bytes back
 * where what is repeated may overlap what it makes.
 */
#include <stdint.h>
#include <string.h>

#include "codec_ops.h"
#include "libimg.h"

static char stateless;

static void *adc_new_state(void)
{
	return &stateless;
}

static void adc_free_state(void *state)
{
	(void)state;
}

static int adc_expand(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	const uint8_t *at = src, *end = at + src_bytes;
	uint8_t *out = dst, *out_end = out + dst_bytes;

	(void)state;
	while (at < end) {
		size_t code = *at, head = code & 0x80 ? 1 : code & 0x40 ? 3 : 2, n, back;

		if ((size_t)(end - at) < head)
			return IMG_E_CORRUPT;
		if (code & 0x80) {
			n = (code & 0x7f) + 1;
			if ((size_t)(end - at) - 1 < n || (size_t)(out_end - out) < n)
				return IMG_E_CORRUPT;
			memcpy(out, at + 1, n);
			out += n;
			at += 1 + n;
			continue;
		}
		n = code & 0x40 ? (code & 0x3f) + 4 : (code >> 2) + 3;
		back = (code & 0x40 ? (size_t)at[1] << 8 | at[2] : (code & 3) << 8 | at[1]) + 1;
		if ((size_t)(out_end - out) < n || (size_t)(out - (uint8_t *)dst) < back)
			return IMG_E_CORRUPT;
		for (; n > 0; n--, out++)
			*out = *(out - back);
		at += head;
	}
	return out == out_end ? 0 : IMG_E_CORRUPT;
}

const struct codec_ops codec_adc = {
	.id = CODEC_ADC,
	.name = "adc",
	.new_state = adc_new_state,
	.free_state = adc_free_state,
	.expand = adc_expand,
};
