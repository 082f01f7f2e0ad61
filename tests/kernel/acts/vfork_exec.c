/* vfork_exec PROGRAM [ARGUMENT...]: the child of a vfork executes; prints the child's pid, newline, and waits for it. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char line[16];
	int length, status;
	pid_t child;

	if (argc < 2)
		return 97;
	child = vfork();
	if (child == 0) {
		execv(argv[1], argv + 1);
		_exit(98);
	}
	length = snprintf(line, sizeof(line), "%d\n", child);
	if (child < 0 || write(1, line, length) != length)
		return 99;
	return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 96;
}
