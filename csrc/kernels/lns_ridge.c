#include "lns_ridge.h"

#include "lns_port.h"

enum { BLOCK = 4096 };                                        /* entries that a thread takes at a time */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

size_t lns_ridge_blocks(size_t count) { return (count + BLOCK - 1) / BLOCK; }

static void add_up(double *sums, const double *parts, size_t width, size_t count)
{
    for (size_t i = 0; i < width; i++) {
        sums[i] = 0;
        for (size_t k = 0; k < count; k++) sums[i] += parts[k * width + i];
    }
}

LNS_CLONES static double pull(float *restrict by_weight, float *restrict by_bias, const float *restrict weight,
                              const float *restrict bias, const double *restrict stretch, const double *restrict cross,
                              const double *restrict shift, double strength, size_t width)
{
    double sum = 0;
    LNS_SIMD_SUM(sum)
    for (size_t j = 0; j < width; j++) {
        double u = (double)weight[j] - 1, b = (double)bias[j];
        double along = stretch[j] * u + cross[j] * b, aside = cross[j] * u + shift[j] * b;
        by_weight[j] = (float)(2 * strength * along);
        by_bias[j] = (float)(2 * strength * aside);
        sum += u * along + b * aside;
    }
    return sum;
}

double lns_ridge(float *gradient, const float *x, const double *stretch, const double *cross, const double *shift,
                 double strength, size_t units, double *parts, int threads)
{
    double sum;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)lns_ridge_blocks(units); k++) {
        size_t at = (size_t)k * BLOCK;
        parts[k] = pull(gradient + at, gradient + units + at, x + at, x + units + at, stretch + at, cross + at, shift + at,
                        strength, smaller(BLOCK, units - at));
    }
    add_up(&sum, parts, 1, lns_ridge_blocks(units));
    return strength * sum;
}

LNS_CLONES static double dot(const double *restrict a, const double *restrict b, size_t width)
{
    double sum = 0;
    LNS_SIMD_SUM(sum)
    for (size_t j = 0; j < width; j++) sum += a[j] * b[j];
    return sum;
}

double lns_dot(const double *a, const double *b, size_t count, double *parts, int threads)
{
    double sum;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)lns_ridge_blocks(count); k++) {
        size_t at = (size_t)k * BLOCK;
        parts[k] = dot(a + at, b + at, smaller(BLOCK, count - at));
    }
    add_up(&sum, parts, 1, lns_ridge_blocks(count));
    return sum;
}

LNS_CLONES static void compare(double *restrict sums, const float *restrict to, const float *restrict from,
                               const float *restrict after, const float *restrict before, size_t width)
{
    double square = 0, both = 0, other = 0;
    LNS_SIMD_SUM(square, both, other)
    for (size_t j = 0; j < width; j++) {
        float moved = to[j] - from[j], changed = after[j] - before[j];
        double move = (double)moved, change = (double)changed;
        square += move * move;
        both += move * change;
        other += change * change;
    }
    sums[0] = square;
    sums[1] = both;
    sums[2] = other;
}

void lns_move_sums(double *sums, const float *to, const float *from, const float *after, const float *before,
                   size_t count, double *parts, int threads)
{
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)lns_ridge_blocks(count); k++) {
        size_t at = (size_t)k * BLOCK;
        compare(parts + 3 * k, to + at, from + at, after + at, before + at, smaller(BLOCK, count - at));
    }
    add_up(sums, parts, 3, lns_ridge_blocks(count));
}

LNS_CLONES static void scale(float *restrict slopes, const double *restrict factor, size_t width)
{
    for (size_t j = 0; j < width; j++) slopes[j] *= (float)factor[j];
}

void lns_scale_columns(float *slopes, const double *factor, size_t n, size_t units, int threads)
{
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)lns_ridge_blocks(units); k++) {
        size_t at = (size_t)k * BLOCK, width = smaller(BLOCK, units - at);
        for (size_t i = 0; i < n; i++) scale(slopes + i * units + at, factor + at, width);
    }
}

LNS_CLONES static float largest(const float *x, size_t width)
{
    enum { LANES = 16 };                                      /* a maximum in one variable would be no vector's work */
    float most[LANES] = {0}, all = 0;
    size_t j = 0;
    for (; j + LANES <= width; j += LANES)
        for (size_t l = 0; l < LANES; l++) {
            float size = x[j + l] < 0 ? -x[j + l] : x[j + l];
            most[l] = size > most[l] ? size : most[l];
        }
    for (; j < width; j++) {
        float size = x[j] < 0 ? -x[j] : x[j];
        all = size > all ? size : all;
    }
    for (size_t l = 0; l < LANES; l++) all = most[l] > all ? most[l] : all;
    return all;
}

float lns_largest(const float *x, size_t count, double *parts, int threads)
{
    double all = 0;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)lns_ridge_blocks(count); k++) {
        size_t at = (size_t)k * BLOCK;
        parts[k] = (double)largest(x + at, smaller(BLOCK, count - at));
    }
    for (size_t i = 0; i < lns_ridge_blocks(count); i++) all = parts[i] > all ? parts[i] : all;
    return (float)all;
}
