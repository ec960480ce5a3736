#include "lns_quadratic.h"

#include <math.h>
#include <string.h>

#include "lns_piece.h"

enum { BUNDLE = 8 };                                          /* pieces that share a matrix of inner products */

static const double RAISED = 1.3;                             /* the units' own curvatures: later sites feel a map too */
static const double LEAST = 1e-3;                             /* of the mean weight's: a unit whose responses are all 0 */
static const double STIFFEST = 10;                            /* of a site, relative to its units' own curvatures */
static const double TOLERANCE = 3e-4;                         /* of inner steps, relative to the way from x */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

size_t lns_pieces(int64_t *starts, const int64_t *offsets, size_t sites)
{
    size_t pieces = 0;
    for (size_t s = 0; s < sites; s++)
        for (int64_t at = offsets[s]; at < offsets[s + 1]; at += LNS_PIECE) {
            if (starts) starts[pieces] = at;
            pieces++;
        }
    if (starts) starts[pieces] = offsets[sites];
    return pieces;
}

/* ---- the blocks ---- */

LNS_CLONES static void widen(double *restrict out, const float *restrict from, size_t units, size_t width)
{
    for (size_t j = 0; j < width; j++) {
        out[j] = (double)from[j];
        out[LNS_PIECE + j] = (double)from[units + j];
    }
}

/* p over factor * blocks + more on the diagonal. */
LNS_CLONES static void over_blocks(double *restrict out, const double *restrict blocks, const double *restrict p,
                                   double factor, double more, size_t units, size_t width)
{
    const double *both = blocks + units, *bias = blocks + 2 * units;
    for (size_t j = 0; j < width; j++) {
        double w = p[j], b = p[LNS_PIECE + j];
        double ww = factor * blocks[j] + more, wb = factor * both[j], bb = factor * bias[j] + more;
        double inverse = 1 / (ww * bb - wb * wb);
        out[j] = (bb * w - wb * b) * inverse;
        out[LNS_PIECE + j] = (ww * b - wb * w) * inverse;
    }
}

static const size_t LAST = 3;                                 /* moves that tell how stiff a site is */

/* [sum of the weights' curvatures; what the last moves met, what the units' own curvature had expected] */
static void measure_piece(double *part, const lns_quadratic *q, const double *curvature, size_t oldest, piece at)
{
    double move[2 * LNS_PIECE], change[2 * LNS_PIECE];
    part[0] = part[1] = part[2] = 0;
    for (size_t j = 0; j < at.count; j++) part[0] += curvature[at.at + j];
    for (size_t k = q->rows - smaller(q->rows, LAST); k < q->rows; k++) {
        size_t row = (oldest + k) % q->rows * 2 * q->units + at.at;
        widen(move, q->moves + row, q->units, at.count);
        widen(change, q->changes + row, q->units, at.count);
        part[1] += dot_both(move, change, at.count);
        times_blocks(change, curvature + at.at, move, q->units, at.count);
        part[2] += dot_both(move, change, at.count);
    }
}

LNS_CLONES static void raise_blocks(double *restrict blocks, const double *restrict curvature, double least,
                                    double scale, size_t units, size_t width)
{
    for (size_t j = 0; j < width; j++) {
        double weight = curvature[j];
        blocks[j] = RAISED * (weight > least ? weight : least) * scale;
        blocks[units + j] = curvature[units + j] * scale;
        blocks[2 * units + j] = RAISED * curvature[2 * units + j] * scale;
    }
}

/* How far the gain that the blocks alone promise exceeds the loss. */
static double excess(const double *blocks, const lns_quadratic *q, double loss, double *parts)
{
    double gain;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
        double slope[2 * LNS_PIECE], move[2 * LNS_PIECE];
        piece at = piece_of(q, k);
        widen(slope, q->gradient + at.at, q->units, at.count);
        over_blocks(move, blocks + at.at, slope, 1 + q->damping, 0, q->units, at.count);
        parts[k] = dot_both(slope, move, at.count) / 2;
    }
    add_up(&gain, parts, 1, q->pieces);
    return gain > loss ? gain / loss : 1;
}

