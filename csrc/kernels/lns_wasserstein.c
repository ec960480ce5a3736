#include "lns_wasserstein.h"

#include <math.h>
#include <string.h>

#include "lns_port.h"
#include "lns_tile.h"
#include "lns_type.h"

enum { BLOCK = 16 };                                          /* lanes whose sums fit into vector registers */

/* |difference|^p, and its derivative in *slope. p = 1 and 2 are the ones that matter, and pow is slow. */
static inline double power_cost(double difference, double p, double *slope)
{
    if (p == 2) {
        *slope = 2 * difference;
        return difference * difference;
    }
    double size = fabs(difference), sign = (difference > 0) - (difference < 0);
    if (p == 1) {
        *slope = sign;
        return size;
    }
    double lower = pow(size, p - 1);
    *slope = p * sign * lower;
    return lower * size;
}

#define TYPE f32
#include "lns_wasserstein.inc"
#define TYPE f64
#include "lns_wasserstein.inc"
