/*
 * enclose user|pid PROGRAM [ARGUMENT...]: a child in a new user namespace, or in new mount and pid namespaces, executes.
 * Prints the child's pid, newline, and waits for it.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char line[16], byte;
	int length, status, gate[2];
	pid_t child;

	if (argc < 3 || pipe(gate) != 0)
		return 97;
	if (strcmp(argv[1], "pid") == 0 && unshare(CLONE_NEWNS | CLONE_NEWPID) != 0)
		return 99;
	child = fork();
	if (child == 0) {
		/* Its number stands on the pipe before anything that the program writes. */
		close(gate[1]);
		if (read(gate[0], &byte, 1) != 1)
			_exit(94);
		close(gate[0]);
		if (strcmp(argv[1], "user") == 0 && unshare(CLONE_NEWUSER) != 0)
			_exit(95);
		execv(argv[2], argv + 2);
		_exit(98);
	}
	length = snprintf(line, sizeof(line), "%d\n", child);
	if (child < 0 || write(1, line, length) != length || write(gate[1], "", 1) != 1)
		return 93;
	return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 96;
}
