/* What the section `overhead` puts under load: workloads MODE COUNT CPU
 *
 *   exec     fork, execute a small static program (this file, mode `nothing`), wait for it
 *   spawn    the same by posix_spawn, which makes some 130 system calls for the child's signals
 *   connect  connect to a listener of the same process over loopback, accept, close both ends
 *   syscall  getppid: the cheapest system call that does something
 *   nothing  end at once
 *
 * Prints one line: wall seconds, CPU seconds of this process and of the programs that it started.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double wall_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_seconds(int whose)
{
	struct rusage used;

	getrusage(whose, &used);
	return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
	       (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static char *child_argv[] = {"workloads", "nothing", "--with=an/argument/of/some/length",
			     "--and=another", NULL};
static char *child_envp[] = {"PATH=/usr/bin:/bin", "LANG=C", NULL};

static void wait_for(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child || status)
		die("child");
}

static void fork_and_execute(const char *self, long count)
{
	for (long i = 0; i < count; i++) {
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (!child) {
			execve(self, child_argv, child_envp);
			_exit(1);
		}
		wait_for(child);
	}
}

static void spawn(const char *self, long count)
{
	for (long i = 0; i < count; i++) {
		pid_t child;

		errno = posix_spawn(&child, self, NULL, NULL, child_argv, child_envp);
		if (errno)
			die(self);
		wait_for(child);
	}
}

static void call(long count)
{
	for (long i = 0; i < count; i++)
		syscall(SYS_getppid);
}

static void make_connections(long count)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	/* A reset instead of TIME_WAIT: the ports would run out. */
	struct linger reset = {.l_onoff = 1, .l_linger = 0};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) ||
	    listen(listener, 16) || getsockname(listener, (struct sockaddr *)&address, &size))
		die("listen");
	for (long i = 0; i < count; i++) {
		int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), server;

		if (client < 0 || connect(client, (struct sockaddr *)&address, size))
			die("connect");
		server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (server < 0)
			die("accept");
		setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(client);
		close(server);
	}
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "nothing"))
		return 0;
	if (argc != 4) {
		fprintf(stderr, "usage: workloads exec|spawn|connect|syscall COUNT CPU\n");
		return 2;
	}

	cpu_set_t cpus;
	long count = atol(argv[2]);

	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[3]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");

	double wall = wall_seconds(), cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN);

	if (!strcmp(argv[1], "exec"))
		fork_and_execute(argv[0], count);
	else if (!strcmp(argv[1], "spawn"))
		spawn(argv[0], count);
	else if (!strcmp(argv[1], "syscall"))
		call(count);
	else if (!strcmp(argv[1], "connect"))
		make_connections(count);
	else
		return 2;
	printf("%.6f %.6f\n", wall_seconds() - wall,
	       cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN) - cpu);
	return 0;
}
