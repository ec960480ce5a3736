#include "lns_transport.h"

#include <math.h>
#include <string.h>

#include "lns_port.h"
#include "lns_tile.h"
#include "lns_type.h"

/* Of one sample of a tile of columns. The mean is first + shift, which are kept apart so that differences from it are
 * right far from 0, too, and exactly 0 where a column is constant. Lanes past the width of the tile hold zeros. */
typedef struct {
    double first[LNS_LANES], shift[LNS_LANES];
    double squares[LNS_LANES];                                /* the sum of squared differences from the mean */
} moments_t;

enum { BLOCK = 32 };                                          /* columns whose sums fit into vector registers */

static inline double mean_of(const moments_t *of, size_t l) { return of->first[l] + of->shift[l]; }

#define TYPE f32
#include "lns_transport.inc"
#define TYPE f64
#include "lns_transport.inc"
