/* Tells by one byte that it runs, then lives until its standard input ends. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char byte;

	if (write(1, "r", 1) != 1)
		return 99;
	while (read(0, &byte, 1) > 0)
		;
	return argc == 3 && strcmp(argv[1], "code") == 0 ? atoi(argv[2]) : 0;
}
