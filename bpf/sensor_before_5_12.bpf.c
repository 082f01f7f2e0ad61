// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The same programs for kernels before 5.12. */
#define BEFORE_5_12
#include "sensor.bpf.c"
