/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A statically linked program: ends with the status that it is told. */
#include <stdlib.h>

int main(int argc, char **argv)
{
	return argc > 1 ? atoi(argv[1]) : 0;
}
