#include "lns_solve.h"

#include <math.h>
#include <string.h>

#include "lns_gram.h"
#include "lns_piece.h"

enum { NORMS = 40, SWEEPS = 30, MOST_WIDTH = 2 * LNS_MOST_ROWS };
enum { LARGE = 8192, SHARE = 8 };                             /* from so many units on, one in so many comes first */

static const double PASSES = 48, SKETCHED = 4;                /* at most, and of these over a share of the units */
static const double LEAST_PART = 1.0 / 64;                    /* of a Newton step */

static const double TOLERANCE = 3e-4;                         /* of the next step, relative to the way from x */
static const double NEAR = 0.1;                              /* within it a matrix serves the next step, too */
static const double ENOUGH = 3e-3;                            /* of a norm's step: what is left is about its square */
static const double ROUGH = 0.1;                              /* the same, where the factors will still change */
static const double SETTLED = 1e-7;                           /* of a unit's step: what is left is its rounding */

/* What a call is about. u = x - identity; pull: -gradient + (1 + damping) A u_x - U factors, (2 * units,). */
typedef struct {
    const lns_quadratic *q;
    const lns_penalty *penalty;
    const float *low, *high;
    float *out;
    size_t share;                                             /* of each piece a pass reads the first of so many parts */
    double *pull, *norms, *curvatures;                        /* norms: (groups, 2), 0 where a group vanishes */
} search;

static piece part_of(const search *s, size_t k)
{
    piece at = piece_of(s->q, (ptrdiff_t)k);
    at.count = (at.count + s->share - 1) / s->share;
    return at;
}

/* ---- the units of a piece, given the norms: each minimises u . (H + more) u / 2 - pull . u + l1 |u|, in the box ---- */

/* A group's pressure over its norm is what it adds to both diagonals; live is 0 for a group that vanishes, else 1. */
typedef struct {
    double more[2], live[2];
} stiffness;

/* Over weights and biases alone, and how much more both are worth together: (3, LNS_PIECE). */
LNS_CLONES static void invert(double *restrict inverse, const double *restrict blocks, stiffness by, double factor,
                              size_t units, size_t width)
{
    const double *both = blocks + units, *bias = blocks + 2 * units;
    for (size_t j = 0; j < width; j++) {
        double w = by.live[0] / (factor * blocks[j] + by.more[0]), b = by.live[1] / (factor * bias[j] + by.more[1]);
        double wb = factor * both[j];
        inverse[j] = w;
        inverse[LNS_PIECE + j] = b;
        inverse[2 * LNS_PIECE + j] = 1 / (1 - wb * wb * w * b);
    }
}

LNS_INLINE double shrunk(double v, double threshold)
{
    double size = fabs(v);
    return copysign((size > threshold ? size : threshold) - threshold, v);
}

LNS_INLINE double within(double v, double low, double high)
{
    v = v < low ? low : v;
    return v > high ? high : v;
}

/* A Newton step for the equation that a bias meets once its weight follows it: piecewise linear and rising, so that a few
 * settle it, and one most of them. Returns how many units moved. */
LNS_CLONES static double sweep(double *restrict bias, const double *restrict pull, const double *restrict inverse,
                               const double *restrict both, const float *restrict low, const float *restrict high,
                               double by_weight, double by_bias, double factor, size_t units, size_t width)
{
    double moved = 0;
    LNS_SIMD_SUM(moved)
    for (size_t j = 0; j < width; j++) {
        double wb = factor * both[j], was = bias[j];
        double w = shrunk(pull[j] - wb * was, by_weight) * inverse[j];
        double weight = within(w, (double)low[j] - 1, (double)high[j] - 1);
        double b = shrunk(pull[units + j] - wb * weight, by_bias) * inverse[LNS_PIECE + j];
        double kept = within(b, (double)low[units + j], (double)high[units + j]);
        int is_free = (w == weight) & (w != 0) & (b == kept) & (b != 0);
        double step = (kept - was) * (is_free ? inverse[2 * LNS_PIECE + j] : 1);
        bias[j] = was + step;
        moved += fabs(step) > SETTLED * fabs(was) ? 1.0 : 0.0;
    }
    return moved;
}

