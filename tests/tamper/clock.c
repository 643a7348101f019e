// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * LD_PRELOAD: the time of day as if it had been set, by as many seconds as stand in
 * the file that TEST_CLOCK_SHIFT names. Other clocks are as they are.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	const char *path = getenv("TEST_CLOCK_SHIFT");
	int result = syscall(SYS_clock_gettime, clock, now);
	long shift = 0;
	FILE *file;

	if (clock != CLOCK_REALTIME || !path || !(file = fopen(path, "r")))
		return result;
	if (fscanf(file, "%ld", &shift) == 1)
		now->tv_sec += shift;
	fclose(file);
	return result;
}
