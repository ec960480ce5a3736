#include "check.h"
#include "lns_quadratic.h"
#include "lns_solve.h"

enum { UNITS = 1100, COUNT = 2 * UNITS, SITES = 4, ROWS = 6 };    /* a site past a piece, an empty one, one of a unit */

/* A model whose changes are what its moves meet where every unit bends as its block says, and all along one direction. */
typedef struct {
    float *x, *gradient, *moves, *changes, *low, *high, *steps, *points, *ahead, *slope;
    double *curvature, *blocks, *correction, *direction, *p, *pace;
    int64_t *offsets, *starts;
    lns_quadratic q;
} problem;

static double *scratch(size_t doubles) { return NEW(double, doubles); }

static void times_blocks(double *out, const double *blocks, const double *p)
{
    for (size_t j = 0; j < UNITS; j++) {
        out[j] = blocks[j] * p[j] + blocks[UNITS + j] * p[UNITS + j];
        out[UNITS + j] = blocks[UNITS + j] * p[j] + blocks[2 * UNITS + j] * p[UNITS + j];
    }
}

static problem make(size_t rows, int threads)
{
    static const int64_t ends[] = {0, 1, 1, 700, UNITS};
    problem t = {random_floats(COUNT), random_floats(COUNT), rows ? random_floats(rows * COUNT) : NULL,
                 rows ? random_floats(rows * COUNT) : NULL, NEW(float, COUNT), NEW(float, COUNT), NEW(float, COUNT),
                 NEW(float, 3 * COUNT), NEW(float, COUNT), NEW(float, COUNT), NEW(double, 3 * UNITS),
                 NEW(double, 3 * UNITS), rows ? NEW(double, 4 * rows * rows) : NULL, NEW(double, COUNT),
                 NEW(double, COUNT), NEW(double, 2 + 4 * rows), NEW(int64_t, SITES + 1), NULL, {0}};
    memcpy(t.offsets, ends, sizeof ends);
    for (size_t j = 0; j < UNITS; j++) {
        t.curvature[j] = 1 + fabs(draw());
        t.curvature[UNITS + j] = draw() / 2;
        t.curvature[2 * UNITS + j] = 1 + fabs(draw());
    }
    for (size_t j = 0; j < COUNT; j++) {
        t.direction[j] = draw();
        t.gradient[j] *= 0.02f;
    }
    for (size_t k = 0; k < rows; k++) {
        double move[COUNT], change[COUNT], along = 0;
        for (size_t j = 0; j < COUNT; j++) {
            move[j] = (double)t.moves[k * COUNT + j];
            along += move[j] * t.direction[j] / UNITS;
        }
        times_blocks(change, t.curvature, move);
        for (size_t j = 0; j < COUNT; j++) t.changes[k * COUNT + j] = (float)(1.5 * change[j] + along * t.direction[j]);
    }
    size_t pieces = lns_pieces(NULL, t.offsets, SITES);
    t.starts = NEW(int64_t, pieces + 1);
    lns_pieces(t.starts, t.offsets, SITES);
    t.q = (lns_quadratic){t.blocks, t.correction, t.x, t.gradient, t.moves, t.changes, t.starts, 0.2, UNITS, rows, pieces,
                          threads};
    double *parts = scratch(8 * pieces + 2 * SITES);
    lns_quadratic_box(t.low, t.high, t.x, t.curvature, UNITS, threads);
    lns_quadratic_blocks(t.blocks, &t.q, t.curvature, t.offsets, SITES, rows / 2, 1.0, parts);
    free(parts);
    if (rows) {
        parts = scratch(lns_correction_scratch(rows, pieces));
        lns_quadratic_correction(t.correction, &t.q, rows / 2, parts);
        free(parts);
    }
    return t;
}

static void discard(problem *t)
{
    free(t->x); free(t->gradient); free(t->moves); free(t->changes); free(t->low); free(t->high); free(t->steps);
    free(t->points); free(t->ahead); free(t->slope); free(t->curvature); free(t->blocks); free(t->correction);
    free(t->direction); free(t->p); free(t->pace); free(t->offsets); free(t->starts);
}

static double value_at(const problem *t, const float *point)
{
    double *parts = scratch((2 * t->q.rows + 2) * t->q.pieces), value;
    value = lns_quadratic_value(&t->q, point, NULL, parts);
    free(parts);
    return value;
}

/* The secant equation, in the value alone: half of (value at x + move) + (value at x - move) is move . B move / 2, which
 * for the last move is damping of its blocks' product and its change. */
static int meets_the_last_change(const problem *t)
{
    size_t last = t->q.rows / 2 + t->q.rows - 1;
    const float *move = t->moves + last % t->q.rows * COUNT, *change = t->changes + last % t->q.rows * COUNT;
    double wide[COUNT], bent[COUNT], met = 0;
    float ahead[COUNT], behind[COUNT];
    for (size_t j = 0; j < COUNT; j++) {
        wide[j] = (double)move[j];
        ahead[j] = t->x[j] + move[j];
        behind[j] = t->x[j] - move[j];
    }
    times_blocks(bent, t->blocks, wide);
    for (size_t j = 0; j < COUNT; j++) met += wide[j] * (t->q.damping * bent[j] + (double)change[j]);
    return is_close((value_at(t, ahead) + value_at(t, behind)) / 2, met / 2, 1e-4);
}

/* At which piece each site begins. */
static int64_t *pieces_of_sites(const problem *t)
{
    int64_t *ends = NEW(int64_t, SITES + 1);
    for (size_t s = 0, piece = 0; s <= SITES; s++) {
        while (t->starts[piece] < t->offsets[s]) piece++;
        ends[s] = (int64_t)piece;
    }
    return ends;
}