/* Of a group. outside: entries whose box has no 0, which keep the group from vanishing; curvature: on the average. */
typedef struct {
    double square[2], push[2], outside[2], curvature[2], slope[3];
} measures;

/* To a whole group's, from those of a part of it. */
static void scale(measures *sums, double ratio)
{
    for (int k = 0; k < 2; k++) {
        sums->square[k] *= ratio;
        sums->push[k] *= ratio;
    }
    for (int k = 0; k < 3; k++) sums->slope[k] *= ratio;
}

/* u and J, (3, LNS_PIECE), from settled biases; sums |u|^2, u . J u and what pushes at a group that would vanish. */
LNS_CLONES static void read_off(double *restrict u, double *restrict slopes, measures *sums, const double *restrict bias,
                                const double *restrict pull, const double *restrict inverse,
                                const double *restrict both, const float *restrict low, const float *restrict high,
                                double by_weight, double by_bias, double factor, size_t units, size_t width)
{
    double ww = 0, bb = 0, push_w = 0, push_b = 0, outside_w = 0, outside_b = 0, along_w = 0, along_b = 0, across = 0;
    LNS_SIMD_SUM(ww, bb, push_w, push_b, outside_w, outside_b, along_w, along_b, across)
    for (size_t j = 0; j < width; j++) {
        double wb = factor * both[j], least_w = (double)low[j] - 1, most_w = (double)high[j] - 1;
        double least_b = (double)low[units + j], most_b = (double)high[units + j];
        double left_w = shrunk(pull[j] - wb * bias[j], by_weight), w = left_w * inverse[j];
        double weight = within(w, least_w, most_w), left_b = shrunk(pull[units + j] - wb * weight, by_bias);
        double b = left_b * inverse[LNS_PIECE + j], kept = within(b, least_b, most_b);
        double more = inverse[2 * LNS_PIECE + j];
        int free_w = (w == weight) & (w != 0), free_b = (b == kept) & (b != 0);
        double over_w = free_w ? inverse[j] : 0, over_b = free_b ? inverse[LNS_PIECE + j] : 0;
        more = free_w & free_b ? more : 1;
        double j_w = over_w * more, j_b = over_b * more, j_wb = -wb * over_w * over_b * more;
        u[j] = weight;
        u[LNS_PIECE + j] = kept;
        slopes[j] = j_w;
        slopes[LNS_PIECE + j] = j_wb;
        slopes[2 * LNS_PIECE + j] = j_b;
        ww += weight * weight;
        bb += kept * kept;
        push_w += left_w * left_w;
        push_b += left_b * left_b;
        outside_w += (least_w > 0) | (most_w < 0) ? 1.0 : 0.0;
        outside_b += (least_b > 0) | (most_b < 0) ? 1.0 : 0.0;
        along_w += weight * j_w * weight;
        along_b += kept * j_b * kept;
        across += weight * j_wb * kept;
    }
    sums->square[0] += ww;
    sums->square[1] += bb;
    sums->push[0] += push_w;
    sums->push[1] += push_b;
    sums->outside[0] += outside_w;
    sums->outside[1] += outside_b;
    sums->slope[0] += along_w;
    sums->slope[1] += across;
    sums->slope[2] += along_b;
}

/* A piece given its group's stiffness: u, J and the measures; out's biases are where the sweeps begin. */
static void settle_units(double *u, double *slopes, measures *sums, const search *s, stiffness by, int sweeps, piece at)
{
    double inverse[3 * LNS_PIECE], bias[LNS_PIECE], factor = 1 + s->q->damping;
    const double *blocks = s->q->blocks + at.at, *both = blocks + s->q->units, *pull = s->pull + at.at;
    const float *low = s->low + at.at, *high = s->high + at.at;
    double by_weight = s->penalty->weights.l1, by_bias = s->penalty->biases.l1;
    invert(inverse, blocks, by, factor, s->q->units, at.count);
    for (size_t j = 0; j < at.count; j++) bias[j] = (double)s->out[s->q->units + at.at + j];
    for (int k = 0; k < sweeps; k++)
        if (!(sweep(bias, pull, inverse, both, low, high, by_weight, by_bias, factor, s->q->units, at.count) > 0)) break;
    read_off(u, slopes, sums, bias, pull, inverse, both, low, high, by_weight, by_bias, factor, s->q->units, at.count);
    for (size_t j = 0; j < at.count; j++)                     /* plus 0, so that -0 is 0 */
        s->out[s->q->units + at.at + j] = (float)(u[LNS_PIECE + j] + 0.0);
}

