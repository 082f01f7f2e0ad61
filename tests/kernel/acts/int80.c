/*
 * int80 NUMBER ARGUMENT... [-- NUMBER ARGUMENT...]...: system calls as a 32-bit process makes them.
 * Prints each result, newline.
 * An argument is a number, s:TEXT for the address of a text, or w:N,N,... for that of 32-bit words,
 * of which @ is an address where memory can be read.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOW_BYTES 65536

static char *low, *next;

static uint32_t text_at(const char *text)
{
	char *at = next;

	strcpy(at, text);
	next += (strlen(text) + 16) & ~7UL;
	return (uint32_t)(uintptr_t)at;
}

static uint32_t words_at(char *list)
{
	uint32_t *at = (uint32_t *)next;
	int count = 0;

	for (char *word = strtok(list, ","); word; word = strtok(NULL, ","))
		at[count++] = *word == '@' ? (uint32_t)(uintptr_t)low : strtoul(word, NULL, 0);
	next = (char *)(at + count + 1);
	return (uint32_t)(uintptr_t)at;
}

static uint32_t value(char *argument)
{
	if (strncmp(argument, "s:", 2) == 0)
		return text_at(argument + 2);
	if (strncmp(argument, "w:", 2) == 0)
		return words_at(argument + 2);
	return strtoul(argument, NULL, 0);
}

static int call(const uint32_t *v)
{
	register uint64_t sixth __asm__("r12") = v[6];
	int result;

	/* The sixth argument goes where the frame pointer is, which the compiler does not give away. */
	__asm__ volatile("xchg %%rbp, %1\n\tint $0x80\n\txchg %%rbp, %1"
			 : "=a"(result), "+r"(sixth)
			 : "a"(v[0]), "b"(v[1]), "c"(v[2]), "d"(v[3]), "S"(v[4]), "D"(v[5])
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

int main(int argc, char **argv)
{
	uint32_t values[7];
	int count, i = 1;

	low = mmap(NULL, LOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (low == MAP_FAILED)
		return 99;
	next = low + 8;
	while (i < argc) {
		memset(values, 0, sizeof(values));
		for (count = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
			if (count < 7)
				values[count++] = value(argv[i]);
		i++;
		printf("%d\n", call(values));
	}
	return 0;
}