/* By Newton's method; true if it settled, and knows the products of its move. */
static int solve(problem *t, lns_strengths by, float *out)
{
    size_t rows = t->q.rows, pieces = t->q.pieces;
    int64_t *ends = pieces_of_sites(t);
    lns_penalty penalty = {t->offsets, NULL, ends, by, by, SITES, 700, NULL};
    double *room = scratch(lns_solve_scratch(rows, SITES, t->q.threads)), *pace = scratch(2 * rows);
    double *parts = scratch((2 * rows + 2) * pieces);
    int settled = lns_quadratic_solve(out, pace, &t->q, &penalty, t->low, t->high, t->p, room);
    double value = lns_quadratic_value(&t->q, out, pace, parts);
    settled &= is_close(value, lns_quadratic_value(&t->q, out, NULL, parts), 1e-12);
    free(ends); free(room); free(pace); free(parts);
    return settled;
}

static void minimise(problem *t, lns_strengths by, const int64_t *order, int by_site, float *out)
{
    size_t rows = t->q.rows, pieces = t->q.pieces;
    double *parts = scratch((2 * rows + 3) * pieces + 6 * SITES), *sums = scratch((2 * rows + 1) * pieces);
    float *lines = order ? NEW(float, 4 * 700 * (size_t)t->q.threads) : NULL;
    int64_t *ends = by_site ? pieces_of_sites(t) : NULL;
    lns_penalty penalty = {t->offsets, order, ends, by, by, SITES, 700, lines};
    memset(t->pace, 0, (2 + 4 * rows) * sizeof *t->pace);
    t->pace[0] = 1;
    lns_quadratic_steps(t->steps, t->p, &t->q, t->direction, sums);
    size_t last = lns_quadratic_minimise(t->points, t->ahead, t->slope, t->pace, &t->q, &penalty, t->low, t->high,
                                         t->steps, parts);
    memcpy(out, t->points + last * COUNT, COUNT * sizeof *out);
    free(parts); free(sums); free(lines); free(ends);
}

static double penalty_of(const problem *t, const float *point, lns_strengths by)
{
    double sums[3], *parts = scratch(6 * SITES);
    float *out = NEW(float, COUNT);
    lns_proximal_step_f32(out, sums, point, NULL, NULL, t->offsets, NULL, by, by, 0, parts, NULL, SITES, 700, 1);
    free(parts); free(out);
    return sums[0];
}

static int is_least(const problem *t, const float *point, lns_strengths by)
{
    double least = value_at(t, point) + penalty_of(t, point, by);
    float *other = NEW(float, COUNT);
    int best = least < penalty_of(t, t->x, by);
    for (int trial = 0; trial < 40; trial++) {
        double size = pow(10, -(trial % 4) - 2);
        for (size_t j = 0; j < COUNT; j++) {
            float near = point[j] + (float)(size * draw());
            other[j] = near < t->low[j] ? t->low[j] : near > t->high[j] ? t->high[j] : near;
        }
        best &= value_at(t, other) + penalty_of(t, other, by) > least - 1e-4 * fabs(least);
    }
    free(other);
    return best;
}

static void test_model(size_t rows)
{
    problem t = make(rows, 1);
    float *out = NEW(float, COUNT), *again = NEW(float, COUNT);
    int least = 1, same = 1, solved = 1;
    if (rows) check(meets_the_last_change(&t), "lns_quadratic_value: B meets the last change");
    double *room = scratch(lns_newton_scratch(rows, t.q.pieces));
    lns_quadratic_newton(out, &t.q, 0, room);
    double lowest = value_at(&t, out);
    int stationary = lowest < 0;
    for (int trial = 0; trial < 20; trial++) {
        for (size_t j = 0; j < COUNT; j++) again[j] = out[j] + 0.01f * (float)draw();
        stationary &= value_at(&t, again) > lowest;
    }
    check(stationary, "lns_quadratic_newton: no better point nearby");
    t.q.threads = THREADS;
    lns_quadratic_newton(again, &t.q, 0, room);
    same &= !memcmp(out, again, COUNT * sizeof *out);
    free(room);
    int64_t *order = NEW(int64_t, UNITS);
    for (size_t j = 0; j < UNITS; j++) order[j] = (int64_t)j;
    for (int k = 0; k < 4; k++) {
        lns_strengths by = {k & 1 ? 0.005 : 0, k & 2 ? 0.01 : 0, 0.001};
        t.q.threads = 1;
        minimise(&t, by, NULL, 1, out);
        least &= is_least(&t, out, by);
        t.q.threads = THREADS;
        minimise(&t, by, NULL, 1, again);
        same &= !memcmp(out, again, COUNT * sizeof *out);
        minimise(&t, by, order, 0, again);                    /* in stages, with the groups gathered */
        same &= !memcmp(out, again, COUNT * sizeof *out);
        t.q.threads = 1;
        solved &= solve(&t, by, again) && is_least(&t, again, by);
        double lower = value_at(&t, again) + penalty_of(&t, again, by);
        double value = value_at(&t, out) + penalty_of(&t, out, by);
        solved &= lower < value + 1e-5 * fabs(value);
        t.q.threads = THREADS;
        solve(&t, by, out);
        same &= !memcmp(out, again, COUNT * sizeof *out);
    }
    check(solved, "lns_quadratic_solve: no better point nearby in the box, nor where proximal steps end");
    check(least, "lns_quadratic_minimise: no better point nearby in the box");
    check(same, "lns_quadratic: threads, sites and stages");
    free(out); free(again); free(order);
    discard(&t);
}

void test_quadratic(void)
{
    test_model(0);
    test_model(1);
    test_model(ROWS);
}