/* ---- the two norms of a group ---- */

static void pressures(double *out, const lns_penalty *penalty, size_t count)
{
    out[0] = penalty->weights.group * sqrt((double)count);
    out[1] = penalty->biases.group * sqrt((double)count);
}

static stiffness stiffness_of(const double *norms, const double *pressure, double ridge)
{
    stiffness by;
    for (int k = 0; k < 2; k++) {
        by.live[k] = norms[k] > 0 || !(pressure[k] > 0) ? 1 : 0;
        by.more[k] = 2 * ridge + (by.live[k] > 0 && pressure[k] > 0 ? pressure[k] / norms[k] : 0);
    }
    return by;
}

/* One Newton step for norm / |u(norm)| = 1, of weights and biases together: nearly lines, which rise. A norm that would
 * fall below 0 becomes 0 if nothing pushes at the group beyond its pressure. Returns the larger relative change. */
static double step_norms(double *norms, const measures *m, const double *pressure)
{
    double left[2] = {0, 0}, rise[2][2] = {{1, 0}, {0, 1}}, largest = 0;
    const double slope[2][2] = {{m->slope[0], m->slope[1]}, {m->slope[1], m->slope[2]}};
    int live[2];
    for (int k = 0; k < 2; k++) live[k] = pressure[k] > 0 && norms[k] > 0 && m->square[k] > 0;
    for (int k = 0; k < 2; k++) {
        if (!live[k]) continue;
        double size = sqrt(m->square[k]);
        left[k] = norms[k] / size - 1;
        rise[k][k] = 1 / size;
        for (int l = 0; l < 2; l++)
            if (live[l]) rise[k][l] -= norms[k] * slope[k][l] * pressure[l] / (m->square[k] * size * norms[l] * norms[l]);
    }
    double inverse = 1 / (rise[0][0] * rise[1][1] - rise[0][1] * rise[1][0]);
    double steps[2] = {(rise[0][1] * left[1] - rise[1][1] * left[0]) * inverse,
                       (rise[1][0] * left[0] - rise[0][0] * left[1]) * inverse};
    for (int k = 0; k < 2; k++) {
        if (!(pressure[k] > 0)) continue;
        double push = sqrt(m->push[k]), was = norms[k], now = was + steps[k];
        int may_vanish = push <= pressure[k] && !(m->outside[k] > 0);
        if (!(was > 0)) now = may_vanish ? 0 : fmax(push - pressure[k], 1e-3 * push) / m->curvature[k];
        else if (!live[k] || !(now > 0.1 * was)) now = may_vanish ? 0 : 0.1 * was;
        double change = fabs(now - was), whole = fmax(now, was);
        if (change > 0) largest = fmax(largest, change / whole);
        norms[k] = now;
    }
    return largest;
}

/* ---- a group in a pass ---- */

static void pull_piece(const search *s, const double *factors, piece at)
{
    const lns_quadratic *q = s->q;
    double from[2 * LNS_PIECE], bent[2 * LNS_PIECE], *pull = s->pull + at.at;
    for (size_t j = 0; j < at.count; j++) {
        from[j] = 1 - (double)q->x[at.at + j];
        from[LNS_PIECE + j] = -(double)q->x[q->units + at.at + j];
    }
    bend(bent, from, factors, q, at);
    for (size_t j = 0; j < at.count; j++) {
        pull[j] = -bent[j] - (double)q->gradient[at.at + j];
        pull[q->units + j] = -bent[LNS_PIECE + j] - (double)q->gradient[q->units + at.at + j];
    }
}

/* What a norm that moves with its group adds to J: with P the units' own slopes, C = diag(pressure / |u|^3) and V = (u's
 * weights, u's biases), (P^-1 - V C V')^-1 = P + P V (C^-1 - V'P V)^-1 V'P. */