void lns_quadratic_blocks(double *blocks, const lns_quadratic *q, const double *curvature, const int64_t *offsets,
                          size_t sites, size_t oldest, double loss, double *parts)
{
    double sums[3], *scales = parts + 3 * q->pieces, *met = scales + q->pieces, *expected = met + sites;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++)
        measure_piece(parts + 3 * k, q, curvature, oldest, piece_of(q, k));
    add_up(sums, parts, 3, q->pieces);
    memset(met, 0, 2 * sites * sizeof *met);
    for (size_t i = 0, s = 0; i < q->pieces; i++) {
        while (q->starts[i] >= offsets[s + 1]) s++;
        met[s] += parts[3 * i + 1];
        expected[s] += parts[3 * i + 2];
    }
    for (size_t i = 0, s = 0; i < q->pieces; i++) {
        while (q->starts[i] >= offsets[s + 1]) s++;
        double scale = expected[s] > 0 ? met[s] / expected[s] : 1;
        scales[i] = q->rows ? fmin(fmax(scale, 1), STIFFEST) : 1;
    }
    double least = LEAST * sums[0] / (double)q->units, too_much = 1;
    for (int again = 0; again < 2; again++) {                 /* the second time only where the first promises too much */
        LNS_PARALLEL_FOR(q->threads)
        for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
            piece at = piece_of(q, k);
            raise_blocks(blocks + at.at, curvature + at.at, least, scales[k] * too_much, q->units, at.count);
        }
        if (again || q->rows || !(loss > 0)) break;
        too_much = excess(blocks, q, loss, parts);
        if (!(too_much > 1)) break;
    }
}

LNS_CLONES static void reach(float *restrict low, float *restrict high, const float *restrict x,
                             const double *restrict curvature, size_t units, size_t width)
{
    for (size_t j = 0; j < width; j++) {
        double weight = (double)x[j], bias = (double)x[units + j], size = fmax(fabs(weight), 0.1);
        double far = sqrt(curvature[j] / curvature[2 * units + j]) / 2;
        low[j] = (float)(weight - size / 4);
        high[j] = (float)(weight + size / 3);
        low[units + j] = (float)(bias - far);
        high[units + j] = (float)(bias + far);
    }
}

void lns_quadratic_box(float *low, float *high, const float *x, const double *curvature, size_t units, int threads)
{
    enum { MANY = 4096 };
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)((units + MANY - 1) / MANY); k++) {
        size_t at = (size_t)k * MANY;
        reach(low + at, high + at, x + at, curvature + at, units, smaller(MANY, units - at));
    }
}

/* ---- BFGS, on coefficients of the columns of U ---- */

static size_t bundles(size_t pieces) { return (pieces + BUNDLE - 1) / BUNDLE; }

size_t lns_correction_scratch(size_t rows, size_t pieces) { return 2 * rows * rows * (bundles(pieces) + 1) + 5 * rows * rows; }

/* [moves . A moves from the diagonal on; changes . moves that are no older], (rows, rows) each */
static void inner_products(double *part, const lns_quadratic *q, size_t oldest, piece at)
{
    double move[2 * LNS_PIECE], pushed[2 * LNS_PIECE];
    size_t rows = q->rows;
    for (size_t k = 0; k < rows; k++) {
        size_t row = k * 2 * q->units + at.at;
        double *met = part + (rows + k) * rows;
        widen(move, q->moves + row, q->units, at.count);
        times_blocks(pushed, q->blocks + at.at, move, q->units, at.count);
        dots_both(part + k * rows, q->moves, pushed, k, rows, q, at);
        widen(move, q->changes + row, q->units, at.count);
        dots_both(met, q->moves, move, k, k < oldest ? oldest : rows, q, at);
        if (k >= oldest) dots_both(met, q->moves, move, 0, oldest, q, at);
    }
}

/* Unrolled, the update is a sum of b b' - a a', one of each for every pair (Nocedal & Wright, sec. 7.2): b = change /
 * sqrt(move . change), a = B move / sqrt(move . B move), with B what the pairs before have made of A. */
