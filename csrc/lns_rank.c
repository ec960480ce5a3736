#include "lns_rank.h"

#include <string.h>

#include "lns_port.h"
#include "lns_sort.h"

/* What of an entry of a tile is its value: in float32 the upper half, in float64 all of it. */
static const int64_t value_bits_f32 = -((int64_t)1 << 32), value_bits_f64 = -1;

enum { BLOCK = 32 };                                          /* lanes that are counted at once */

#define LNS_BODY "lns_rank_body.h"
#include "lns_both.h"