static void add_norms(double *gram, const measures *m, const double *norms, const double *pressure, size_t rows)
{
    double c[2];
    size_t width = lns_gram_width(rows);
    for (int k = 0; k < 2; k++)
        c[k] = norms[k] > 0 && m->square[k] > 0 ? pressure[k] / (m->square[k] * sqrt(m->square[k])) : 0;
    double ww = 1 - c[0] * m->slope[0], wb = -m->slope[1], bb = 1 - c[1] * m->slope[2];
    double inverse = 1 / (ww * bb - c[0] * wb * wb * c[1]);
    ww *= c[1] * inverse;                                     /* now (C^-1 - V'P V)^-1, which is symmetric */
    wb *= -c[0] * c[1] * inverse;
    bb *= c[0] * inverse;
    for (size_t i = 0; i < 2 * rows; i++) {
        double *line = gram + i * width, w = line[2 * rows], b = line[2 * rows + 1];
        double by_w = bb * w + wb * b, by_b = wb * w + ww * b;
        for (size_t j = i; j < 2 * rows; j++) {
            const double *other = gram + j * width + 2 * rows;
            line[j] += by_w * other[0] + by_b * other[1];
        }
    }
}

static size_t part_size(size_t rows, int has_gram)
{
    return 2 + 2 * rows + (has_gram ? lns_gram_width(rows) * lns_gram_width(rows) : 0);
}

/* part: [the move's square in the metric of the blocks; whether it failed; U'm; gram, unless it is not asked for] */
static void pass_group(double *part, float *tall, const search *s, const double *factors, int has_gram, size_t group)
{
    const lns_quadratic *q = s->q;
    const lns_penalty *penalty = s->penalty;
    double u[2 * LNS_PIECE], slopes[3 * LNS_PIECE], move[2 * LNS_PIECE], met[2 * LNS_PIECE], pressure[2];
    double *norms = s->norms + 2 * group, *gram = part + 2 + 2 * q->rows, sums[MOST_WIDTH], ridge = penalty->weights.ridge;
    size_t first = (size_t)penalty->ends[group], end = (size_t)penalty->ends[group + 1];
    size_t count = (size_t)(penalty->offsets[group + 1] - penalty->offsets[group]), read = 0;
    measures m, none = {{0, 0}, {0, 0}, {0, 0}, {0, 0}, {0, 0, 0}};
    memset(part, 0, part_size(q->rows, has_gram) * sizeof *part);
    pressures(pressure, penalty, count);
    int is_settled = !(pressure[0] > 0 || pressure[1] > 0);
    for (size_t k = first; k < end; k++) {
        piece at = part_of(s, k);
        pull_piece(s, factors, at);
        read += at.count;
    }
    if (!count) return;
    double ratio = (double)count / (double)read;
    for (int k = 0; k < 2; k++) none.curvature[k] = s->curvatures[2 * group + (size_t)k];
    for (int k = 0; k < NORMS && !is_settled; k++) {
        m = none;
        for (size_t i = first; i < end; i++)
            settle_units(u, slopes, &m, s, stiffness_of(norms, pressure, ridge), 1, part_of(s, i));
        scale(&m, ratio);
        is_settled = step_norms(norms, &m, pressure) <= (has_gram ? ROUGH : ENOUGH);
    }
    part[1] = is_settled ? 0 : 1;
    m = none;
    for (size_t k = first; k < end; k++) {
        piece at = part_of(s, k);
        settle_units(u, slopes, &m, s, stiffness_of(norms, pressure, ridge), SWEEPS, at);
        for (size_t j = 0; j < at.count; j++) s->out[at.at + j] = (float)(1 + u[j]);
        difference(move, s->out + at.at, q->x + at.at, q->units, at.count);
        times_blocks(met, q->blocks + at.at, move, q->units, at.count);
        part[0] += (1 + q->damping) * dot_both(met, move, at.count);
        products(sums, move, q, at);
        for (size_t i = 0; i < 2 * q->rows; i++) part[2 + i] += sums[i];
        if (has_gram) lns_gram_add(gram, tall, u, slopes, q, at.at, at.count);
    }
    scale(&m, ratio);
    for (size_t i = 0; i < part_size(q->rows, has_gram); i++) part[i] *= i == 1 ? 1 : ratio;
    if (has_gram) add_norms(gram, &m, norms, pressure, q->rows);
}

