#include "lns_prox.h"

#include <math.h>

double lns_penalty_f32(const float *v, float center, const int64_t *offsets, size_t groups, double l1, double group,
                       double ridge)
{
    double total = 0;
    for (size_t k = 0; k < groups; k++) {
        double absolute = 0, square = 0;
        for (int64_t j = offsets[k]; j < offsets[k + 1]; j++) {
            double u = (double)v[j] - (double)center;
            absolute += fabs(u);
            square += u * u;
        }
        total += l1 * absolute + group * sqrt((double)(offsets[k + 1] - offsets[k]) * square) + ridge * square;
    }
    return total;
}

static inline double soft_threshold(double u, double threshold)
{
    double rest = fabs(u) - threshold;
    return rest > 0 ? copysign(rest, u) : 0;
}

void lns_prox_f32(float *out, const float *v, float center, const int64_t *offsets, size_t groups, double l1,
                  double group, double ridge, double step)
{
    for (size_t k = 0; k < groups; k++) {
        double square = 0, factor = 1 / (1 + 2 * step * ridge);
        if (group > 0) {
            for (int64_t j = offsets[k]; j < offsets[k + 1]; j++) {
                double u = soft_threshold((double)v[j] - (double)center, step * l1);
                square += u * u;
            }
            double shrink = step * group * sqrt((double)(offsets[k + 1] - offsets[k])), norm = sqrt(square);
            factor *= norm > shrink ? 1 - shrink / norm : 0;
        }
        for (int64_t j = offsets[k]; j < offsets[k + 1]; j++)
            out[j] = (float)((double)center
                             + factor * soft_threshold((double)v[j] - (double)center, step * l1));
    }
}
