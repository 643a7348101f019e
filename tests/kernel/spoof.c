// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * spoof FILE ADDRESS PORT [shared]: connect as another executable. FILE may be
 * fd:N, an open descriptor.
 *
 * In a user namespace of its own any process may replace what /proc/PID/exe and
 * mm->exe_file name, once nothing of its real executable is mapped any more:
 * prctl(2), PR_SET_MM_MAP. So this goes on from an anonymous page. With
 * `shared` it is a child with the same memory that enters the namespace and does
 * so: who connects never was in one. The exit status is 0 or the errno of the
 * connect(); 99 is for what failed before.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct job {
	unsigned long from, to;
	struct prctl_mm_map map;
	struct sockaddr_in peer;
	int sock, shared;
	volatile long failed;
};

static inline __attribute__((always_inline)) long call(long number, long a, long b,
						       long c, long d)
{
	register long fourth asm("r10") = d;
	register long fifth asm("r8") = 0;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
		     : "rcx", "r11", "memory");
	return result;
}

/* Runs from the anonymous page: no call, no data of the executable. */
static __attribute__((noinline)) void go_on(struct job *job)
{
	long child = 0, result;

	if (job->shared)
		child = call(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0);
	if (!child) {
		result = call(SYS_unshare, CLONE_NEWUSER, 0, 0, 0);
		if (!result)
			result = call(SYS_munmap, job->from, job->to - job->from, 0, 0);
		if (!result)
			result = call(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP,
				      (long)&job->map, sizeof(job->map));
		job->failed = result;
		if (job->shared)
			call(SYS_exit_group, 0, 0, 0, 0);
	}
	if (child < 0 || job->failed)
		call(SYS_exit_group, 99, 0, 0, 0);
	result = call(SYS_connect, job->sock, (long)&job->peer, sizeof(job->peer), 0);
	call(SYS_exit_group, -result, 0, 0, 0);
}

static __attribute__((noinline)) void go_on_ends(void)
{
	asm volatile("nop");
}

static void fail(const char *what)
{
	perror(what);
	exit(99);
}

/* The span that the executable is mapped in. */
static void find_mappings(struct job *job)
{
	char line[512], self[256] = "";
	unsigned long from, to;
	FILE *maps = fopen("/proc/self/maps", "r");

	if (!maps || readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		fail("/proc/self");
	while (fgets(line, sizeof(line), maps)) {
		if (!strstr(line, self) || sscanf(line, "%lx-%lx", &from, &to) != 2)
			continue;
		if (!job->from)
			job->from = from;
		job->to = to;
	}
	fclose(maps);
}

int main(int argc, char **argv)
{
	unsigned long low = 0x20000; /* any address the kernel lets a user have */
	struct job *job;
	char *page;
	int fd;

	if (argc < 4)
		return 99;
	page = mmap(0, 65536, PROT_READ | PROT_WRITE | PROT_EXEC,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		fail("mmap");
	memcpy(page, (void *)go_on, (char *)go_on_ends - (char *)go_on);
	job = (struct job *)(page + 32768);
	find_mappings(job);
	if (sscanf(argv[1], "fd:%d", &fd) != 1)
		fd = open(argv[1], O_RDONLY);
	job->map = (struct prctl_mm_map){
		low, low + 1, low, low + 1, low, low + 1, low, low, low + 1,
		low, low + 1, 0, 0, fd,
	};
	if (fd < 0)
		fail(argv[1]);
	job->peer.sin_family = AF_INET;
	job->peer.sin_port = htons(atoi(argv[3]));
	inet_pton(AF_INET, argv[2], &job->peer.sin_addr);
	job->shared = argc > 4;
	job->sock = socket(AF_INET, SOCK_STREAM, 0);
	((void (*)(struct job *))page)(job);
}
