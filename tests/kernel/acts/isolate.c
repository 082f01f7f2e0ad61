/* isolate PROGRAM [ARGUMENT...]: new mount, UTS, IPC, network and cgroup namespaces, then executes. */
#define _GNU_SOURCE
#include <sched.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 2)
		return 97;
	if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP) != 0)
		return 99;
	execv(argv[1], argv + 1);
	return 98;
}
