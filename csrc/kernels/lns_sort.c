#include "lns_sort.h"

#include <math.h>
#include <string.h>

#include "lns_port.h"
#include "lns_tile.h"
#include "lns_type.h"

#define TYPE f32
#include "lns_sort.inc"
#define TYPE f64
#include "lns_sort.inc"