static void unroll(double *correction, const double *bent, const double *met, size_t rows, size_t oldest, double *vectors)
{
    size_t width = 2 * rows;                                  /* of a vector, which is a combination of columns of U */
    double weights[2 * LNS_MOST_ROWS];
    memset(correction, 0, width * width * sizeof *correction);
    memset(vectors, 0, width * width * sizeof *vectors);
    for (size_t k = 0; k < rows; k++) {
        size_t row = (oldest + k) % rows;
        double *b = vectors + 2 * k * width, *a = b + width, size, along = met[row * rows + row];
        size = bent[row * rows + row];
        a[row] = 1;                                           /* A move, and what the vectors so far make of it: */
        for (size_t i = 0; i < 2 * k; i++) {
            const double *before = vectors + i * width;
            double with = 0;
            for (size_t j = 0; j < rows; j++)
                with += before[j] * bent[j * rows + row] + before[rows + j] * met[j * rows + row];
            weights[i] = i % 2 ? -with : with;
            size += weights[i] * with;
        }
        if (!(along > 0) || !(size > 1e-12 * bent[row * rows + row])) {
            a[row] = 0;                                       /* rounding has the better of it: as if it had not been */
            continue;
        }
        for (size_t i = 0; i < 2 * k; i++)
            for (size_t j = 0; j < width; j++) a[j] += weights[i] * vectors[i * width + j];
        b[rows + row] = 1 / sqrt(along);
        for (size_t j = 0; j < width; j++) a[j] /= sqrt(size);
    }
    for (size_t i = 0; i < width; i++)
        for (size_t j = 0; j < width; j++)
            for (size_t l = 0; l < width; l++) {
                double both = vectors[i * width + j] * vectors[i * width + l];
                correction[j * width + l] += i % 2 ? -both : both;
            }
}

void lns_quadratic_correction(double *correction, const lns_quadratic *q, size_t oldest, double *scratch)
{
    size_t rows = q->rows, width = 2 * rows * rows;
    double *total = scratch, *parts = scratch + width;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)bundles(q->pieces); k++) {
        double *part = parts + (size_t)k * width;
        size_t end = smaller(q->pieces, ((size_t)k + 1) * BUNDLE);
        memset(part, 0, width * sizeof *part);
        for (size_t i = (size_t)k * BUNDLE; i < end; i++) inner_products(part, q, oldest, piece_of(q, (ptrdiff_t)i));
    }
    add_up(total, parts, width, bundles(q->pieces));
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < i; j++) total[i * rows + j] = total[j * rows + i];
    unroll(correction, total, total + rows * rows, rows, oldest, scratch + width * (bundles(q->pieces) + 1));
}

/* ---- its value, and its minimum where no penalty but a ridge matters ---- */

double lns_quadratic_value(const lns_quadratic *q, const float *point, const double *known, double *parts)
{
    size_t width = 2 * q->rows + 2;
    double sums[2 * LNS_MOST_ROWS + 2], bent[2 * LNS_MOST_ROWS];
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
        double move[2 * LNS_PIECE], other[2 * LNS_PIECE], *part = parts + (size_t)k * width;
        piece at = piece_of(q, k);
        difference(move, point + at.at, q->x + at.at, q->units, at.count);
        widen(other, q->gradient + at.at, q->units, at.count);
        part[0] = dot_both(other, move, at.count);
        times_blocks(other, q->blocks + at.at, move, q->units, at.count);
        part[1] = dot_both(other, move, at.count);
        if (!known) products(part + 2, move, q, at);
        else memset(part + 2, 0, 2 * q->rows * sizeof *part);
    }
    add_up(sums, parts, width, q->pieces);
    if (!known) known = sums + 2;
    corrected(bent, q, known);
    return sums[0] + ((1 + q->damping) * sums[1] + dot(bent, known, 2 * q->rows)) / 2;
}

size_t lns_newton_scratch(size_t rows, size_t pieces)
{
    size_t width = 2 * rows + 1;
    return width * width * (bundles(pieces) + 1) + 4 * width;
}

/* The gradient of the model plus the ridge, at x. */
static void lean(double *slope, const lns_quadratic *q, double ridge, piece at)
{
    widen(slope, q->gradient + at.at, q->units, at.count);
    for (size_t j = 0; j < at.count; j++) {
        slope[j] += 2 * ridge * ((double)q->x[at.at + j] - 1);
        slope[LNS_PIECE + j] += 2 * ridge * (double)q->x[q->units + at.at + j];
    }
}

