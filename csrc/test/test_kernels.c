/* Every kernel without Python: results against simple scalar code, on heap buffers of exactly the size that the headers
 * promise to be enough, so that AddressSanitizer and valgrind see any access beyond them. See `make kernels`. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lns_affine.h"
#include "lns_optim.h"
#include "lns_prox.h"
#include "lns_sort.h"
#include "lns_wasserstein.h"

#define NEW(type, count) ((type *)allocate((count) * sizeof(type)))

enum { THREADS = 3 };                                         /* and 1: scratch for idle threads would hide overruns */

static int checks, failures;

/* Not assert, which -DNDEBUG turns off. */
static void check(int passed, const char *what)
{
    checks++;
    failures += !passed;
    printf("%s  %s\n", passed ? "ok  " : "FAIL", what);
}

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes);
    if (memory) return memory;
    fputs("out of memory\n", stderr);
    exit(2);
}

static int is_close(double got, double expected, double tolerance)
{
    return fabs(got - expected) <= tolerance * (1 + fabs(expected));
}

/* Uniform in [-1, 1), the same on every machine. */
static double draw(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 4503599627370496.0 - 1;
}

static float *random_floats(size_t count)
{
    float *x = NEW(float, count);
    for (size_t k = 0; k < count; k++) x[k] = (float)draw();
    return x;
}

/* Few different values, zeros of both signs among them: many ties. */
static float *tied_floats(size_t count)
{
    float *x = NEW(float, count);
    for (size_t k = 0; k < count; k++) x[k] = (float)floor(3 * draw()) * (draw() < 0 ? -0.5f : 0.5f);
    return x;
}

static double *widened(const float *x, size_t count)
{
    double *wide = NEW(double, count);
    for (size_t k = 0; k < count; k++) wide[k] = (double)x[k];
    return wide;
}

/* ---- lns_sort ---- */

/* order[i] = row of the i-th smallest entry of a column, ties by row: insertion sort. */
static void stable_order(int32_t *order, const float *x, size_t n, size_t columns, size_t c)
{
    for (size_t i = 0; i < n; i++) {
        size_t at = i;
        for (; at > 0 && x[(size_t)order[at - 1] * columns + c] > x[i * columns + c]; at--) order[at] = order[at - 1];
        order[at] = (int32_t)i;
    }
}

static int sorts_stably(const float *x, size_t n, size_t columns, int threads)
{
    float *sorted = NEW(float, n * columns);
    double *wide = widened(x, n * columns), *wide_sorted = NEW(double, n * columns);
    int32_t *index = NEW(int32_t, n * columns), *wide_index = NEW(int32_t, n * columns), *order = NEW(int32_t, n);
    void *scratch = allocate((size_t)threads * lns_sort_scratch_f32(n));
    void *wide_scratch = allocate((size_t)threads * lns_sort_scratch_f64(n));
    lns_sort_f32(sorted, index, x, n, columns, scratch, threads);
    lns_sort_f64(wide_sorted, wide_index, wide, n, columns, wide_scratch, threads);
    int right = 1;
    for (size_t c = 0; c < columns; c++) {
        stable_order(order, x, n, columns, c);
        for (size_t i = 0; i < n; i++) {
            size_t at = i * columns + c, from = (size_t)order[i] * columns + c;
            right &= index[at] == order[i] && wide_index[at] == order[i];
            right &= !memcmp(sorted + at, x + from, sizeof *x) && !memcmp(wide_sorted + at, wide + from, sizeof *wide);
        }
    }
    free(sorted); free(wide); free(wide_sorted); free(index); free(wide_index); free(order); free(scratch);
    free(wide_scratch);
    return right;
}

static void test_sort(void)
{
    const size_t rows[] = {1, 2, 3, 5, 16, 17, 33, 64, 100}, columns[] = {1, 15, 16, 17, 40};
    int random = 1, tied = 1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof columns / sizeof *columns; j++) {
            float *x = random_floats(rows[i] * columns[j]), *y = tied_floats(rows[i] * columns[j]);
            for (int threads = 1; threads <= THREADS; threads++) {
                random &= sorts_stably(x, rows[i], columns[j], threads);
                tied &= sorts_stably(y, rows[i], columns[j], threads);
            }
            free(x); free(y);
        }
    check(random, "lns_sort_f32, _f64: random columns, values and permutation");
    check(tied, "lns_sort_f32, _f64: ties and signed zeros stay in their order");
}

