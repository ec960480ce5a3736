#include "lns_prox.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "lns_block.h"
#include "lns_port.h"

/* ---- one step size: entries in float, sums in double ---- */

/* What u exceeds a finite threshold by. A maximum, which becomes one instruction; a test for 0 becomes a branch. */
static inline float beyond(float u, float threshold)
{
    float size = fabsf(u);
    return (size > threshold ? size : threshold) - threshold;
}

/* out = x - step * gradient, and the two norms of what the threshold leaves of it: |s|_1, |s|_2^2. */
LNS_CLONES static void pull(float *restrict out, double *restrict norms, const float *restrict x,
                            const float *restrict gradient, float step, float center, float threshold, size_t count)
{
    double absolute = 0, square = 0;
    LNS_SIMD_SUM(absolute, square)
    for (size_t j = 0; j < count; j++) {
        out[j] = x[j] - step * gradient[j];
        double s = (double)beyond(out[j] - center, threshold);
        absolute += s;
        square += s * s;
    }
    norms[0] = absolute;
    norms[1] = square;
}

LNS_CLONES static void shrink(float *v, float center, float threshold, float factor, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        float u = v[j] - center;
        v[j] = center + factor * copysignf(beyond(u, threshold), u);
    }
}

/* Returns the penalty of out. */
static double step_evenly(float *out, const float *x, const float *gradient, float center, lns_strengths by,
                          double step, size_t count)
{
    double norms[2], root = sqrt((double)count), factor = 1 / (1 + 2 * step * by.ridge);
    float threshold = (float)fmin(step * by.l1, FLT_MAX);
    if (gradient) pull(out, norms, x, gradient, (float)step, center, threshold, count);
    else pull(out, norms, x, x, 0, center, threshold, count);
    double norm = sqrt(norms[1]), lost = step * by.group * root;
    if (lost > 0) factor *= norm > lost ? 1 - lost / norm : 0;
    if (threshold > 0 || factor < 1) shrink(out, center, threshold, (float)factor, count);
    return factor * (by.l1 * norms[0] + by.group * root * norm + factor * by.ridge * norms[1]);
}

/* ---- a step size for each entry ----
 * With s = soft(v, t * l1), c = 1 + 2 * ridge * t and pressure = group * sqrt(d), stationarity reads
 *     w = s * norm / (norm * c + pressure * t),  where norm = |w| solves  F(norm) := |s / (norm c + pressure t)|^2 = 1.
 * F falls; the group vanishes where F(0) <= 1. All in double, since norm may be small beside pressure * t. */

static const double ENOUGH = 1e200;                           /* strengths that leave nothing; products stay finite */

static inline double beyond_exactly(double u, double threshold)
{
    double size = fabs(u);
    return (size > threshold ? size : threshold) - threshold;
}

LNS_CLONES static void pull_each(float *restrict out, const float *restrict x, const float *restrict gradient,
                                 const float *restrict scales, float step, size_t count)
{
    for (size_t j = 0; j < count; j++) out[j] = x[j] - step * scales[j] * gradient[j];
}

/* A lower bound of the norm, at which F is at most d: every |w| is at least (|s| - pressure * t) / c. */
LNS_CLONES static double least_norm(const float *v, const float *scales, double center, lns_strengths by, double step,
                                    size_t count)
{
    double square = 0;
    LNS_SIMD_SUM(square)
    for (size_t j = 0; j < count; j++) {
        double t = step * (double)scales[j];
        double rest = beyond_exactly((double)v[j] - center, t * (by.l1 + by.group)) / (1 + 2 * by.ridge * t);
        square += rest * rest;
    }
    return sqrt(square);
}

/* F and -F'/2 at norm. */
LNS_CLONES static void secular(double *value, double *fall, const float *v, const float *scales, double center,
                               lns_strengths by, double step, double norm, size_t count)
{
    double f = 0, g = 0;
    LNS_SIMD_SUM(f, g)
    for (size_t j = 0; j < count; j++) {
        double t = step * (double)scales[j], c = 1 + 2 * by.ridge * t, below = norm * c + t * by.group;
        double inverse = 1 / below;
        inverse = below > 0 ? inverse : 0;                    /* or s is 0, too */
        double part = beyond_exactly((double)v[j] - center, t * by.l1) * inverse;
        f += part * part;
        g += part * part * c * inverse;
    }
    *value = f;
    *fall = g;
}

/* Newton's method for F^(-1/2) = 1. That function is concave and nearly a line (one exactly, for equal step sizes), so
 * that it climbs to the solution from below in a few steps and never beyond. by.group is the pressure. */
static double solve_norm(const float *v, const float *scales, double center, lns_strengths by, double step,
                         size_t count)
{
    double norm = least_norm(v, scales, center, by, step, count);
    for (int k = 0; k < 100; k++) {
        double f, fall;
        secular(&f, &fall, v, scales, center, by, step, norm, count);
        double rise = f > 1 ? f * (f - 1) / ((sqrt(f) + 1) * fall) : 0;
        norm += rise;
        if (!(rise > 1e-7 * norm)) break;                     /* the error left is about its square */
    }
    return norm;
}

