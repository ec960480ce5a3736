#include "lns_product.h"

#include <string.h>

#include "lns_port.h"

/* A thread takes BLOCK rows at a time; of them, ROWS by WIDTH sums stay in vector registers. */
enum { BLOCK = 64, ROWS = 4, WIDTH = 16 };

/* The same text for both precisions: REAL is the type, NAME(f) its symbol. */
#define REAL float
#define NAME(f) f##_f32
#include "lns_product_body.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(f) f##_f64
#include "lns_product_body.h"