static void test_tile(void)
{
    enum { N = 5, STRIDE = 20, WIDTH = 3 };
    float *x = random_floats((N - 1) * STRIDE + WIDTH), row[LNS_LANES], before[LNS_LANES];
    double *wide = widened(x, (N - 1) * STRIDE + WIDTH), wide_row[LNS_LANES];
    int64_t *tile = NEW(int64_t, lns_tile_entries_f32(N)), *wide_tile = NEW(int64_t, lns_tile_entries_f64(N));
    int32_t index[LNS_LANES], wide_index[LNS_LANES];
    lns_tile_load_f32(tile, x, N, STRIDE, WIDTH);
    lns_tile_load_f64(wide_tile, wide, N, STRIDE, WIDTH);
    int right = 1;
    for (size_t i = 0; i < N; i++) {
        lns_tile_row_f32(row, index, tile, i, N);
        lns_tile_row_f64(wide_row, wide_index, wide_tile, i, N);
        for (size_t l = 0; l < LNS_LANES; l++) {
            double expected = l < WIDTH ? (double)x[i * STRIDE + l] : 0;
            right &= (double)row[l] == expected && wide_row[l] == expected;
            right &= index[l] == (int32_t)i && wide_index[l] == (int32_t)i;
        }
    }
    check(right, "lns_tile_load_f32, _f64: a narrow tile, zeros beside it");
    lns_tile_sort_f32(tile, N);
    lns_tile_sort_f64(wide_tile, N);
    right = 1;
    for (size_t i = 0; i < N; i++) {
        lns_tile_row_f32(row, index, tile, i, N);
        lns_tile_row_f64(wide_row, wide_index, wide_tile, i, N);
        for (size_t l = 0; l < LNS_LANES; l++) {
            right &= (double)row[l] == wide_row[l] && index[l] == wide_index[l] && (i == 0 || before[l] <= row[l]);
            right &= l < WIDTH ? x[(size_t)index[l] * STRIDE + l] == row[l] : index[l] == (int32_t)i;
        }
        memcpy(before, row, sizeof before);
    }
    check(right, "lns_tile_sort_f32, _f64: every lane by itself");
    free(x); free(wide); free(tile); free(wide_tile);
}

static void test_first_nonfinite(void)
{
    const size_t count = 9000, places[] = {8999, 8192, 8191, 4096, 4095, 1, 0};
    float *x = random_floats(count);
    x[17] = 3.4e38f;
    x[18] = 3.4e38f;
    double *wide = widened(x, count);
    int right = lns_first_nonfinite_f32(x, count) == count && lns_first_nonfinite_f64(wide, count) == count;
    for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
        x[places[k]] = k % 2 ? NAN : -INFINITY;
        wide[places[k]] = k % 2 ? (double)INFINITY : (double)NAN;
        right &= lns_first_nonfinite_f32(x, count) == places[k] && lns_first_nonfinite_f64(wide, count) == places[k];
    }
    check(right, "lns_first_nonfinite_f32, _f64: the first of several, around blocks");
    free(x); free(wide);
}

/* ---- lns_wasserstein ---- */

/* x holds each value a[i] * (sum of b) times, y each b[j] * (sum of a) times: then both have equally many, all of the
 * same mass, and the sorted copies pair up. One column of each; order as from stable_order. */
static double paired_cost(double *grad, const float *x, const float *y, const int32_t *x_order, const int32_t *y_order,
                          const int *a, const int *b, size_t n, size_t m, size_t columns, double p)
{
    int total_a = 0, total_b = 0;
    for (size_t i = 0; i < n; i++) total_a += a[i];
    for (size_t j = 0; j < m; j++) total_b += b[j];
    double cost = 0, mass = 1.0 / total_a / total_b;
    size_t j = 0;
    int used = 0;
    for (size_t i = 0; i < n; i++) {
        size_t from = (size_t)x_order[i];
        grad[from] = 0;
        for (int copy = 0; copy < a[from] * total_b; copy++) {
            while (used == b[y_order[j]] * total_a) j++, used = 0;
            used++;
            double difference = (double)x[from * columns] - (double)y[(size_t)y_order[j] * columns];
            double sign = (difference > 0) - (difference < 0);
            cost += mass * pow(fabs(difference), p);
            grad[from] += mass * p * sign * pow(fabs(difference), p - 1);
        }
    }
    return cost;
}

