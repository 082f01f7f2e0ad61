/* What the measurements put under load: workloads MODE COUNT CPU
 *
 *   exec           fork, execute a small static program (this file, mode `nothing`), wait for it
 *   spawn          the same by posix_spawn, which makes some 130 system calls for the child's signals
 *   open_read      open a file for reading, close it
 *   open_write     open a file for writing, close it
 *   create_unlink  make a file, close it, remove its name; every file has a name of its own
 *   connect        connect to a listener of the same process over loopback, accept, close both ends
 *   udp            a new socket, one datagram to the same process over loopback, receive it, close
 *   getppid        the cheapest system call that does something
 *   nothing        end at once
 *
 * Files are made in the current directory. Prints CPU seconds: of this process and of the
 * programs that it started.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
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

static void opened(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		die(path);
	close(fd);
}

static void open_again_and_again(int flags, long count)
{
	opened("file", O_WRONLY | O_CREAT);
	for (long i = 0; i < count; i++)
		opened("file", flags);
	unlink("file");
}

static void create_and_unlink(long count)
{
	char name[32];

	for (long i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "file-%ld", i);
		opened(name, O_WRONLY | O_CREAT | O_EXCL);
		if (unlink(name))
			die("unlink");
	}
}

static int bound_socket(int type, struct sockaddr_in *address)
{
	socklen_t size = sizeof(*address);
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)address, size) ||
	    getsockname(fd, (struct sockaddr *)address, &size))
		die("bind");
	return fd;
}

static void send_datagrams(long count)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int receiver = bound_socket(SOCK_DGRAM, &address);
	char byte = 0;

	for (long i = 0; i < count; i++) {
		int sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		if (sender < 0 ||
		    sendto(sender, &byte, 1, 0, (struct sockaddr *)&address, sizeof(address)) != 1)
			die("sendto");
		if (recv(receiver, &byte, 1, 0) != 1)
			die("recv");
		close(sender);
	}
}

static void make_connections(long count)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	/* A reset instead of TIME_WAIT: the ports would run out. */
	struct linger reset = {.l_onoff = 1, .l_linger = 0};
	int listener = bound_socket(SOCK_STREAM, &address);

	if (listen(listener, 16))
		die("listen");
	for (long i = 0; i < count; i++) {
		int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), server;

		if (client < 0 || connect(client, (struct sockaddr *)&address, sizeof(address)))
			die("connect");
		server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (server < 0)
			die("accept");
		setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(client);
		close(server);
	}
}

static void run(const char *self, const char *mode, long count)
{
	if (!strcmp(mode, "exec"))
		fork_and_execute(self, count);
	else if (!strcmp(mode, "spawn"))
		spawn(self, count);
	else if (!strcmp(mode, "connect"))
		make_connections(count);
	else if (!strcmp(mode, "udp"))
		send_datagrams(count);
	else if (!strcmp(mode, "getppid"))
		call(count);
	else if (!strcmp(mode, "create_unlink"))
		create_and_unlink(count);
	else if (!strcmp(mode, "open_read"))
		open_again_and_again(O_RDONLY, count);
	else if (!strcmp(mode, "open_write"))
		open_again_and_again(O_WRONLY, count);
	else
		fprintf(stderr, "no such mode: %s\n", mode), exit(2);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "nothing"))
		return 0;
	if (argc != 4) {
		fprintf(stderr, "usage: workloads MODE COUNT CPU\n");
		return 2;
	}

	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[3]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");

	double before = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN);

	run(argv[0], argv[1], atol(argv[2]));
	printf("%.6f\n", cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN) - before);
	return 0;
}