LNS_CLONES static void shrink_each(float *restrict v, double *restrict norms, const float *restrict scales,
                                   double center, lns_strengths by, double step, double norm, size_t count)
{
    double absolute = 0, square = 0;
    LNS_SIMD_SUM(absolute, square)
    for (size_t j = 0; j < count; j++) {
        double t = step * (double)scales[j], u = (double)v[j] - center;
        double factor = norm / (norm * (1 + 2 * by.ridge * t) + t * by.group);
        double s = factor * beyond_exactly(u, t * by.l1);
        v[j] = (float)(center + copysign(s, u));
        absolute += s;
        square += s * s;
    }
    norms[0] = absolute;
    norms[1] = square;
}

static double step_each(float *out, const float *x, const float *gradient, const float *scales, float center,
                        lns_strengths by, double step, size_t count)
{
    double norms[2];
    by = (lns_strengths){fmin(by.l1, ENOUGH), fmin(by.group * sqrt((double)count), ENOUGH), fmin(by.ridge, ENOUGH)};
    if (gradient) pull_each(out, x, gradient, scales, (float)step, count);
    else memcpy(out, x, count * sizeof *out);
    double norm = by.group > 0 ? solve_norm(out, scales, (double)center, by, step, count) : 1;
    if (norm > 0) shrink_each(out, norms, scales, (double)center, by, step, norm, count);
    else {
        norms[0] = norms[1] = 0;
        for (size_t j = 0; j < count; j++) out[j] = center;
    }
    return by.l1 * norms[0] + by.group * sqrt(norms[1]) + by.ridge * norms[1];
}

void lns_proximal_group_f32(float *out, const float *x, const float *gradient, const float *steps, float center,
                            lns_strengths by, size_t count)
{
    step_each(out, x, gradient, steps, center, by, 1, count);
}

/* ---- all of it ---- */

enum { RUN = 256 };                                           /* entries summed in float before double takes over */

/* What a line search asks about a move: <gradient, to - from>, |to - from|^2. */
LNS_CLONES static void measure(double *restrict sums, const float *restrict to, const float *restrict from,
                               const float *restrict gradient, size_t count)
{
    sums[0] = sums[1] = 0;
    for (size_t at = 0; at < count; at += RUN) {
        size_t end = at + lns_least(count - at, RUN);
        float slope = 0, square = 0;
        LNS_SIMD_SUM(slope, square)
        for (size_t j = at; j < end; j++) {
            float move = to[j] - from[j];
            slope += move * gradient[j];
            square += move * move;
        }
        sums[0] += (double)slope;
        sums[1] += (double)square;
    }
}

static void step_group(float *out, double *part, const float *x, const float *gradient, const float *scales,
                       float center, lns_strengths by, double step, size_t count)
{
    part[0] = scales ? step_each(out, x, gradient, scales, center, by, step, count)
                     : step_evenly(out, x, gradient, center, by, step, count);
    part[1] = part[2] = 0;
    if (gradient) measure(part + 1, out, x, gradient, count);
}

/* The entries of a group side by side in row, or NULL where there are none to be had. */
static const float *gather(float *row, const float *from, const int64_t *order, size_t count)
{
    if (!from) return NULL;
    for (size_t j = 0; j < count; j++) row[j] = from[order[j]];
    return row;
}

void lns_proximal_step_f32(float *out, double *sums, const float *x, const float *gradient, const float *scales,
                           const int64_t *offsets, const int64_t *order, lns_strengths weights, lns_strengths biases,
                           double step, double *parts, float *rows, size_t groups, size_t widest, int threads)
{
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < 2 * (ptrdiff_t)groups; k++) {
        int bias = k >= (ptrdiff_t)groups;
        const int64_t *ends = offsets + (bias ? k - (ptrdiff_t)groups : k);
        size_t first = (size_t)ends[0], count = (size_t)(ends[1] - ends[0]);
        size_t start = (bias ? (size_t)offsets[groups] : 0) + (order ? 0 : first);
        const float *from = x + start, *downhill = gradient ? gradient + start : NULL;
        const float *sizes = scales ? scales + start : NULL;
        float *to = out + start;
        if (order) {
            float *row = rows + (size_t)lns_thread() * 4 * widest;
            to = row;
            from = gather(row + widest, from, order + first, count);
            downhill = gather(row + 2 * widest, downhill, order + first, count);
            sizes = gather(row + 3 * widest, sizes, order + first, count);
        }
        step_group(to, parts + 3 * k, from, downhill, sizes, bias ? 0 : 1, bias ? biases : weights, step, count);
        if (order)
            for (size_t j = 0; j < count; j++) out[start + (size_t)order[first + j]] = to[j];
    }
    for (size_t i = 0; i < 3; i++) {
        sums[i] = 0;
        for (size_t at = i; at < 6 * groups; at += 3) sums[i] += parts[at];
    }
}
