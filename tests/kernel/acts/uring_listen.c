/*
 * uring_listen FD BACKLOG: makes the bound TCP socket FD listen through io_uring, without the system
 * call. Ends with 0; 77 where the kernel has no io_uring or no such operation; else the errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* IORING_OP_LISTEN, of Linux 6.11. */
#define OP_LISTEN 57
#define ABSENT    77

static char *map(int ring, size_t size, off_t what)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);
}

int main(int argc, char **argv)
{
	struct io_uring_params setup = {0};
	struct io_uring_cqe *done;
	struct io_uring_sqe *ask;
	char *submitted, *completed;
	int ring;

	if (argc != 3)
		return 99;
	ring = syscall(SYS_io_uring_setup, 1, &setup);
	if (ring < 0)
		return ABSENT;
	submitted = map(ring, setup.sq_off.array + sizeof(unsigned), IORING_OFF_SQ_RING);
	completed = map(ring, setup.cq_off.cqes + 2 * sizeof(*done), IORING_OFF_CQ_RING);
	ask = (void *)map(ring, sizeof(*ask), IORING_OFF_SQES);
	if (submitted == MAP_FAILED || completed == MAP_FAILED || (void *)ask == MAP_FAILED)
		return 98;
	memset(ask, 0, sizeof(*ask));
	ask->opcode = OP_LISTEN;
	ask->fd = atoi(argv[1]);
	ask->len = atoi(argv[2]);
	*(unsigned *)(submitted + setup.sq_off.tail) = 1;
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return 97;
	done = (void *)(completed + setup.cq_off.cqes);
	return done->res == -EINVAL ? ABSENT : -done->res;
}
