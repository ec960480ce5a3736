#include "check.h"
#include "lns_prox.h"

/* A problem of four groups over 40 units, one of them empty, side by side or mixed. */
typedef struct {
    float *x, *gradient, *scales;
    int64_t *offsets, *order;
    lns_strengths by[2];                                      /* weights, biases */
    double step;
} problem;

enum { GROUPS = 4, UNITS = 40, COUNT = 2 * UNITS, WIDEST = 34 };

/* penalty(w) + sum of (w - v)^2 / (2 t), for u = w - center. */
static double objective(const problem *p, const double *u, const double *v)
{
    double total = 0;
    for (size_t k = 0; k < 2 * GROUPS; k++) {
        const lns_strengths *by = &p->by[k / GROUPS];
        const int64_t *ends = p->offsets + k % GROUPS;
        double square = 0;
        for (int64_t i = ends[0]; i < ends[1]; i++) {
            size_t j = (size_t)(p->order ? p->order[i] : i) + k / GROUPS * UNITS;
            total += by->l1 * fabs(u[j]) + by->ridge * u[j] * u[j];
            if (v) total += (u[j] - v[j]) * (u[j] - v[j]) / (2 * p->step * (p->scales ? (double)p->scales[j] : 1));
            square += u[j] * u[j];
        }
        total += by->group * sqrt((double)(ends[1] - ends[0]) * square);
    }
    return total;
}

static void solve(float *out, double *sums, const problem *p, int threads)
{
    double *parts = NEW(double, 6 * GROUPS);
    float *rows = p->order ? NEW(float, 4 * WIDEST * (size_t)threads) : NULL;
    lns_proximal_step_f32(out, sums, p->x, p->gradient, p->scales, p->offsets, p->order, p->by[0], p->by[1], p->step,
                          parts, rows, GROUPS, WIDEST, threads);
    free(parts); free(rows);
}

static double center_of(size_t j) { return j < UNITS ? 1 : 0; }

static int no_better_nearby(const problem *p, const float *out, double value)
{
    double u[COUNT], v[COUNT], least = INFINITY;
    int best = 1;
    for (int trial = 0; trial < 200; trial++) {               /* trial 0 is the prox itself */
        double size = trial ? pow(10, -(trial % 4)) : 0;
        for (size_t j = 0; j < COUNT; j++) {
            double t = p->step * (p->scales ? (double)p->scales[j] : 1);
            v[j] = (double)p->x[j] - center_of(j) - (p->gradient ? t * (double)p->gradient[j] : 0);
            u[j] = (double)out[j] - center_of(j) + size * draw();
        }
        if (trial) best &= objective(p, u, v) >= least - 1e-4;
        else {
            least = objective(p, u, v);
            best &= is_close(value, objective(p, u, NULL), 1e-5);
        }
    }
    return best;
}

void test_prox(void)
{
    const int64_t ends[] = {0, 1, 1, 6, UNITS};
    float *x = random_floats(COUNT), *gradient = random_floats(COUNT), *scales = random_floats(COUNT);
    float *out = NEW(float, COUNT), *again = NEW(float, COUNT);
    int64_t *offsets = NEW(int64_t, GROUPS + 1), *order = NEW(int64_t, UNITS);
    memcpy(offsets, ends, sizeof ends);
    for (size_t j = 0; j < UNITS; j++) order[j] = (int64_t)(j * 7 % UNITS);
    for (size_t j = 0; j < COUNT; j++) scales[j] = 0.1f + fabsf(scales[j]);
    int best = 1, same = 1, moved = 1, identity = 1, removed = 1;
    for (int k = 0; k < 64; k++) {
        double l1 = k & 1 ? 0.1 : 0, group = k & 2 ? 0.1 : 0, ridge = k & 4 ? 0.3 : 0, sums[3], others[3];
        problem p = {x, k & 8 ? gradient : NULL, k & 16 ? scales : NULL, offsets, k & 32 ? order : NULL,
                     {{l1, group, ridge}, {2 * l1, group / 2, ridge}}, 0.5};
        solve(out, sums, &p, 1);
        best &= no_better_nearby(&p, out, sums[0]);
        double slope = 0, square = 0;
        for (size_t j = 0; p.gradient && j < COUNT; j++) {
            double move = (double)out[j] - (double)x[j];
            slope += move * (double)gradient[j];
            square += move * move;
        }
        moved &= is_close(sums[1], slope, 1e-6) && is_close(sums[2], square, 1e-6);
        solve(again, others, &p, THREADS);
        same &= !memcmp(out, again, COUNT * sizeof *out) && !memcmp(sums, others, sizeof sums);
        p.step = 0;
        solve(out, sums, &p, THREADS);
        identity &= !memcmp(out, x, COUNT * sizeof *out);
        p.step = 1;
        p.by[0] = p.by[1] = (lns_strengths){k & 1 ? 1e300 : 0, k & 1 ? 0 : 1e300, ridge};
        solve(out, sums, &p, THREADS);
        for (size_t j = 0; j < COUNT; j++) removed &= (double)out[j] == center_of(j) && !signbit(out[j]);
        removed &= sums[0] == 0;
    }
    check(best, "lns_proximal_step_f32: no better point nearby, and its penalty");
    check(moved, "lns_proximal_step_f32: how far it moved");
    check(same, "lns_proximal_step_f32: threads");
    check(identity, "lns_proximal_step_f32: a step of zero");
    check(removed, "lns_proximal_step_f32: huge strengths leave the identity, exactly");
    free(x); free(gradient); free(scales); free(out); free(again); free(offsets); free(order);
}
