/* SPDX-License-Identifier: MIT */
/*
 * An assembler for the few terms of the ACPI machine language (ACPI 6.4, 20.2) that acpi.c needs. Terms are appended to
 * a buffer of fixed size; what does not fit aborts: the tables are ours, and their size does not depend on anybody.
 */
#ifndef IMGVM_AML_H
#define IMGVM_AML_H

#include <stddef.h>
#include <stdint.h>

struct aml {
	uint8_t *buf;
	size_t used, cap;
};

void aml_bytes(struct aml *aml, const void *data, size_t bytes);
void aml_byte(struct aml *aml, unsigned v);

/* Terms with a length: what is appended between open and close is inside. open returns what close wants. */
size_t aml_open_scope(struct aml *aml, const char *name);  /* a segment of 4, or one after a backslash */
size_t aml_open_device(struct aml *aml, const char *name); /* 4 characters */
size_t aml_open_package(struct aml *aml, unsigned nr_elements);
void aml_close(struct aml *aml, size_t open);

/* Name (name, <the next term>) */
void aml_name(struct aml *aml, const char *name);
void aml_int(struct aml *aml, uint32_t v);
void aml_string(struct aml *aml, const char *s);
/* "PNP0501" as a number (6.1.5) */
void aml_eisa_id(struct aml *aml, const char *id);

/* A buffer with resource descriptors (6.4): terms of the aml_res_ kind between open and close. */
size_t aml_open_resources(struct aml *aml);
void aml_close_resources(struct aml *aml, size_t open);
void aml_res_io(struct aml *aml, uint16_t port, uint8_t nr_ports);
void aml_res_irq(struct aml *aml, unsigned irq);
/* Windows of a bridge, [first, last] */
void aml_res_bus_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_res_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_res_mem_window(struct aml *aml, uint32_t first, uint32_t last);

#endif
