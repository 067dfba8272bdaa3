/* SPDX-License-Identifier: MIT */
/*
 * A machine: memory, bus, devices, disks and processors put together, and what can be done with the whole. run.c owns
 * it and is its only thread beside those of vCPUs and devices.
 *
 * States: paused after machine_create(); running between machine_resume() and machine_pause(). Functions marked "any"
 * pause it themselves and let it run on if it was running.
 */
#ifndef IMGVM_MACHINE_H
#define IMGVM_MACHINE_H

#include "boot.h"
#include "bus.h"
#include "disks.h"
#include "memory.h"
#include "saver.h"
#include "throttle.h"
#include "virtio.h"
#include "vm.h"

struct machine_options {
	uint64_t ram_bytes; /* 0: what the resumed machine has, else 256 MiB */
	unsigned nr_vcpus;  /* 0: what the resumed machine has, else 1 */
	struct boot_options boot;
	struct disk_options disk[DISKS_MAX];
	unsigned nr_disks;
	uint64_t iops, bps;
	bool allow_clone; /* resume a snapshot that another machine runs from */
	int debug_fd;	  /* SeaBIOS's debug port; -1: none */
	void (*console_out)(void *ctx, const void *data, size_t bytes); /* virtio-console; NULL: no such device */
	void *console_ctx;
	/* Called once, when every file is open and before any thread is there: the sandbox's moment. May be NULL. */
	int (*opened)(void *ctx, struct img_error *err);
	void *opened_ctx;
};

struct snapshot_result {
	uint64_t pause_ns; /* the guest stood still */
	uint64_t total_ns;
	uint64_t ram_bytes;    /* RAM written while it ran and while it stood still */
	uint64_t paused_bytes; /* of it, while it stood still */
	uint64_t state_bytes;
	bool disk_only;
};

struct machine {
	struct memory mem;
	struct bus bus;
	struct machine_host host;
	struct vm *vm;
	struct boot *boot;
	struct disk disk[DISKS_MAX];
	unsigned nr_disks;
	struct virtio *blk[DISKS_MAX], *rng, *console;
	struct throttle throttle;
	struct device *serial, *pm, *pci, *fw_cfg;
	unsigned nr_vcpus;
	bool linux_boot; /* a reset starts the kernel again, not firmware */
	bool running;
	int event_fd;		 /* eventfd: machine_events() has something */
	_Atomic unsigned events; /* bits: 1 << enum machine_event */
	bool allow_clone;
	int clone_fd;	    /* the file of clone locks; -1: not open */
	uint64_t clone_off; /* of the byte that is locked: this snapshot's machine runs; UINT64_MAX: none */
	char base[IMG_SNAPSHOT_NAME_MAX +
		  1]; /* the snapshot that it was resumed from, reverted to or that was made last; "" */
	struct saver saver;
};

/* Opens everything and puts it together, resumed where the first disk names a snapshot with a machine, else freshly
 * reset. Paused. */
int machine_create(struct machine *m, const struct machine_options *opts, struct img_error *err);
/* Ends the threads, flushes and closes the images. A failure is that of a flush. */
int machine_destroy(struct machine *m, struct img_error *err);

void machine_resume(struct machine *m);
void machine_pause(struct machine *m);
/* In two steps: the guest computes, while what it asks of its disks waits for the second. */
void machine_resume_but_disks(struct machine *m);
void machine_resume_disks(struct machine *m);
/* Any: as the reset button. */
int machine_reset(struct machine *m, struct img_error *err);
/* Takes the events that have come since the last call, as bits. */
unsigned machine_events(struct machine *m);

/* ---- shape.c: what a machine is made of, section MACH of its saved state ---- */

struct machine_shape {
	uint64_t ram_bytes;
	unsigned nr_vcpus, nr_disks;
	bool linux_boot;
	struct machine_shape_disk {
		bool read_only;
		bool has_snapshot; /* one was made with the machine's; the first disk's is the one that holds the state */
		uint64_t size_bytes;
		uint8_t uuid[16]; /* of the image; zero where it has none */
		uint8_t snapshot_uuid[16];
	} disk[DISKS_MAX];
};
void machine_shape_save(const struct machine *m, struct state_writer *out);
int machine_shape_parse(struct state *state, struct machine_shape *shape, struct img_error *err);
/* A machine of this shape is m: memory, processors, images. UNSUPPORTED or CHANGED, saying what differs, if not. */
int machine_shape_check(const struct machine *m, const struct machine_shape *shape, struct img_error *err);
/* Reads and parses the state of a snapshot (NULL: the working state) of img. *state points into *buf, which the caller
 * frees. */
int machine_state_read(struct img *img, const char *snapshot, uint8_t **buf, struct state *state,
		       struct img_error *err);

/* ---- snapshot.c ---- */

/*
 * Any: processors, devices, RAM and every writable disk as `name`, in one commit of the first disk's image. Most of RAM
 * is written while the guest runs; then it stands still for the rest. disk_only: without the machine, as after a power
 * cut at this moment (flushed). On failure the machine goes on, and nothing of that name is left in the first image.
 */
int machine_snapshot(struct machine *m, const char *name, bool disk_only, struct snapshot_result *out,
		     struct img_error *err);
/*
 * Any: disk and machine as in the snapshot; one without a machine: the disk, and a reset. On failure before anything
 * changed the machine goes on; after it (IMG_E_POISONED, CORRUPT while loading) it stays paused.
 */
int machine_revert(struct machine *m, const char *name, struct img_error *err);
int machine_snapshot_delete(struct machine *m, const char *name, struct img_error *err);
int machine_snapshot_rename(struct machine *m, const char *name, const char *new_name, struct img_error *err);
/* The machine of the first disk's snapshot, into a created machine that has not run: for machine_create(). */
int machine_restore(struct machine *m, struct img_error *err);
/* Verifies, a step at a time, the RAM that was mapped without being read. 1: more to do; 0: done; negative: damaged,
 * the machine must not go on. */
int machine_verify_step(struct machine *m, struct img_error *err);

#endif
