/* SPDX-License-Identifier: MIT */
/*
 * A machine's RAM on its way into the image and back: which pages must be written, writing them while the guest runs
 * and while it stands still, and mapping them again.
 *
 * Pages that the image's working state already holds as they are, are the "base". `since` has a bit for every page that
 * may differ from it; it only ever grows until a snapshot has been committed, so that a failed attempt leaves nothing
 * behind but bits: what had been written of it into the working state is written again.
 *
 *   no base (cold boot): the first saving takes every page that the host's page map shows as present
 *   a base: from the moment it is the base, KVM's dirty log and the devices' own bits say what differs
 *
 * Threads: the machine's owner only; saver_verify_step() may run in another thread while the machine is not destroyed,
 * saved or reverted.
 */
#ifndef IMGVM_SAVER_H
#define IMGVM_SAVER_H

#include "memory.h"
#include "vm.h"

struct saver {
	struct memory *mem;
	struct vm *vm;
	struct img *img; /* whose working state is written; borrowed */
	bool tracking;	 /* KVM and devices record */
	bool has_base;
	bool mapped;	 /* pages of RAM may be mapped from an image */
	bool all;	 /* the base is in another image: every page is written */
	int pagemap_fd;	 /* /proc/self/pagemap */
	uint64_t *since; /* bits; pages that may differ from the base, beside what is still in the logs */
	uint64_t *round; /* bits; what is being written now */
	size_t nr_words;
	unsigned nr_rounds;	/* of the saving under way: `since` is in the first one */
	uint64_t state_bytes;	/* of processors and devices, when they were last written */
	struct img *verify_img; /* what was mapped without being read is verified from here; NULL: nothing left to do */
	const char *verify_snapshot; /* borrowed; NULL: the working state */
	uint64_t verify_off;	     /* linear */
};

int saver_init(struct saver *s, struct memory *mem, struct vm *vm, struct img *img, struct img_error *err);
void saver_done(struct saver *s);

/* Before the first round: starts recording where that has not begun, and finds out what there is to write. */
int saver_begin(struct saver *s, struct img_error *err);
/* The pages that must be written, moved from the logs into a round; returns how many bytes that is. */
int saver_collect(struct saver *s, uint64_t *bytes, struct img_error *err);
/* Writes the round. guest_runs: pages are copied first, since a checksum is made of them. */
int saver_write(struct saver *s, bool guest_runs, struct img_error *err);
/* It came to nothing: gives back the room that what was written takes, which the guest's disk may need. All of that is
 * in `since`, so that the next attempt writes it again. */
void saver_abandon(struct saver *s);
/* The snapshot is made: what was written is the base. */
void saver_commit(struct saver *s);

/*
 * RAM becomes what snapshot of img holds (NULL: the working state), mapped where possible. same: img is the image that
 * is saved into, and its working state is now that of the snapshot. Paused. After a failure RAM is undefined.
 */
int saver_load(struct saver *s, struct img *img, const char *snapshot, bool same, struct img_error *err);
/* RAM is empty, as after power-on, and nothing of it is in the image: what it was mapped from may be gone. Paused. */
int saver_forget(struct saver *s, struct img_error *err);
/* Verifies a piece of what was mapped. 1: more; 0: done; negative: damaged. */
int saver_verify_step(struct saver *s, struct img_error *err);

#endif
