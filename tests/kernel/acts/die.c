/* die SIGNAL CORE: ends by a signal; CORE is the greatest size of a core file in bytes. */
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rlimit core;

	if (argc != 3)
		return 98;
	core.rlim_cur = core.rlim_max = (rlim_t)atol(argv[2]);
	if (setrlimit(RLIMIT_CORE, &core) != 0)
		return 99;
	kill(getpid(), atoi(argv[1]));
	pause();
	return 97;
}