/* Inner products over the preconditioner P of the columns of U and the slope, the last: the upper triangle. */
static void inner_products_over(double *part, const lns_quadratic *q, double ridge, piece at)
{
    double column[2 * LNS_PIECE], over[2 * LNS_PIECE], pushed[2 * LNS_PIECE], slope[2 * LNS_PIECE];
    size_t rows = q->rows, width = 2 * rows + 1;
    lean(slope, q, ridge, at);
    for (size_t k = 0; k < width; k++) {
        const float *from = (k < rows ? q->moves + k * 2 * q->units : q->changes + (k - rows) * 2 * q->units) + at.at;
        double *line = part + k * width;
        if (k == 2 * rows) memcpy(column, slope, sizeof column);
        else if (k >= rows) widen(column, from, q->units, at.count);
        else {
            widen(over, from, q->units, at.count);
            times_blocks(column, q->blocks + at.at, over, q->units, at.count);
        }
        over_blocks(over, q->blocks + at.at, column, 1 + q->damping, 2 * ridge, q->units, at.count);
        if (k < rows) {
            times_blocks(pushed, q->blocks + at.at, over, q->units, at.count);
            dots_both(line, q->moves, pushed, k, rows, q, at);
            dots_both(line + rows, q->changes, over, 0, rows, q, at);
        } else if (k < 2 * rows) dots_both(line + rows, q->changes, over, k - rows, rows, q, at);
        line[2 * rows] += dot_both(slope, over, at.count);
    }
}

static double inner(const double *gram, const double *a, const double *b, size_t width)
{
    double sum = 0;
    for (size_t i = 0; i < width; i++) sum += a[i] * dot(gram + i * width, b, width);
    return sum;
}

/* move = P^-1 times the columns by what this leaves in `move`. They end, but for rounding, after as many steps as U has
 * columns, and one. */
static void conjugate_gradients(double *move, double *left, double *along, double *bent, const double *gram,
                                const lns_quadratic *q)
{
    size_t width = 2 * q->rows + 1;
    double seen[2 * LNS_MOST_ROWS];
    for (size_t i = 0; i < width; i++) {
        move[i] = 0;
        left[i] = along[i] = i == 2 * q->rows ? -1 : 0;
    }
    double size = inner(gram, left, left, width), start = size;
    for (size_t k = 0; k < width && !(size <= 1e-8 * start); k++) {
        for (size_t i = 0; i < 2 * q->rows; i++) seen[i] = dot(gram + i * width, along, width);
        corrected(bent, q, seen);
        bent[2 * q->rows] = 0;
        for (size_t i = 0; i < width; i++) bent[i] += along[i];
        double step = size / inner(gram, along, bent, width), before = size;
        for (size_t i = 0; i < width; i++) {
            move[i] += step * along[i];
            left[i] -= step * bent[i];
        }
        size = inner(gram, left, left, width);
        for (size_t i = 0; i < width; i++) along[i] = left[i] + size / before * along[i];
    }
}

void lns_quadratic_newton(float *out, const lns_quadratic *q, double ridge, double *scratch)
{
    size_t rows = q->rows, width = 2 * rows + 1, square = width * width;
    double *gram = scratch, *parts = gram + square, *move = parts + square * bundles(q->pieces);
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)bundles(q->pieces); k++) {
        double *part = parts + (size_t)k * square;
        size_t end = smaller(q->pieces, ((size_t)k + 1) * BUNDLE);
        memset(part, 0, square * sizeof *part);
        for (size_t i = (size_t)k * BUNDLE; i < end; i++)
            inner_products_over(part, q, ridge, piece_of(q, (ptrdiff_t)i));
    }
    add_up(gram, parts, square, bundles(q->pieces));
    for (size_t i = 0; i < width; i++)
        for (size_t j = 0; j < i; j++) gram[i * width + j] = gram[j * width + i];
    conjugate_gradients(move, move + width, move + 2 * width, move + 3 * width, gram, q);
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
        double sum[2 * LNS_PIECE], slope[2 * LNS_PIECE];
        piece at = piece_of(q, k);
        lean(slope, q, ridge, at);
        memset(sum, 0, sizeof sum);
        if (rows) combine_both(sum, q->moves, move, q, at);
        double pushed[2 * LNS_PIECE];
        times_blocks(pushed, q->blocks + at.at, sum, q->units, at.count);
        if (rows) combine_both(pushed, q->changes, move + rows, q, at);
        for (size_t half = 0; half < 2 * LNS_PIECE; half += LNS_PIECE)
            for (size_t j = 0; j < at.count; j++) pushed[half + j] += move[2 * rows] * slope[half + j];
        over_blocks(sum, q->blocks + at.at, pushed, 1 + q->damping, 2 * ridge, q->units, at.count);
        for (size_t j = 0; j < at.count; j++) {
            size_t weight = at.at + j, bias = q->units + weight;
            out[weight] = (float)((double)q->x[weight] + sum[j]);
            out[bias] = (float)((double)q->x[bias] + sum[LNS_PIECE + j]);
        }
    }
}

