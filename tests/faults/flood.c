// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A flood of TCP connects to 127.0.0.1 at a given rate, and what became of them:
 *
 *   flood CGROUP PORT SECONDS RATE PROCESSES UIDS
 *
 * PROCESSES of it enter CGROUP ("-": stay) and make RATE connects a second between
 * them, each with a socket of its own. UIDS 0: as they are, a process is an
 * identity. Else each takes UIDS effective user IDs in turn, 20000 and up, no two
 * processes the same: PROCESSES * UIDS identities. Prints what connects.c prints.
 */
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FIRST_UID 20000
#define BATCH 32 /* connects between two looks at the clock */

struct tally {
	long long tried, passed, denied, other;
	int last;
};

static void connect_once(const struct sockaddr_in *to, struct tally *tally)
{
	const struct linger reset = { 1, 0 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	tally->tried++;
	if (!connect(fd, (const struct sockaddr *)to, sizeof(*to))) {
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		tally->passed++;
	} else if (errno == ECONNREFUSED) {
		tally->passed++;
	} else if (errno == EPERM) {
		tally->denied++;
	} else {
		tally->last = errno;
		tally->other++;
	}
	close(fd);
}

static void flood(const struct sockaddr_in *to, struct tally *tally, int uids,
		  int first, double seconds, double rate)
{
	long long began = now_ns(), due, now = began;
	struct timespec rest = { 0, 0 };
	int i;

	/* else the first change of the user would be the last */
	if (uids && prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP))
		die("securebits");
	while (now - began < seconds * 1e9) {
		for (i = 0; i < BATCH; i++) {
			/* the system call, not glibc's for all threads */
			if (uids &&
			    syscall(SYS_setresuid, -1,
				    first + (int)(tally->tried % uids), -1))
				die("setresuid");
			connect_once(to, tally);
		}
		now = now_ns();
		due = began + (long long)(tally->tried * 1e9 / rate);
		if (due > now) {
			rest.tv_nsec = due - now < 999999999 ? due - now :
							       999999999;
			nanosleep(&rest, 0);
			now = now_ns();
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct tally *tallies, sum = { 0 };
	int processes, uids, i, status, bad = 0;
	long long began;

	if (argc != 7) {
		fprintf(stderr,
			"flood CGROUP PORT SECONDS RATE PROCESSES UIDS\n");
		return 64;
	}
	if (strcmp(argv[1], "-"))
		enter(argv[1]);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	to.sin_port = htons(atoi(argv[2]));
	processes = atoi(argv[5]);
	uids = atoi(argv[6]);
	tallies = mmap(0, processes * sizeof(*tallies), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tallies == MAP_FAILED)
		die("mmap");
	began = now_ns();
	for (i = 0; i < processes; i++) {
		switch (fork()) {
		case -1:
			die("fork");
		case 0:
			flood(&to, &tallies[i], uids, FIRST_UID + i * uids,
			      atof(argv[3]), atof(argv[4]) / processes);
			_exit(0);
		}
	}
	while (wait(&status) > 0)
		bad |= status;
	for (i = 0; i < processes; i++) {
		sum.tried += tallies[i].tried;
		sum.passed += tallies[i].passed;
		sum.denied += tallies[i].denied;
		sum.other += tallies[i].other;
		sum.last = tallies[i].last ? tallies[i].last : sum.last;
	}
	printf("{\"tried\": %lld, \"passed\": %lld, \"denied\": %lld, "
	       "\"other\": %lld, \"errno\": %d, \"ns\": %lld, "
	       "\"first_denied_ns\": 0}\n",
	       sum.tried, sum.passed, sum.denied, sum.other, sum.last,
	       now_ns() - began);
	return bad ? 3 : 0;
}