/* ---- the few numbers by which units meet ---- */

/* Newton's method for them: where it is, the step that led there from `base` and what part of it was taken; the step's
 * size, and the matrices that it was made with. factors = M guess, which are all 0 unless `any`. Until it is under way,
 * and after the units read have changed, there is no step to compare the next one with. */
typedef struct {
    double guess[MOST_WIDTH], base[MOST_WIDTH], step[MOST_WIDTH], factors[MOST_WIDTH], part, size;
    double *gram, *lines;                                     /* G; 1 + G M, decomposed */
    size_t pivots[MOST_WIDTH];
    int any, is_under_way;
} newton;

/* LU with partial pivoting, in place. */
static void decompose(double *lines, size_t *pivots, size_t width)
{
    for (size_t k = 0; k < width; k++) {
        size_t best = k;
        for (size_t i = k + 1; i < width; i++)
            if (fabs(lines[i * width + k]) > fabs(lines[best * width + k])) best = i;
        pivots[k] = best;
        for (size_t j = 0; j < width; j++) {
            double swapped = lines[k * width + j];
            lines[k * width + j] = lines[best * width + j];
            lines[best * width + j] = swapped;
        }
        for (size_t i = k + 1; i < width; i++) {
            double by = lines[i * width + k] /= lines[k * width + k];
            for (size_t j = k + 1; j < width; j++) lines[i * width + j] -= by * lines[k * width + j];
        }
    }
}

static void substitute(double *p, const double *lines, const size_t *pivots, size_t width)
{
    for (size_t k = 0; k < width; k++) {
        double swapped = p[k];
        p[k] = p[pivots[k]];
        p[pivots[k]] = swapped;
    }
    for (size_t k = 0; k < width; k++) p[k] -= dot(lines + k * width, p, k);
    for (size_t k = width; k-- > 0;) {
        const double *line = lines + k * width;
        p[k] = (p[k] - dot(line + k + 1, p + k + 1, width - k - 1)) / line[k];
    }
}

/* From the upper triangle of G on. */
static void take_matrix(newton *n, const double *upper, const lns_quadratic *q)
{
    size_t width = 2 * q->rows, stride = lns_gram_width(q->rows);
    memcpy(n->gram, upper, stride * stride * sizeof *upper);
    for (size_t i = 0; i < width; i++)
        for (size_t j = 0; j < i; j++) n->gram[i * stride + j] = n->gram[j * stride + i];
    for (size_t i = 0; i < width; i++)
        for (size_t j = 0; j < width; j++)                    /* M is symmetric */
            n->lines[i * width + j] = dot(n->gram + i * stride, q->correction + j * width, width) + (i == j ? 1 : 0);
    decompose(n->lines, n->pivots, width);
}

/* The step that would mend `left`, in its place; returns how far it moves all units, in the metric of the blocks. */
static double step_for(double *left, const newton *n, const lns_quadratic *q)
{
    size_t width = 2 * q->rows, stride = lns_gram_width(q->rows);
    double turn[MOST_WIDTH], square = 0;
    substitute(left, n->lines, n->pivots, width);
    corrected(turn, q, left);
    for (size_t i = 0; i < width; i++) square += turn[i] * dot(n->gram + i * stride, turn, width);
    return sqrt(fabs(square));
}

static void go(newton *n, const lns_quadratic *q)
{
    for (size_t i = 0; i < 2 * q->rows; i++) n->guess[i] = n->base[i] - n->part * n->step[i];
    n->any = corrected(n->factors, q, n->guess);
}

/* Whether the step went too far: with the same matrix, the next would be hardly shorter. Then half of it is taken. */
static int takes_back(newton *n, const double *left, const lns_quadratic *q)
{
    double next[MOST_WIDTH];
    if (!n->is_under_way || !(n->part > LEAST_PART)) return 0;
    memcpy(next, left, 2 * q->rows * sizeof *next);
    if (step_for(next, n, q) <= (1 - n->part / 4) * n->size) return 0;
    n->part /= 2;
    go(n, q);
    return 1;
}