/* ---- step sizes ---- */

/* out = p over the diagonal of (1 + damping) * A; returns p . out. */
LNS_CLONES static double over_diagonal(double *restrict out, const double *restrict p, const double *restrict blocks,
                                       double factor, size_t width)
{
    double sum = 0;
    LNS_SIMD_SUM(sum)
    for (size_t j = 0; j < width; j++) {
        double scaled = p[j] / (factor * blocks[j]);
        sum += p[j] * scaled;
        out[j] = scaled;
    }
    return sum;
}

/* One power iteration, of D^-1 B rather than D^-1/2 B D^-1/2: the same numbers, and no roots. p: that piece of the
 * vector, which becomes D^-1 B (scale * p).  part: [its square in the metric of D; U'p]. */
static void iterate(double *part, double *p, const lns_quadratic *q, const double *factors, double scale, int is_last,
                    piece at)
{
    double here[2 * LNS_PIECE], bent[2 * LNS_PIECE], *bias = p + q->units;
    for (size_t j = 0; j < at.count; j++) {
        here[j] = scale * p[j];
        here[LNS_PIECE + j] = scale * bias[j];
    }
    bend(bent, here, factors, q, at);
    const double *diagonal = q->blocks + at.at;
    part[0] = over_diagonal(here, bent, diagonal, 1 + q->damping, at.count);
    part[0] += over_diagonal(here + LNS_PIECE, bent + LNS_PIECE, diagonal + 2 * q->units, 1 + q->damping, at.count);
    memcpy(p, here, at.count * sizeof *p);
    memcpy(bias, here + LNS_PIECE, at.count * sizeof *p);
    if (is_last) memset(part + 1, 0, 2 * q->rows * sizeof *part);
    else products(part + 1, here, q, at);
}

void lns_quadratic_steps(float *steps, double *p, const lns_quadratic *q, const double *direction, double *parts)
{
    enum { ITERATIONS = 10 };
    size_t width = 2 * q->rows + 1, units = q->units;
    double sums[2 * LNS_MOST_ROWS + 1], factors[2 * LNS_MOST_ROWS], scale = 1, factor = 1 + q->damping;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
        double here[2 * LNS_PIECE];
        piece at = piece_of(q, k);
        for (size_t j = 0; j < at.count; j++) {
            size_t unit = at.at + j;
            p[unit] = here[j] = direction[unit] / sqrt(factor * q->blocks[unit]);
            p[units + unit] = here[LNS_PIECE + j] = direction[units + unit] / sqrt(factor * q->blocks[2 * units + unit]);
        }
        parts[(size_t)k * width] = 0;
        products(parts + (size_t)k * width + 1, here, q, at);
    }
    add_up(sums, parts, width, q->pieces);
    for (int i = 0; i < ITERATIONS; i++) {
        for (size_t r = 0; r < 2 * q->rows; r++) sums[1 + r] *= scale;
        corrected(factors, q, sums + 1);
        LNS_PARALLEL_FOR(q->threads)
        for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
            piece at = piece_of(q, k);
            iterate(parts + (size_t)k * width, p + at.at, q, q->rows ? factors : NULL, scale, i == ITERATIONS - 1, at);
        }
        add_up(sums, parts, width, q->pieces);
        scale = 1 / sqrt(sums[0]);
    }
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++) {
        piece at = piece_of(q, k);
        for (size_t j = at.at; j < at.at + at.count; j++) {
            steps[j] = (float)(scale / (1.1 * factor * q->blocks[j]));
            steps[units + j] = (float)(scale / (1.1 * factor * q->blocks[2 * units + j]));
        }
    }
}

