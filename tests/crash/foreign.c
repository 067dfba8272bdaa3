/* SPDX-License-Identifier: MIT */
/* See foreign.h. The files are written to a folder on a tmpfs where there is one; what qemu-img converts is read back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "foreign.h"

#define LEAKS_ONLY 3

static int shell(const char *folder, const char *command)
{
	char text[512];
	int status;

	snprintf(text, sizeof(text), "cd %s && %s >said 2>&1", folder, command);
	status = system(text);
	return status >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool foreign_available(void)
{
	return system("command -v qemu-img >/dev/null") == 0;
}

static void must(bool ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	abort();
}

static void write_file(struct mem_content *content, const char *folder, const char *name)
{
	char path[128];
	uint64_t size = mem_content_size(content);
	uint8_t *bytes = malloc((size_t)size + 1);
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "wb");
	must(bytes != NULL && file != NULL, path);
	mem_content_read(content, bytes, size, 0);
	must(fwrite(bytes, 1, (size_t)size, file) == size, path);
	must(fclose(file) == 0, path);
	free(bytes);
}

/* What the raw file in the folder holds. */
static int read_back(const char *folder, size_t limit_bytes, struct content *out, char *why)
{
	static const struct setup raw = { .format = "raw", .file = "out" };
	static uint8_t buf[MAX_SECTORS * SECTOR + 1];
	struct memhost host;
	struct img_error err;
	struct img *img;
	char path[128];
	FILE *file;
	size_t nr;
	int ret;

	snprintf(path, sizeof(path), "%s/out", folder);
	file = fopen(path, "rb");
	must(file != NULL, path);
	nr = fread(buf, 1, limit_bytes < sizeof(buf) ? limit_bytes : sizeof(buf), file);
	fclose(file);
	memhost_init(&host);
	host.file[0].content = mem_content_new();
	must(host.file[0].content != NULL && mem_content_write(host.file[0].content, buf, nr, 0) == 0, "memory");
	snprintf(host.file[0].name, sizeof(host.file[0].name), "out");
	ret = open_image(&host, &raw, 0, &img, &err);
	must(ret == 0, err.msg);
	memset(out, 0, sizeof(*out));
	ret = observe_disk(img, out, why, WHY_BYTES);
	img_close(img, NULL);
	memhost_destroy(&host);
	return ret;
}

static bool same(const struct content *ours, const struct content *theirs)
{
	for (uint32_t s = 0; s < MAX_SECTORS; s++) {
		if ((s < ours->sectors ? ours->id[s] : 0) != (s < theirs->sectors ? theirs->id[s] : 0) &&
		    s < theirs->sectors)
			return false;
	}
	return true;
}

/*
 * qemu-img converts a snapshot to the size of the head: behind the snapshot's own end that shows its machine state,
 * which is none of the disk's content.
 */
static int judge_content(const char *folder, const struct setup *s, const char *snap, const struct content *ours,
			 char *why)
{
	char command[160], option[64] = "";
	struct content *theirs = calloc(1, sizeof(*theirs));
	int ret = -1;

	must(theirs != NULL, "memory");
	if (snap != NULL)
		snprintf(option, sizeof(option), "-l snapshot.name=%s", snap);
	snprintf(command, sizeof(command), "qemu-img convert -f %s -O raw %s %s out", s->format, option, s->file);
	if (shell(folder, command) != 0)
		snprintf(why, WHY_BYTES, "%s fails", command);
	else if (read_back(folder, snap != NULL ? ours->sectors * 512u : SIZE_MAX, theirs, why) == 0)
		ret = same(ours, theirs) ? 0 : -1;
	if (ret != 0 && why[0] == '\0')
		snprintf(why, WHY_BYTES, "qemu-img reads other content than we%s%s", snap ? " of snapshot " : "",
			 snap ? snap : "");
	free(theirs);
	return ret;
}

static int judge_files(const char *folder, const struct setup *s, const struct observed *seen, char *why)
{
	char command[64];
	int ret;

	snprintf(command, sizeof(command), "qemu-img check -f %s %s", s->format, s->file);
	ret = shell(folder, command);
	if (ret != 0 && ret != LEAKS_ONLY) {
		snprintf(why, WHY_BYTES, "qemu-img check ends with %d", ret);
		return -1;
	}
	ret = judge_content(folder, s, NULL, &seen->head, why);
	for (unsigned i = 0; i < seen->nr_snaps && ret == 0; i++)
		ret = judge_content(folder, s, seen->snap[i].name, &seen->snap[i].content, why);
	return ret;
}

int foreign_judge(struct memhost *disk, const struct setup *s, const struct observed *seen, char *why)
{
	char folder[64], command[96];
	struct stat sb;
	int ret;

	snprintf(folder, sizeof(folder), "%s/crash.XXXXXX", stat("/dev/shm", &sb) == 0 ? "/dev/shm" : "/var/tmp");
	must(mkdtemp(folder) != NULL, folder);
	for (unsigned i = 0; i < MEMHOST_FILES; i++) {
		const struct memhost_file *f = &disk->file[i];

		if (f->content != NULL && f->name[0] != '\0' && !memhost_is_temp(f))
			write_file(f->content, folder, f->name);
	}
	why[0] = '\0';
	ret = judge_files(folder, s, seen, why);
	if (ret != 0)
		snprintf(why + strlen(why), WHY_BYTES - strlen(why), " (files kept in %s)", folder);
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	if (ret == 0)
		must(system(command) == 0, folder);
	return ret;
}
