/* clone FLAGS: makes a process with these flags of clone, waits for it and says its pid. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long pid;

	if (argc != 2)
		return 97;
	pid = syscall(SYS_clone, strtoul(argv[1], NULL, 0) | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		_exit(0);
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		return 98;
	printf("%ld\n", pid);
	return 0;
}
