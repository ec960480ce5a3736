#include "lns_product.h"

#include <string.h>

#include "lns_port.h"

/* A thread takes BLOCK rows at a time; of them, ROWS by WIDTH sums stay in vector registers. */
enum { BLOCK = 64, ROWS = 4, WIDTH = 16 };

#define LNS_BODY "lns_product.inc"
#include "lns_both.h"
