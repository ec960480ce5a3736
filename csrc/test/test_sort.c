#include "check.h"
#include "lns_sort.h"

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

static void test_columns(void)
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

void test_sort(void)
{
    test_columns();
    test_first_nonfinite();
}