/* Where the norms begin, and out: at x. And the groups' mean curvatures. */
static void begin(const search *s)
{
    const lns_quadratic *q = s->q;
    ptrdiff_t g;
    memcpy(s->out, q->x, 2 * q->units * sizeof *s->out);
    LNS_PARALLEL_FOR(q->threads)
    for (g = 0; g < (ptrdiff_t)s->penalty->groups; g++) {
        size_t first = (size_t)s->penalty->offsets[g], end = (size_t)s->penalty->offsets[g + 1];
        double squares[2] = {0, 0}, sums[2] = {0, 0};
        for (size_t j = first; j < end; j++) {
            double weight = (double)q->x[j] - 1, bias = (double)q->x[q->units + j];
            squares[0] += weight * weight;
            squares[1] += bias * bias;
            sums[0] += q->blocks[j];
            sums[1] += q->blocks[2 * q->units + j];
        }
        for (int k = 0; k < 2; k++) {
            s->norms[2 * g + k] = sqrt(squares[k]);
            s->curvatures[2 * g + k] = (1 + q->damping) * sums[k] / (double)(end > first ? end - first : 1);
        }
    }
}

size_t lns_solve_scratch(size_t rows, size_t groups, int threads)
{
    return 4 * groups + part_size(rows, 1) * (groups + 1) + lns_gram_width(rows) * lns_gram_width(rows) + 4 * rows * rows
           + (size_t)threads * lns_gram_room(rows) / 2;       /* these are floats */
}

int lns_quadratic_solve(float *out, double *products, const lns_quadratic *q, const lns_penalty *penalty,
                        const float *low, const float *high, double *room, double *scratch)
{
    size_t width = 2 * q->rows, stride = lns_gram_width(q->rows), groups = penalty->groups;
    double *total = scratch + 4 * groups, *gram = total + part_size(q->rows, 1), *lines = gram + stride * stride;
    double *parts = lines + width * width, before = 1;
    float *talls = (float *)(parts + part_size(q->rows, 1) * groups);
    int has_gram = width > 0;
    search s = {q, penalty, low, high, out, width && q->units >= LARGE ? SHARE : 1, room, scratch, scratch + 2 * groups};
    newton n = {.part = 1, .gram = gram, .lines = lines};
    begin(&s);
    memset(talls, 0, (size_t)q->threads * lns_gram_room(q->rows) * sizeof *talls);
    for (double spent = 0; spent < PASSES; spent += 1 / (double)s.share) {
        size_t used = part_size(q->rows, has_gram);
        double left[MOST_WIDTH];
        ptrdiff_t g;
        LNS_PARALLEL_FOR(q->threads)
        for (g = 0; g < (ptrdiff_t)groups; g++)
            pass_group(parts + (size_t)g * used, talls + (size_t)lns_thread() * lns_gram_room(q->rows), &s,
                       n.any ? n.factors : NULL, has_gram, (size_t)g);
        add_up(total, parts, used, groups);
        if (!(total[1] <= 0)) return 0;                       /* a norm did not settle */
        memcpy(products, total + 2, width * sizeof *products);
        if (!width) return 1;
        for (size_t i = 0; i < width; i++) left[i] = n.guess[i] - products[i];
        if (takes_back(&n, left, q)) continue;
        if (has_gram) take_matrix(&n, total + 2 + width, q);
        memcpy(n.step, left, width * sizeof *left);
        n.size = step_for(n.step, &n, q);
        double error = n.size <= 0 ? 0 : n.size / sqrt(total[0]);    /* NaN stays NaN */
        if (!isfinite(error)) return 0;
        if (s.share == 1 && !has_gram && error <= TOLERANCE) return 1;    /* beside a matrix norms are settled roughly */
        has_gram = error > NEAR || (!has_gram && error > 0.3 * before);
        before = error;
        n.is_under_way = 1;
        if (s.share > 1 && (error <= NEAR || spent >= SKETCHED)) {
            s.share = 1;                                      /* the next step is measured with other units */
            n.is_under_way = 0;
            before = 1;
        }
        n.part = fmin(1, 2 * n.part);
        memcpy(n.base, n.guess, width * sizeof *left);
        go(&n, q);
    }
    return 0;
}
