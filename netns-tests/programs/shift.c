/*
 * A clock that is wrong: preloaded into a program, it adds CLOCK_SHIFT seconds to the time of day
 * and leaves the clocks that count time passed alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = syscall(SYS_clock_gettime, clock, time);
	const char *shift = getenv("CLOCK_SHIFT");

	if (result == 0 && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		time->tv_sec += atol(shift);
	return result;
}