typedef struct {
    size_t n, m, columns;
    double p;
    int weighted, tied, threads;
} transport_case;

static int transports_as_pairs_do(transport_case t)
{
    size_t n = t.n, m = t.m, columns = t.columns;
    float *x = t.tied ? tied_floats(n * columns) : random_floats(n * columns);
    float *y = t.tied ? tied_floats(m * columns) : random_floats(m * columns);
    float *sorted = NEW(float, m * columns), *grad = NEW(float, n * columns);
    int32_t *index = NEW(int32_t, m * columns), *x_order = NEW(int32_t, n), *y_order = NEW(int32_t, m);
    int *a = NEW(int, n), *b = NEW(int, m);
    double *x_weights = NEW(double, n), *y_weights = NEW(double, m), *coefficient = NEW(double, columns);
    double *cost = NEW(double, columns), *alone = NEW(double, columns), *slope = NEW(double, n);
    double *wide = widened(x, n * columns), *wide_grad = NEW(double, n * columns), *wide_cost = NEW(double, columns);
    int total_a = 0, total_b = 0, right = 1;
    for (size_t i = 0; i < n; i++) total_a += a[i] = t.weighted ? (int)(i + 1) % 3 : 1;      /* zeros, not only */
    for (size_t j = 0; j < m; j++) total_b += b[j] = t.weighted ? (int)(j % 4) + (m == 1) : 1;
    for (size_t i = 0; i < n; i++) x_weights[i] = (double)a[i] / total_a;
    for (size_t j = 0; j < m; j++) y_weights[j] = (double)b[j] / total_b;
    for (size_t c = 0; c < columns; c++) coefficient[c] = 1 + (double)c;
    void *sort_scratch = allocate(lns_sort_scratch_f32(m));
    void *scratch = allocate((size_t)t.threads * lns_wasserstein_scratch_f32(n));
    void *wide_scratch = allocate((size_t)t.threads * lns_wasserstein_scratch_f64(n));
    lns_sort_f32(sorted, index, y, m, columns, sort_scratch, 1);
    double *wide_sorted = widened(sorted, m * columns);
    const double *wx = t.weighted ? x_weights : NULL, *wy = t.weighted ? y_weights : NULL;
    const int32_t *at = t.weighted ? index : NULL;
    lns_wasserstein_f32(cost, grad, x, sorted, at, wx, wy, coefficient, t.p, n, m, columns, scratch, t.threads);
    lns_wasserstein_f32(alone, NULL, x, sorted, at, wx, wy, NULL, t.p, n, m, columns, scratch, 1);
    lns_wasserstein_f64(wide_cost, wide_grad, wide, wide_sorted, at, wx, wy, NULL, t.p, n, m, columns, wide_scratch,
                        t.threads);
    for (size_t c = 0; c < columns; c++) {
        stable_order(x_order, x, n, columns, c);
        stable_order(y_order, y, m, columns, c);
        double expected = paired_cost(slope, x + c, y + c, x_order, y_order, a, b, n, m, columns, t.p);
        right &= is_close(cost[c], expected, 1e-12) && alone[c] == cost[c] && is_close(wide_cost[c], expected, 1e-12);
        for (size_t i = 0; i < n; i++) {
            right &= is_close((double)grad[i * columns + c], coefficient[c] * slope[i], 1e-6);
            right &= is_close(wide_grad[i * columns + c], slope[i], 1e-12);
        }
    }
    free(x); free(y); free(sorted); free(grad); free(index); free(x_order); free(y_order); free(a); free(b);
    free(x_weights); free(y_weights); free(coefficient); free(cost); free(alone); free(slope); free(wide);
    free(wide_grad); free(wide_cost); free(scratch); free(sort_scratch); free(wide_scratch); free(wide_sorted);
    return right;
}

