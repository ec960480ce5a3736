/* The default recipe's model piece by piece: what the kernels that make it, step on it and minimise it have in common. */
#ifndef LNS_PIECE_H
#define LNS_PIECE_H
#include <string.h>

#include "lns_port.h"
#include "lns_quadratic.h"

/* ---- over one piece: vectors are double[2 * LNS_PIECE], weights in the first half and biases in the second ---- */

typedef struct {
    size_t at, count;
} piece;

static piece piece_of(const lns_quadratic *q, ptrdiff_t k)
{
    return (piece){(size_t)q->starts[k], (size_t)(q->starts[k + 1] - q->starts[k])};
}

/* out += the rows, each times its factor. Four at a time, so that out is not the bottleneck. */
LNS_CLONES static void combine(double *restrict out, const float *restrict rows, const double *restrict factors,
                               size_t stride, size_t count, size_t width)
{
    size_t r = 0;
    for (; r + 4 <= count; r += 4) {
        const float *a = rows + r * stride, *b = a + stride, *c = b + stride, *d = c + stride;
        double by_a = factors[r], by_b = factors[r + 1], by_c = factors[r + 2], by_d = factors[r + 3];
        for (size_t j = 0; j < width; j++)
            out[j] += (by_a * (double)a[j] + by_b * (double)b[j]) + (by_c * (double)c[j] + by_d * (double)d[j]);
    }
    for (; r < count; r++)
        for (size_t j = 0; j < width; j++) out[j] += factors[r] * (double)rows[r * stride + j];
}

/* sums += the rows' dot products with p. */
LNS_CLONES static void dots(double *restrict sums, const float *restrict rows, const double *restrict p, size_t stride,
                            size_t count, size_t width)
{
    size_t r = 0;
    for (; r + 4 <= count; r += 4) {
        const float *a = rows + r * stride, *b = a + stride, *c = b + stride, *d = c + stride;
        double with_a = 0, with_b = 0, with_c = 0, with_d = 0;
        LNS_SIMD_SUM(with_a, with_b, with_c, with_d)
        for (size_t j = 0; j < width; j++) {
            with_a += (double)a[j] * p[j];
            with_b += (double)b[j] * p[j];
            with_c += (double)c[j] * p[j];
            with_d += (double)d[j] * p[j];
        }
        sums[r] += with_a;
        sums[r + 1] += with_b;
        sums[r + 2] += with_c;
        sums[r + 3] += with_d;
    }
    for (; r < count; r++) {
        double with = 0;
        LNS_SIMD_SUM(with)
        for (size_t j = 0; j < width; j++) with += (double)rows[r * stride + j] * p[j];
        sums[r] += with;
    }
}

static void combine_both(double *out, const float *rows, const double *factors, const lns_quadratic *q, piece at)
{
    combine(out, rows + at.at, factors, 2 * q->units, q->rows, at.count);
    combine(out + LNS_PIECE, rows + q->units + at.at, factors, 2 * q->units, q->rows, at.count);
}

/* sums[first...end - 1] += those with these rows. */
static void dots_both(double *sums, const float *rows, const double *p, size_t first, size_t end, const lns_quadratic *q,
                      piece at)
{
    const float *weights = rows + first * 2 * q->units + at.at;
    dots(sums + first, weights, p, 2 * q->units, end - first, at.count);
    dots(sums + first, weights + q->units, p + LNS_PIECE, 2 * q->units, end - first, at.count);
}

LNS_CLONES static void times_blocks(double *restrict out, const double *restrict blocks, const double *restrict p,
                                    size_t units, size_t width)
{
    const double *both = blocks + units, *bias = blocks + 2 * units;
    for (size_t j = 0; j < width; j++) {
        double w = p[j], b = p[LNS_PIECE + j];
        out[j] = blocks[j] * w + both[j] * b;
        out[LNS_PIECE + j] = both[j] * w + bias[j] * b;
    }
}

LNS_CLONES static void difference(double *restrict out, const float *restrict a, const float *restrict b, size_t units,
                                  size_t width)
{
    for (size_t j = 0; j < width; j++) {
        out[j] = (double)a[j] - (double)b[j];
        out[LNS_PIECE + j] = (double)a[units + j] - (double)b[units + j];
    }
}

LNS_CLONES static double dot(const double *restrict a, const double *restrict b, size_t width)
{
    double sum = 0;
    LNS_SIMD_SUM(sum)
    for (size_t j = 0; j < width; j++) sum += a[j] * b[j];
    return sum;
}

static double dot_both(const double *a, const double *b, size_t width)
{
    return dot(a, b, width) + dot(a + LNS_PIECE, b + LNS_PIECE, width);
}

/* out = B p, where factors are M U'p, NULL for zeros. */
static void bend(double *out, const double *p, const double *factors, const lns_quadratic *q, piece at)
{
    double stretched[2 * LNS_PIECE];
    for (size_t j = 0; j < at.count; j++) {
        stretched[j] = (1 + q->damping) * p[j];
        stretched[LNS_PIECE + j] = (1 + q->damping) * p[LNS_PIECE + j];
    }
    if (factors) combine_both(stretched, q->moves, factors, q, at);
    times_blocks(out, q->blocks + at.at, stretched, q->units, at.count);
    if (factors) combine_both(out, q->changes, factors + q->rows, q, at);
}

/* sums = U'p. */
static void products(double *sums, const double *p, const lns_quadratic *q, piece at)
{
    double pushed[2 * LNS_PIECE];
    memset(sums, 0, 2 * q->rows * sizeof *sums);
    if (!q->rows) return;
    times_blocks(pushed, q->blocks + at.at, p, q->units, at.count);
    dots_both(sums, q->moves, pushed, 0, q->rows, q, at);
    dots_both(sums + q->rows, q->changes, p, 0, q->rows, q, at);
}

/* ---- over all pieces ---- */

static void add_up(double *sums, const double *parts, size_t width, size_t count)
{
    memset(sums, 0, width * sizeof *sums);
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < width; i++) sums[i] += parts[k * width + i];
}

/* out = M p, and whether that is not all 0. */
static int corrected(double *out, const lns_quadratic *q, const double *p)
{
    size_t width = 2 * q->rows;
    int any = 0;
    for (size_t i = 0; i < width; i++) {
        out[i] = dot(q->correction + i * width, p, width);
        any |= out[i] != 0;
    }
    return any;
}

#endif
