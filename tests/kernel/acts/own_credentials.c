/*
 * own_credentials [PROGRAM [ARGUMENT...]]: a second thread takes user 1234 for itself alone and makes a third,
 * which has that one's; the leader stays what it is.
 * Prints the ids of second and third thread, each with a newline, then waits until its standard input gives a
 * byte. Then the second executes PROGRAM; without one, the third thread takes user 1234 to be 4321 in vain, the
 * leader takes group 2345, and all end one after the other.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static char **program;
static pthread_barrier_t ready, go;

static void *third(void *unused)
{
	printf("%ld\n", syscall(SYS_gettid));
	fflush(stdout);
	pthread_barrier_wait(&ready);
	pthread_barrier_wait(&go);
	if (*program)
		pause();
	if (syscall(SYS_setresuid, 4321, 4321, 4321) == 0)
		_exit(96);
	return unused;
}

static void *second(void *unused)
{
	pthread_t thread;

	if (syscall(SYS_setresuid, 1234, 1234, 1234) != 0)
		_exit(98);
	printf("%ld\n", syscall(SYS_gettid));
	if (pthread_create(&thread, NULL, third, NULL) != 0)
		_exit(97);
	pthread_barrier_wait(&go);
	if (*program) {
		execv(*program, program);
		_exit(95);
	}
	pthread_join(thread, NULL);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char byte;

	program = argv + 1;
	pthread_barrier_init(&ready, NULL, 2);
	pthread_barrier_init(&go, NULL, 3);
	if (argc < 1 || pthread_create(&thread, NULL, second, NULL) != 0)
		return 99;
	pthread_barrier_wait(&ready);
	if (read(0, &byte, 1) != 1)
		return 94;
	pthread_barrier_wait(&go);
	pthread_join(thread, NULL);
	return syscall(SYS_setresgid, 2345, 2345, 2345) == 0 ? 0 : 93;
}