static void test_wasserstein(void)
{
    const size_t counts[][2] = {{1, 1}, {1, 5}, {5, 1}, {2, 2}, {7, 7}, {4, 6}, {17, 16}, {33, 20}};
    const size_t columns[] = {1, 16, 17, 40};
    const double powers[] = {1, 1.5, 2, 3};
    const char *names[2][2] = {
        {"lns_wasserstein_f32, _f64: equal weights", "lns_wasserstein_f32, _f64: equal weights, ties"},
        {"lns_wasserstein_f32, _f64: weights, zeros among them", "lns_wasserstein_f32, _f64: weights, ties"},
    };
    for (int weighted = 0; weighted < 2; weighted++)
        for (int tied = 0; tied < 2; tied++) {
            int right = 1;
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
                for (size_t j = 0; j < sizeof columns / sizeof *columns; j++)
                    for (size_t k = 0; k < sizeof powers / sizeof *powers; k++) {
                        transport_case t = {counts[i][0], counts[i][1], columns[j], powers[k], weighted, tied, 1};
                        right &= transports_as_pairs_do(t);
                        t.threads = THREADS;
                        right &= transports_as_pairs_do(t);
                    }
            check(right, names[weighted][tied]);
        }
}

/* ---- lns_affine ---- */

typedef struct {
    size_t batch, tokens, dim;
    int first, pooled_only;
} affine_case;

static size_t place(affine_case t, size_t b, size_t k, size_t j)
{
    return t.first ? (b * t.dim + j) * t.tokens + k : (b * t.tokens + k) * t.dim + j;
}

/* Maps and pools h, whose padding (weight zero) holds infinities, forward and backward. */
static int maps_as_a_loop_does(affine_case t)
{
    size_t count = t.batch * t.tokens * t.dim, rows = t.batch * t.dim;
    float *h = random_floats(count), *scale = random_floats(t.dim), *shift = random_floats(t.dim);
    float *pool = NEW(float, t.batch * t.tokens), *out = NEW(float, count), *pooled = NEW(float, rows);
    float *grad_out = random_floats(count), *grad_pooled = random_floats(rows), *scratch = NEW(float, 2 * rows);
    float *grad_h = NEW(float, count), *grad_scale = NEW(float, t.dim), *grad_shift = NEW(float, t.dim);
    int right = 1;
    grad_pooled[0] = 0;
    for (size_t b = 0; b < t.batch; b++)
        for (size_t k = 0; k < t.tokens; k++) {
            int padding = t.tokens > 1 && (b + k) % 3 == 0;
            pool[b * t.tokens + k] = padding ? 0 : (float)(1 + draw() / 2);
            for (size_t j = 0; padding && j < t.dim; j++) {
                h[place(t, b, k, j)] = k % 2 ? INFINITY : NAN;
                grad_out[place(t, b, k, j)] = 0;
            }
        }
    const float *from_out = t.pooled_only ? NULL : grad_out;
    (t.first ? lns_affine_first_f32 : lns_affine_last_f32)(out, pooled, h, scale, shift, pool, t.batch, t.tokens, t.dim,
                                                           THREADS);
    (t.first ? lns_affine_first_grad_f32 : lns_affine_last_grad_f32)(
        grad_h, grad_scale, grad_shift, from_out, grad_pooled, h, scale, pool, scratch, t.batch, t.tokens, t.dim,
        THREADS);
    for (size_t j = 0; j < t.dim; j++) {
        double slope_scale = 0, slope_shift = 0, w = (double)scale[j];
        for (size_t b = 0; b < t.batch; b++) {
            double response = 0;
            for (size_t k = 0; k < t.tokens; k++) {
                size_t at = place(t, b, k, j);
                double weight = (double)pool[b * t.tokens + k], value = w * (double)h[at] + (double)shift[j];
                double g = (from_out ? (double)grad_out[at] : 0) + weight * (double)grad_pooled[b * t.dim + j];
                if (weight != 0) {
                    right &= is_close((double)out[at], value, 1e-6);
                    response += weight * value;
                    slope_scale += g * (double)h[at];
                } else {
                    right &= !isfinite(out[at]);
                }
                slope_shift += g;
                right &= is_close((double)grad_h[at], w * g, 1e-6);
            }
            right &= is_close((double)pooled[b * t.dim + j], response, 1e-5);
        }
        right &= is_close((double)grad_scale[j], slope_scale, 1e-5);
        right &= is_close((double)grad_shift[j], slope_shift, 1e-5);
    }
    free(h); free(scale); free(shift); free(pool); free(out); free(pooled); free(grad_out); free(grad_pooled);
    free(scratch); free(grad_h); free(grad_scale); free(grad_shift);
    return right;
}

