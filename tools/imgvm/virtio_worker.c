/* SPDX-License-Identifier: MIT */
/*
 * The worker of a virtio device: the thread that takes requests from its queues, so that no vCPU waits for a disk.
 *
 * It sleeps on one eventfd, which the guest's kicks (through KVM or through the register), timers and everybody else
 * signal, and then looks at every queue: there are few, and an empty one costs one load. It rests, between two
 * requests, while the device is paused and while somebody else wants `lock`.
 */
#include "virtio_int.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "fail.h"

/* Address space; of it only what libimg's call chains reach is ever memory. */
#define STACK_BYTES (256u << 10)

enum { NS_PER_S = 1000000000 };

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint32_t all_queues(const struct virtio *v)
{
	return (1u << v->kind->nr_queues) - 1;
}

static void wake(struct virtio *v)
{
	/* fails only where the counter is full: then it is awake */
	eventfd_write(v->kick_fd, 1);
}

void virtio_lock(struct virtio *v)
{
	atomic_fetch_add(&v->wanted, 1);
	pthread_mutex_lock(&v->lock);
}

void virtio_unlock(struct virtio *v)
{
	if (atomic_fetch_sub(&v->wanted, 1) == 1)
		pthread_cond_signal(&v->go);
	pthread_mutex_unlock(&v->lock);
}

static bool driver_runs(const struct virtio *v)
{
	return (atomic_load(&v->status) & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET | STATUS_FAILED)) == STATUS_DRIVER_OK;
}

/* Handles at most one request of each queue. False: nothing is left to be done now. */
static bool work_once(struct virtio *v)
{
	for (unsigned i = 0; i < v->kind->nr_queues && v->look; i++) {
		if (!(v->look & 1u << i))
			continue;
		if (!driver_runs(v) || (v->later_ns[i] && now_ns() < v->later_ns[i])) {
			v->look &= ~(1u << i);
			continue;
		}
		v->later_ns[i] = 0;
		if (!v->kind->handle(v, i))
			v->look &= ~(1u << i);
		if (v->paused || atomic_load(&v->wanted))
			return true;
	}
	return v->look != 0;
}

void virtio_worker_step(struct virtio *v, unsigned nr)
{
	virtio_lock(v);
	v->look = all_queues(v);
	/* one request at a time, because the lock is wanted */
	while (nr-- && work_once(v))
		;
	virtio_unlock(v);
}

/* Under lock; returns -1 for no timeout. */
static int64_t sleep_ns(const struct virtio *v)
{
	int64_t shortest = -1;
	uint64_t now = now_ns();

	for (unsigned i = 0; i < v->kind->nr_queues; i++) {
		int64_t ns = v->later_ns[i] > now ? (int64_t)(v->later_ns[i] - now) : 0;

		if (v->later_ns[i] && (shortest < 0 || ns < shortest))
			shortest = ns;
	}
	return shortest;
}

static void sleep_until_kick(struct virtio *v, int64_t ns)
{
	struct pollfd fd = { .fd = v->kick_fd, .events = POLLIN };
	struct timespec ts = { .tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S };
	eventfd_t kicks;

	if (ppoll(&fd, 1, ns < 0 ? NULL : &ts, NULL) > 0)
		eventfd_read(v->kick_fd, &kicks);
}

static void *work(void *arg)
{
	struct virtio *v = arg;

	pthread_mutex_lock(&v->lock);
	while (!v->stop) {
		int64_t ns;

		if (v->paused || atomic_load(&v->wanted)) {
			pthread_cond_wait(&v->go, &v->lock);
			continue;
		}
		if (work_once(v))
			continue;
		ns = sleep_ns(v);
		pthread_mutex_unlock(&v->lock);
		sleep_until_kick(v, ns);
		pthread_mutex_lock(&v->lock);
		v->look = all_queues(v);
	}
	pthread_mutex_unlock(&v->lock);
	return NULL;
}

int virtio_worker_start(struct virtio *v, struct img_error *err)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int failure;

	pthread_mutex_init(&v->lock, NULL);
	pthread_cond_init(&v->go, NULL);
	v->paused = true;
	v->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->kick_fd < 0)
		return fail_errno(err, "eventfd");
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	/* signals are for the thread that owns the machine */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	failure = pthread_create(&v->worker, &attr, work, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (failure) {
		errno = failure;
		return fail_errno(err, "thread of %s", v->kind->name);
	}
	v->has_worker = true;
	pthread_setname_np(v->worker, v->kind->name);
	return 0;
}

/* Also after a failed start. */
void virtio_worker_stop(struct virtio *v)
{
	if (v->has_worker) {
		virtio_lock(v);
		v->stop = true;
		virtio_unlock(v);
		wake(v);
		pthread_join(v->worker, NULL);
	}
	if (v->kick_fd >= 0)
		close(v->kick_fd);
	pthread_cond_destroy(&v->go);
	pthread_mutex_destroy(&v->lock);
}

void virtio_worker_pause(struct device *dev)
{
	struct virtio *v = virtio_of(dev);

	virtio_lock(v);
	v->paused = true;
	virtio_unlock(v);
}

void virtio_worker_resume(struct device *dev)
{
	struct virtio *v = virtio_of(dev);

	virtio_lock(v);
	v->paused = false;
	v->look = all_queues(v);
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		v->later_ns[i] = 0;
	virtio_unlock(v);
	wake(v);
}

void virtio_queues_reset(struct virtio *v)
{
	for (unsigned i = 0; i < v->kind->nr_queues; i++) {
		virtqueue_reset(&v->queue[i]);
		v->later_ns[i] = 0;
	}
	v->why = (struct img_error){ 0 };
	if (v->kind->reset)
		v->kind->reset(v);
}

/* ---- for kinds (virtio.h) ---- */

void virtio_notify_guest(struct virtio *v, unsigned queue)
{
	if (virtqueue_wants_irq(&v->queue[queue]))
		virtio_irq_queue(v, queue);
}

void virtio_broken(struct virtio *v, const struct img_error *why)
{
	if (!v->why.code)
		v->why = *why;
	/* 2.1.2: a driver that got as far as DRIVER_OK is told */
	if (atomic_fetch_or(&v->status, STATUS_NEEDS_RESET) & STATUS_DRIVER_OK)
		virtio_irq_config(v);
}

bool virtio_is_broken(struct virtio *v, struct img_error *why)
{
	bool broken;

	virtio_lock(v);
	broken = atomic_load(&v->status) & STATUS_NEEDS_RESET;
	*why = v->why;
	virtio_unlock(v);
	return broken;
}

void virtio_config_changed(struct virtio *v)
{
	atomic_fetch_add(&v->generation, 1);
	if (atomic_load(&v->status) & STATUS_DRIVER_OK)
		virtio_irq_config(v);
}

void virtio_kick(struct virtio *v, unsigned queue)
{
	(void)queue;
	wake(v);
}

void virtio_look_later(struct virtio *v, unsigned queue, uint64_t ns)
{
	v->later_ns[queue] = now_ns() + ns;
}