/* ---- the inner loop ---- */

/* out = point + momentum * (point - before) - x */
LNS_CLONES static void leap(double *restrict out, const float *restrict point, const float *restrict before,
                            const float *restrict x, double momentum, size_t units, size_t width)
{
    for (size_t half = 0; half < 2; half++)
        for (size_t j = 0; j < width; j++) {
            double here = (double)point[half * units + j], was = (double)before[half * units + j];
            out[half * LNS_PIECE + j] = here + momentum * (here - was) - (double)x[half * units + j];
        }
}

LNS_CLONES static void put_ahead(float *restrict ahead, float *restrict slope, const double *restrict move,
                                 const double *restrict bent, const float *restrict x, const float *restrict gradient,
                                 size_t units, size_t width)
{
    for (size_t half = 0; half < 2; half++)
        for (size_t j = 0; j < width; j++) {
            ahead[half * units + j] = (float)((double)x[half * units + j] + move[half * LNS_PIECE + j]);
            slope[half * units + j] = (float)((double)gradient[half * units + j] + bent[half * LNS_PIECE + j]);
        }
}

/* factors: M U'(ahead - x), NULL for zeros */
static void ahead_piece(float *ahead, float *slope, const lns_quadratic *q, const float *point, const float *before,
                        const double *factors, double momentum, piece at)
{
    double move[2 * LNS_PIECE], bent[2 * LNS_PIECE];
    leap(move, point + at.at, before + at.at, q->x + at.at, momentum, q->units, at.count);
    bend(bent, move, factors, q, at);
    put_ahead(ahead + at.at, slope + at.at, move, bent, q->x + at.at, q->gradient + at.at, q->units, at.count);
}

/* M U'(ahead - x): linear in the points, so that their products are all it takes. */
static const double *factors_ahead(double *out, const lns_quadratic *q, const double *pace)
{
    const double *here = pace + 2, *was = here + 2 * q->rows;
    double seen[2 * LNS_MOST_ROWS];
    for (size_t i = 0; i < 2 * q->rows; i++) seen[i] = here[i] + pace[1] * (here[i] - was[i]);
    return corrected(out, q, seen) ? out : NULL;
}

void lns_quadratic_ahead(float *ahead, float *slope, const lns_quadratic *q, const float *point, const float *before,
                         const double *pace)
{
    double room[2 * LNS_MOST_ROWS];
    const double *factors = factors_ahead(room, q, pace);
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++)
        ahead_piece(ahead, slope, q, point, before, factors, pace[1], piece_of(q, k));
}

/* Clips fresh, and sums [(ahead - fresh) . change, change . change, (fresh - x) . (fresh - x)] over the step sizes. */
LNS_CLONES static void clip(float *restrict fresh, double *restrict sums, const float *restrict point,
                            const float *restrict before, const float *restrict x, const float *restrict low,
                            const float *restrict high, const float *restrict steps, double momentum, size_t width)
{
    double turn = 0, change = 0, distance = 0;
    LNS_SIMD_SUM(turn, change, distance)
    for (size_t j = 0; j < width; j++) {
        float within = fresh[j] < low[j] ? low[j] : fresh[j];
        within = within > high[j] ? high[j] : within;
        fresh[j] = within;
        double now = (double)within, here = (double)point[j], inverse = 1 / (double)steps[j];
        double ahead = here + momentum * (here - (double)before[j]), moved = now - here, away = now - (double)x[j];
        turn += (ahead - now) * inverse * moved;
        change += moved * inverse * moved;
        distance += away * inverse * away;
    }
    sums[0] += turn;
    sums[1] += change;
    sums[2] += distance;
}

static void settle_piece(float *fresh, double *part, const lns_quadratic *q, const float *point, const float *before,
                         const float *low, const float *high, const float *steps, double momentum, piece at)
{
    double move[2 * LNS_PIECE];
    part[0] = part[1] = part[2] = 0;
    for (size_t half = 0; half < 2; half++) {
        size_t from = half * q->units + at.at;
        clip(fresh + from, part, point + from, before + from, q->x + from, low + from, high + from, steps + from,
             momentum, at.count);
    }
    difference(move, fresh + at.at, q->x + at.at, q->units, at.count);
    products(part + 3, move, q, at);
}