static void test_affine(void)
{
    const size_t shapes[][3] = {{1, 1, 1}, {2, 3, 7}, {3, 5, 16}, {2, 17, 33}, {4, 2, 129}};
    const char *names[2][2] = {{"lns_affine_last_f32, _grad_f32", "lns_affine_last_grad_f32: responses only"},
                               {"lns_affine_first_f32, _grad_f32", "lns_affine_first_grad_f32: responses only"}};
    for (int first = 0; first < 2; first++)
        for (int pooled_only = 0; pooled_only < 2; pooled_only++) {
            int right = 1;
            for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
                affine_case t = {shapes[k][0], shapes[k][1], shapes[k][2], first, pooled_only};
                right &= maps_as_a_loop_does(t);
            }
            check(right, names[first][pooled_only]);
        }
}

static void test_affine_where_no_gradient_flows(void)
{
    float h[] = {INFINITY, 2}, scale[] = {1}, pool[] = {0.5f, 0.5f}, none[] = {0};
    float grad_h[2], grad_scale[1], grad_shift[1], scratch[2];
    lns_affine_last_grad_f32(grad_h, grad_scale, grad_shift, NULL, none, h, scale, pool, scratch, 1, 2, 1, 1);
    int right = grad_scale[0] == 0 && grad_shift[0] == 0 && grad_h[0] == 0 && grad_h[1] == 0;
    lns_affine_first_grad_f32(grad_h, grad_scale, grad_shift, NULL, none, h, scale, pool, scratch, 1, 2, 1, 1);
    check(right && grad_scale[0] == 0 && grad_shift[0] == 0, "lns_affine_*_grad_f32: no gradient meets an infinity");
}

/* ---- lns_prox ---- */

static double penalty_of(const double *u, const int64_t *offsets, size_t groups, double l1, double group, double ridge)
{
    double total = 0;
    for (size_t k = 0; k < groups; k++) {
        double square = 0;
        for (int64_t j = offsets[k]; j < offsets[k + 1]; j++) {
            total += l1 * fabs(u[j]) + ridge * u[j] * u[j];
            square += u[j] * u[j];
        }
        total += group * sqrt((double)(offsets[k + 1] - offsets[k])) * sqrt(square);
    }
    return total;
}

static void test_prox(void)
{
    enum { GROUPS = 4 };
    const int64_t ends[] = {0, 1, 1, 6, 40};                  /* one of them empty */
    int64_t *offsets = NEW(int64_t, GROUPS + 1);
    memcpy(offsets, ends, sizeof ends);
    size_t count = (size_t)offsets[GROUPS];
    float *v = random_floats(count), *out = NEW(float, count);
    double *u = NEW(double, count), *near = NEW(double, count);
    int value = 1, best = 1, in_place = 1, removed = 1, identity = 1;
    for (int k = 0; k < 32; k++) {
        double l1 = k & 1 ? 0.1 : 0, group = k & 2 ? 0.2 : 0, ridge = k & 4 ? 0.3 : 0, step = k & 8 ? 1.5 : 0.5;
        float center = k & 16 ? 1.0f : 0.0f;
        for (size_t j = 0; j < count; j++) u[j] = (double)v[j] - (double)center;
        value &= is_close(lns_penalty_f32(v, center, offsets, GROUPS, l1, group, ridge),
                          penalty_of(u, offsets, GROUPS, l1, group, ridge), 1e-12);
        lns_prox_f32(out, v, center, offsets, GROUPS, l1, group, ridge, step);
        double least = INFINITY;
        for (int trial = 0; trial < 200; trial++) {           /* trial 0 is the prox itself */
            double size = trial ? pow(10, -(trial % 4)) : 0, distance = 0;
            for (size_t j = 0; j < count; j++) {
                near[j] = (double)out[j] - (double)center + size * draw();
                distance += (near[j] - u[j]) * (near[j] - u[j]);
            }
            double objective = penalty_of(near, offsets, GROUPS, l1, group, ridge) + distance / (2 * step);
            if (trial) best &= objective >= least - 1e-5;
            else least = objective;
        }
        memcpy(near, v, count * sizeof *v);                   /* bytes of v, borrowed room */
        lns_prox_f32(v, v, center, offsets, GROUPS, l1, group, ridge, step);
        in_place &= !memcmp(v, out, count * sizeof *v);
        memcpy(v, near, count * sizeof *v);
        lns_prox_f32(out, v, center, offsets, GROUPS, l1, group, ridge, 0);
        identity &= !memcmp(v, out, count * sizeof *v);
        lns_prox_f32(out, v, center, offsets, GROUPS, k & 1 ? 1e9 : 0, k & 1 ? 0 : 1e9, ridge, step);
        for (size_t j = 0; j < count; j++) removed &= out[j] == center && !signbit(out[j]);
    }
    check(value, "lns_penalty_f32");
    check(best, "lns_prox_f32: no better point nearby");
    check(in_place, "lns_prox_f32: in place");
    check(identity, "lns_prox_f32: a step of zero");
    check(removed, "lns_prox_f32: huge strengths leave the center, exactly");
    free(offsets); free(v); free(out); free(u); free(near);
}

