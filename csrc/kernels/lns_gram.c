#include "lns_gram.h"

#include <math.h>

#include "lns_block.h"
#include "lns_port.h"

enum { CHUNK = 256, ROUND = 4 };

size_t lns_gram_width(size_t rows) { return (2 * rows + 2 + ROUND - 1) / ROUND * ROUND; }

size_t lns_gram_room(size_t rows) { return lns_gram_width(rows) * 2 * CHUNK; }

/* (4, CHUNK) each: what becomes of a move's and of a change's weight and bias in the two entries of W. */
LNS_CLONES static void root_of_slopes(double *restrict by_move, double *restrict by_change, const double *restrict slopes,
                                      const double *restrict blocks, size_t units, size_t width)
{
    const double *both = blocks + units, *bias = blocks + 2 * units;
    for (size_t j = 0; j < width; j++) {
        double square = slopes[j], root = sqrt(square), across = square > 0 ? slopes[LNS_PIECE + j] / root : 0;
        double rest = slopes[2 * LNS_PIECE + j] - across * across, last = sqrt(rest > 0 ? rest : 0);
        by_change[j] = root;
        by_change[CHUNK + j] = across;
        by_change[2 * CHUNK + j] = 0;
        by_change[3 * CHUNK + j] = last;
        by_move[j] = root * blocks[j] + across * both[j];
        by_move[CHUNK + j] = root * both[j] + across * bias[j];
        by_move[2 * CHUNK + j] = last * both[j];
        by_move[3 * CHUNK + j] = last * bias[j];
    }
}

LNS_CLONES static void take_root(float *restrict out, const double *restrict by, const float *restrict row, size_t units,
                                 size_t width)
{
    for (size_t j = 0; j < width; j++) {
        double w = (double)row[j], b = (double)row[units + j];
        out[j] = (float)(by[j] * w + by[CHUNK + j] * b);
        out[CHUNK + j] = (float)(by[2 * CHUNK + j] * w + by[3 * CHUNK + j] * b);
    }
}

/* gram += W W' on and above the diagonal (and a little below), W: (count, 2 * CHUNK), count a multiple of ROUND. In
 * float: the matrix gives a direction, and what it leads to is measured in double. */
LNS_CLONES static void square_up(double *restrict gram, const float *restrict tall, size_t count, size_t length)
{
    for (size_t j = 0; j < count; j += 4) {
        const float *a = tall + j * 2 * CHUNK, *b = a + 2 * CHUNK, *c = b + 2 * CHUNK, *d = c + 2 * CHUNK;
        for (size_t i = 0; i < j + 4; i += 2) {
            const float *x = tall + i * 2 * CHUNK, *y = x + 2 * CHUNK;
            float xa = 0, xb = 0, xc = 0, xd = 0, ya = 0, yb = 0, yc = 0, yd = 0;
            LNS_SIMD_SUM(xa, xb, xc, xd, ya, yb, yc, yd)
            for (size_t l = 0; l < length; l++) {
                xa += x[l] * a[l];
                xb += x[l] * b[l];
                xc += x[l] * c[l];
                xd += x[l] * d[l];
                ya += y[l] * a[l];
                yb += y[l] * b[l];
                yc += y[l] * c[l];
                yd += y[l] * d[l];
            }
            double *above = gram + i * count + j, *below = above + count;
            above[0] += (double)xa;
            above[1] += (double)xb;
            above[2] += (double)xc;
            above[3] += (double)xd;
            below[0] += (double)ya;
            below[1] += (double)yb;
            below[2] += (double)yc;
            below[3] += (double)yd;
        }
    }
}

static int is_any(const double *p, size_t width)
{
    for (size_t j = 0; j < width; j++)
        if (p[j] != 0) return 1;
    return 0;
}

void lns_gram_add(double *gram, float *tall, const double *u, const double *slopes, const lns_quadratic *q, size_t at,
                  size_t size)
{
    double by_move[4 * CHUNK], by_change[4 * CHUNK];
    size_t rows = q->rows, count = lns_gram_width(rows);
    for (size_t first = 0; first < size; first += CHUNK) {
        size_t width = lns_least(size - first, CHUNK), entry = at + first;
        int has_weights = is_any(slopes + first, width);
        if (!has_weights && !is_any(slopes + 2 * LNS_PIECE + first, width)) continue;
        root_of_slopes(by_move, by_change, slopes + first, q->blocks + entry, q->units, width);
        for (size_t k = 0; k < 2 * rows; k++) {
            const float *row = (k < rows ? q->moves + k * 2 * q->units : q->changes + (k - rows) * 2 * q->units) + entry;
            take_root(tall + k * 2 * CHUNK, k < rows ? by_move : by_change, row, q->units, width);
        }
        float *weights = tall + 4 * rows * CHUNK, *biases = weights + 2 * CHUNK;
        for (size_t j = 0; j < width; j++) {
            double w = u[first + j], b = u[LNS_PIECE + first + j];
            weights[j] = (float)(by_change[j] * w);
            weights[CHUNK + j] = 0;
            biases[j] = (float)(by_change[CHUNK + j] * b);
            biases[CHUNK + j] = (float)(by_change[3 * CHUNK + j] * b);
        }
        if (has_weights && width == CHUNK) square_up(gram, tall, count, 2 * CHUNK);
        else {
            if (has_weights) square_up(gram, tall, count, width);
            square_up(gram, tall + CHUNK, count, width);
        }
    }
}
