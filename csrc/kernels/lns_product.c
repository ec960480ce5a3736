#include "lns_product.h"

#include <string.h>

#include "lns_block.h"
#include "lns_port.h"
#include "lns_type.h"

/* A thread takes BLOCK rows at a time; of them, ROWS by WIDTH sums stay in vector registers. */
enum { BLOCK = 64, ROWS = 4, WIDTH = 16 };

#define TYPE f32
#include "lns_product.inc"
#define TYPE f64
#include "lns_product.inc"
