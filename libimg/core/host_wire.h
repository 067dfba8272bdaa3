/* SPDX-License-Identifier: MIT */
/*
 * What a confined process (host_remote.c) and its broker (host_serve.c) say to each other, over a socket of kind
 *AF_UNIX and SOCK_SEQPACKET. Both are the same build on the same machine: structs go as they lie in memory.
 *
 * One request is one packet, struct wire_request and then its two texts, each with its NUL. One answer follows, struct
 *wire_answer and then its text, perhaps with one descriptor (SCM_RIGHTS). The asker waits for it before it asks again.
 *
 *	what		a		b		number		answer
 *	OPEN		path		-		1: to write	descriptor
 *	OPEN_REF	child's path	name		1: to write	descriptor, resolved path
 *	CREATE		path		-		-		descriptor, temporary path
 *	PUBLISH		path		temporary path	enum img_create_flags	number: 1 with an error: it has its name
 *	DISCARD		path, or temporary	-	-		-
 *	CHECK_TARGET	path		-		1: to replace	-
 *	NEW_PATH	child's path	name		-		path
 *	IDENTIFY	path		-		-		number: device, inode
 *	HOLDER		path		-		byte; fd	number: pid; command
 *
 * The broker knows what it granted, opened and made, by path: a request about any other is refused. What it takes from
 *a packet is judged before use: the length, the kind, that both texts end where they should; descriptors that come
 *along are thrown away.
 */
#ifndef CORE_HOST_WIRE_H
#define CORE_HOST_WIRE_H

#include "libimg.h"

#define WIRE_PATH_BYTES 4096u /* PATH_MAX: what is longer no system call takes */

enum wire_what {
	WIRE_OPEN = 1,
	WIRE_OPEN_REF,
	WIRE_CREATE,
	WIRE_PUBLISH,
	WIRE_DISCARD,
	WIRE_CHECK_TARGET,
	WIRE_NEW_PATH,
	WIRE_IDENTIFY,
	WIRE_HOLDER,
};

struct wire_head {
	uint32_t what; /* enum wire_what */
	uint32_t refs; /* enum img_refs, of OPEN_REF and NEW_PATH */
	uint64_t number;
	int32_t fd;
	uint32_t a_bytes, b_bytes; /* with the NUL; 0: there is none */
	uint32_t reserved;	   /* 0: no byte of a packet is left to chance */
};
struct wire_request {
	struct wire_head head;
	char text[2 * WIRE_PATH_BYTES];
};

struct wire_answer {
	int32_t code; /* enum img_code; what follows is its error, empty for IMG_OK */
	int32_t sys_errno;
	uint64_t offset;
	char layer[24];
	char msg[sizeof(((struct img_error *)NULL)->msg)];
	uint64_t number[2];
	uint32_t text_bytes; /* as in a request */
	char text[2 * WIRE_PATH_BYTES];
};

#endif
