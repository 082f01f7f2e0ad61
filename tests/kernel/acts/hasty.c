/* hasty PORT: connects to 127.0.0.1:PORT and ends at once, without closing. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct sockaddr_in peer = { .sin_family = AF_INET };
	int file = socket(AF_INET, SOCK_STREAM, 0);

	if (argc != 2)
		return 97;
	peer.sin_port = htons(atoi(argv[1]));
	peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return connect(file, (struct sockaddr *)&peer, sizeof(peer)) == 0 ? 0 : 99;
}
