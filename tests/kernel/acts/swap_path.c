/*
 * swap_path PATH COUNT: opens PATH for writing again and again while a second thread changes its
 * last byte between 'a' and 'b' in memory. Prints for each open the byte of the file that it got,
 * which the files are known by: a's size is 0, b's is not.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile char *last;

static void *swaps(void *unused)
{
	for (;;)
		*last ^= 'a' ^ 'b';
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	struct stat got;
	int fd;

	if (argc != 3)
		return 99;
	last = argv[1] + strlen(argv[1]) - 1;
	if (pthread_create(&thread, NULL, swaps, NULL) != 0)
		return 98;
	for (int i = atoi(argv[2]); i > 0; i--) {
		fd = open(argv[1], O_WRONLY);
		if (fd < 0 || fstat(fd, &got) != 0)
			return 97;
		putchar(got.st_size ? 'b' : 'a');
		close(fd);
	}
	return 0;
}
