#include "lns_sort.h"

#include <math.h>
#include <string.h>

#include "lns_port.h"

/* The same text for both precisions: REAL is the type, NAME(f) its symbol. */
#define REAL float
#define NAME(f) f##_f32
#include "lns_sort_body.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(f) f##_f64
#include "lns_sort_body.h"
