/*
 * narrow ROUTE PATH: socket calls as a 32-bit process makes them (int 0x80), by the calls' own
 * numbers (ROUTE direct) or through socketcall. Makes a raw socket; binds, listens, connects and
 * accepts over TCP; fails to connect over TCP; connects to the Unix socket PATH. Ends with 0, or
 * with the line that failed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { SOCKET, BIND, CONNECT, LISTEN, ACCEPT, GETSOCKNAME };

static const int direct_numbers[] = {359, 361, 362, 363, 364, 367};
static const int call_numbers[] = {1, 2, 3, 4, 18, 6};

/* Memory below 4 GiB. */
static struct low {
	unsigned int words[6];
	socklen_t length;
	struct sockaddr_in inet;
	struct sockaddr_un unix_name;
} *low;
static int through_socketcall;

static long call32(long number, long a, long b, long c, long d)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static long call(int what, long a, long b, long c, long d)
{
	if (!through_socketcall)
		return call32(direct_numbers[what], a, b, c, d);
	low->words[0] = a;
	low->words[1] = b;
	low->words[2] = c;
	low->words[3] = d;
	return call32(102, call_numbers[what], (long)low->words, 0, 0);
}

#define MUST(condition)                  \
	do {                             \
		if (!(condition))        \
			return __LINE__; \
	} while (0)

int main(int argc, char **argv)
{
	long listener, client, unix_socket;

	MUST(argc == 3);
	through_socketcall = !strcmp(argv[1], "socketcall");
	low = mmap(NULL, sizeof(*low), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	MUST(low != MAP_FAILED);
	MUST(call(SOCKET, AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP, 0) >= 0);

	listener = call(SOCKET, AF_INET, SOCK_STREAM, 0, 0);
	low->inet.sin_family = AF_INET;
	low->inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	low->length = sizeof(low->inet);
	MUST(!call(BIND, listener, (long)&low->inet, sizeof(low->inet), 0));
	MUST(!call(LISTEN, listener, 5, 0, 0));
	MUST(!call(GETSOCKNAME, listener, (long)&low->inet, (long)&low->length, 0));
	client = call(SOCKET, AF_INET, SOCK_STREAM, 0, 0);
	MUST(!call(CONNECT, client, (long)&low->inet, sizeof(low->inet), 0));
	MUST(call(ACCEPT, listener, 0, 0, 0) >= 0);

	low->inet.sin_addr.s_addr = htonl(INADDR_BROADCAST);
	low->inet.sin_port = htons(9);
	client = call(SOCKET, AF_INET, SOCK_STREAM, 0, 0);
	MUST(call(CONNECT, client, (long)&low->inet, sizeof(low->inet), 0) < 0);

	low->unix_name.sun_family = AF_UNIX;
	strncpy(low->unix_name.sun_path, argv[2], sizeof(low->unix_name.sun_path) - 1);
	unix_socket = call(SOCKET, AF_UNIX, SOCK_STREAM, 0, 0);
	MUST(!call(CONNECT, unix_socket, (long)&low->unix_name, sizeof(low->unix_name), 0));
	return 0;
}
