/*
 * threads exec PROGRAM [ARGUMENT...]: a thread that is not the leader executes.
 * threads group CODE: a thread that is not the leader ends the whole process.
 * threads last CODE THREAD_CODE: the leader's thread ends first, with CODE; the other one ends alone, later.
 * threads many COUNT: makes COUNT threads, waits for all.
 * Those with a second thread print its id, newline.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static char **arguments;

static void say_thread(void)
{
	char line[16];
	int length = snprintf(line, sizeof(line), "%ld\n", syscall(SYS_gettid));

	if (write(1, line, length) != length)
		_exit(99);
}

static int leader_is_zombie(void)
{
	char path[64], text[512], *end;
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	file = open(path, O_RDONLY);
	if (file < 0)
		return 0;
	length = read(file, text, sizeof(text) - 1);
	close(file);
	if (length <= 0)
		return 0;
	text[length] = 0;
	end = strrchr(text, ')');
	return end && end[2] == 'Z';
}

static void *executes(void *unused)
{
	say_thread();
	execv(arguments[2], arguments + 2);
	_exit(98);
	return unused;
}

static void *ends_group(void *unused)
{
	say_thread();
	syscall(SYS_exit_group, atoi(arguments[2]));
	return unused;
}

static void *ends_last(void *unused)
{
	prctl(PR_SET_NAME, "the-last");
	say_thread();
	while (!leader_is_zombie())
		usleep(1000);
	syscall(SYS_exit, atoi(arguments[3]));
	return unused;
}

static void *ends(void *unused)
{
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int count;

	arguments = argv;
	if (argc < 3)
		return 97;
	if (strcmp(argv[1], "many") == 0) {
		for (count = atoi(argv[2]); count > 0; count--)
			if (pthread_create(&thread, NULL, ends, NULL) != 0 || pthread_join(thread, NULL) != 0)
				return 96;
		return 0;
	}
	if (strcmp(argv[1], "exec") == 0 && pthread_create(&thread, NULL, executes, NULL) == 0)
		pause();
	if (strcmp(argv[1], "group") == 0 && pthread_create(&thread, NULL, ends_group, NULL) == 0)
		pause();
	if (strcmp(argv[1], "last") == 0 && pthread_create(&thread, NULL, ends_last, NULL) == 0)
		syscall(SYS_exit, atoi(argv[2]));
	return 95;
}