/* From the parts of all pieces to the next step's pace, and whether there need be none. */
static int go_on(double *pace, const lns_quadratic *q, const double *parts)
{
    size_t width = 2 * q->rows;
    double sums[2 * LNS_MOST_ROWS + 3];
    add_up(sums, parts, width + 3, q->pieces);
    double speed = sums[0] > 0 ? 1 : pace[0], faster = (1 + sqrt(1 + 4 * speed * speed)) / 2;
    pace[0] = faster;
    pace[1] = (speed - 1) / faster;
    memcpy(pace + 2 + width, pace + 2, width * sizeof *pace);
    memcpy(pace + 2, sums + 3, width * sizeof *pace);
    return sums[1] <= TOLERANCE * TOLERANCE * sums[2];
}

int lns_quadratic_settle(float *fresh, double *pace, const lns_quadratic *q, const float *point, const float *before,
                         const float *low, const float *high, const float *steps, double *parts)
{
    ptrdiff_t k;
    LNS_PARALLEL_FOR(q->threads)
    for (k = 0; k < (ptrdiff_t)q->pieces; k++)
        settle_piece(fresh, parts + (size_t)k * (2 * q->rows + 3), q, point, before, low, high, steps, pace[1],
                     piece_of(q, k));
    return go_on(pace, q, parts);
}

/* One step, all of it while a site's part of moves and changes is in the cache. */
static int step_by_site(float *fresh, float *ahead, float *slope, double *pace, const lns_quadratic *q,
                        const lns_penalty *penalty, const float *point, const float *before, const float *low,
                        const float *high, const float *steps, double *parts)
{
    double room[2 * LNS_MOST_ROWS];
    const double *factors = factors_ahead(room, q, pace);
    ptrdiff_t s;
    LNS_PARALLEL_FOR(q->threads)
    for (s = 0; s < (ptrdiff_t)penalty->groups; s++) {
        size_t first = (size_t)penalty->offsets[s], count = (size_t)penalty->offsets[s + 1] - first;
        for (int64_t k = penalty->ends[s]; k < penalty->ends[s + 1]; k++)
            ahead_piece(ahead, slope, q, point, before, factors, pace[1], piece_of(q, (ptrdiff_t)k));
        if (count) {
            size_t bias = q->units + first;
            lns_proximal_group_f32(fresh + first, ahead + first, slope + first, steps + first, 1, penalty->weights, count);
            lns_proximal_group_f32(fresh + bias, ahead + bias, slope + bias, steps + bias, 0, penalty->biases, count);
        }
        for (int64_t k = penalty->ends[s]; k < penalty->ends[s + 1]; k++)
            settle_piece(fresh, parts + (size_t)k * (2 * q->rows + 3), q, point, before, low, high, steps, pace[1],
                         piece_of(q, (ptrdiff_t)k));
    }
    return go_on(pace, q, parts);
}

size_t lns_quadratic_minimise(float *points, float *ahead, float *slope, double *pace, const lns_quadratic *q,
                              const lns_penalty *penalty, const float *low, const float *high, const float *steps,
                              double *parts)
{
    size_t count = 2 * q->units, last = 0, before = 1, fresh = 2;
    double unused[3], *after = parts + (2 * q->rows + 3) * q->pieces;
    memcpy(points, q->x, count * sizeof *points);
    memcpy(points + count, q->x, count * sizeof *points);
    for (int k = 0; k < LNS_INNER_STEPS; k++) {
        const float *here = points + last * count, *was = points + before * count;
        float *to = points + fresh * count;
        int done;
        if (penalty->ends)
            done = step_by_site(to, ahead, slope, pace, q, penalty, here, was, low, high, steps, parts);
        else {
            lns_quadratic_ahead(ahead, slope, q, here, was, pace);
            lns_proximal_step_f32(to, unused, ahead, slope, steps, penalty->offsets, penalty->order, penalty->weights,
                                  penalty->biases, 1, after, penalty->rows, penalty->groups, penalty->widest, q->threads);
            done = lns_quadratic_settle(to, pace, q, here, was, low, high, steps, parts);
        }
        size_t free_one = before;
        before = last;
        last = fresh;
        fresh = free_one;
        if (done) break;
    }
    return last;
}
