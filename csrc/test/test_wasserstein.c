#include "check.h"
#include "lns_sort.h"
#include "lns_wasserstein.h"

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
    double *wide_alone = NEW(double, columns);
    lns_wasserstein_f64(wide_alone, NULL, wide, wide_sorted, at, wx, wy, NULL, t.p, n, m, columns, wide_scratch, 1);
    for (size_t c = 0; c < columns; c++) {
        stable_order(x_order, x, n, columns, c);
        stable_order(y_order, y, m, columns, c);
        double expected = paired_cost(slope, x + c, y + c, x_order, y_order, a, b, n, m, columns, t.p);
        right &= is_close(cost[c], expected, 1e-12) && is_close(wide_cost[c], expected, 1e-12);
        right &= is_close(alone[c], expected, 1e-12) && is_close(wide_alone[c], expected, 1e-12);
        for (size_t i = 0; i < n; i++) {
            right &= is_close((double)grad[i * columns + c], coefficient[c] * slope[i], 1e-6);
            right &= is_close(wide_grad[i * columns + c], slope[i], 1e-12);
        }
    }
    free(x); free(y); free(sorted); free(grad); free(index); free(x_order); free(y_order); free(a); free(b);
    free(x_weights); free(y_weights); free(coefficient); free(cost); free(alone); free(slope); free(wide);
    free(wide_grad); free(wide_cost); free(scratch); free(sort_scratch); free(wide_scratch); free(wide_sorted);
    free(wide_alone);
    return right;
}

void test_wasserstein(void)
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