/* ---- lns_optim ---- */

static void test_optim_of(size_t count)
{
    float *start = random_floats(count), *gradient = random_floats(count);
    float *x = NEW(float, count), *out = NEW(float, count);
    float *velocity = random_floats(count), *first = random_floats(count), *second = random_floats(count);
    int step = 1, sgd = 1, adam = 1, movement;
    lns_gradient_step_f32(out, start, gradient, 0.25, count);
    memcpy(x, start, count * sizeof *x);
    lns_gradient_step_f32(x, x, gradient, 0.25, count);
    step &= !memcmp(x, out, count * sizeof *x);
    memcpy(x, start, count * sizeof *x);
    lns_sgd_f32(x, NULL, gradient, 0.25, 0, count);
    sgd &= !memcmp(x, out, count * sizeof *x);
    double slope, square, expected_slope = 0, expected_square = 0;
    lns_movement_f32(&slope, &square, out, start, gradient, count);
    for (size_t j = 0; j < count; j++) {
        double move = (double)out[j] - (double)start[j];
        expected_slope += move * (double)gradient[j];
        expected_square += move * move;
        step &= is_close(move, -0.25 * (double)gradient[j], 1e-6);
    }
    movement = is_close(slope, expected_slope, 1e-12) && is_close(square, expected_square, 1e-12);
    memcpy(out, velocity, count * sizeof *out);
    memcpy(x, start, count * sizeof *x);
    lns_sgd_f32(x, velocity, gradient, 0.25, 0.5, count);
    for (size_t j = 0; j < count; j++) {
        double speed = 0.5 * (double)out[j] + (double)gradient[j];
        sgd &= is_close((double)velocity[j], speed, 1e-6);
        sgd &= is_close((double)x[j], (double)start[j] - 0.25 * speed, 1e-6);
    }
    for (size_t j = 0; j < count; j++) {
        first[j] = second[j] = 0;
        x[j] = start[j];
        gradient[j] += gradient[j] > 0 ? 0.1f : -0.1f;
    }
    for (size_t k = 1; k <= 3; k++) lns_adam_f32(x, first, second, gradient, 0.01, 0.9, 0.99, 1e-8, k, count);
    for (size_t j = 0; j < count; j++)                        /* a steady gradient: three whole steps */
        adam &= is_close((double)x[j], (double)start[j] - 0.03 * (gradient[j] > 0 ? 1 : -1), 1e-5);
    check(step, "lns_gradient_step_f32");
    check(sgd, "lns_sgd_f32");
    check(adam, "lns_adam_f32");
    check(movement, "lns_movement_f32");
    free(start); free(gradient); free(x); free(out); free(velocity); free(first); free(second);
}

static void test_cosine(void)
{
    int right = lns_cosine(0.1, 0.01, 0, 1) == 0.1 && is_close(lns_cosine(0.1, 0.01, 7, 7), 0.01, 1e-15);
    right &= is_close(lns_cosine(3, 1, 50, 100), 2, 1e-15) && is_close(lns_cosine(1, 0, 1, 3), 0.75, 1e-15);
    check(right, "lns_cosine");
}

int main(void)
{
    test_tile();
    test_sort();
    test_first_nonfinite();
    test_wasserstein();
    test_affine();
    test_affine_where_no_gradient_flows();
    test_prox();
    test_optim_of(1);
    test_optim_of(33);
    test_cosine();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
