/* Prints the id of its second thread, newline, and one byte; lives until its standard input ends. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *stands_still(void *unused)
{
	char line[16];
	int length = snprintf(line, sizeof(line), "%ld\nr", syscall(SYS_gettid));

	if (write(1, line, length) != length)
		_exit(99);
	pause();
	return unused;
}

int main(void)
{
	pthread_t thread;
	char byte;

	if (pthread_create(&thread, NULL, stands_still, NULL) != 0)
		return 98;
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
