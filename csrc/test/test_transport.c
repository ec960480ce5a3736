#include "check.h"
#include "lns_sort.h"
#include "lns_tile.h"
#include "lns_wasserstein.h"

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

/* n rows of width columns, among more: whole groups of rows, parts of one, narrow and full tiles. */
static int sorts_every_lane(size_t n, size_t width)
{
    size_t stride = LNS_LANES + 20;
    float *x = random_floats((n - 1) * stride + width), row[LNS_LANES], before[LNS_LANES];
    double *wide = widened(x, (n - 1) * stride + width), wide_row[LNS_LANES];
    int64_t *tile = NEW(int64_t, lns_tile_entries_f32(n)), *wide_tile = NEW(int64_t, lns_tile_entries_f64(n));
    lns_tile_sort_f32(tile, x, n, stride, width);
    lns_tile_sort_f64(wide_tile, wide, n, stride, width);
    int64_t *bare_tile = NEW(int64_t, lns_tile_entries_values_f64(n));
    lns_tile_sort_values_f64(bare_tile, wide, n, stride, width);
    int right = 1;
    for (size_t i = 0; i < n; i++) {
        right &= memcmp(bare_tile + i * LNS_PITCH, wide_tile + i * LNS_PITCH, LNS_LANES * sizeof *bare_tile) == 0;
        const int64_t *places = lns_tile_places_f32(tile, i, n), *wide_places = lns_tile_places_f64(wide_tile, i, n);
        lns_tile_values_f32(row, tile, i);
        lns_tile_values_f64(wide_row, wide_tile, i);
        for (size_t l = 0; l < LNS_LANES; l++) {
            size_t at = (uint32_t)places[l] / LNS_LANES;
            right &= (double)row[l] == wide_row[l] && (i == 0 || before[l] <= row[l]);
            right &= (uint32_t)places[l] == (uint32_t)wide_places[l] && (uint32_t)places[l] % LNS_LANES == l;
            right &= l < width ? x[at * stride + l] == row[l] : row[l] == 0 && at == i;
        }
        memcpy(before, row, sizeof before);
    }
    free(x); free(wide); free(tile); free(wide_tile); free(bare_tile);
    return right;
}

static void test_tile(void)
{
    const size_t rows[] = {1, 5, 16, 17, 32, 40};
    int right = 1;
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        right &= sorts_every_lane(rows[k], 3) && sorts_every_lane(rows[k], LNS_LANES);
    check(right, "lns_tile_sort_f32, _f64, _values_f64: every lane by itself, zeros beside a narrow tile");
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

void test_transport(void)
{
    test_tile();
    test_sort();
    test_first_nonfinite();
    test_wasserstein();
}
