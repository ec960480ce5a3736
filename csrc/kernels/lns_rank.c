#include "lns_rank.h"

#include <string.h>

#include "lns_port.h"
#include "lns_tile.h"
#include "lns_type.h"

/* What of an entry of a tile is its value: in float32 the upper half, in float64 all of it. */
static const uint64_t value_bits_f32 = (uint64_t)UINT32_MAX << 32, value_bits_f64 = UINT64_MAX;

/* Of the lanes of a tile: how many positive entries were met so far; that number, and that of all entries, at the last
 * threshold; and what the sums for both scores came to there. */
typedef struct {
    double hits[LNS_LANES], hits_before[LNS_LANES], seen_before[LNS_LANES], area[LNS_LANES], sum[LNS_LANES];
} curves_t;

/* The highest bit as a number, without conditions, of which GCC makes scalar code. */
LNS_INLINE double top_bit(uint64_t x)
{
    uint64_t bits = (0 - (x >> 63)) & 0x3FF0000000000000;     /* that of 1.0, or none */
    double number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

#define TYPE f32
#include "lns_rank.inc"
#define TYPE f64
#include "lns_rank.inc"
