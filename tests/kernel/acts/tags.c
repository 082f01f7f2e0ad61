/* tags STRUCT: writes a wire struct of zeros with its tags, as the eBPF programs begin one. */
#include <linux/types.h>
#include <string.h>
#include <unistd.h>

#include "wire/event.h"

#define SAY(name)                                                                                                      \
	if (strcmp(argv[1], #name) == 0) {                                                                             \
		struct wire_##name w;                                                                                  \
		memset(&w, 0, sizeof(w));                                                                              \
		wire_##name##_tags(&w);                                                                                \
		return write(1, &w, sizeof(w)) == (ssize_t)sizeof(w) ? 0 : 99;                                         \
	}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 97;
	TOCSIN_WIRE_STRUCTS(SAY)
	return 98;
}
