/* Closed-form maps between two samples, and ranking, against sums over pairs and over a fine grid of quantiles. */
#include "check.h"
#include "lns_rank.h"
#include "lns_transport.h"

typedef struct {
    float *x, *y;
    double *wide_x, *wide_y;
    size_t n, m, columns;
} samples_t;

static samples_t new_samples(size_t n, size_t m, size_t columns, int tied)
{
    samples_t s = {NULL, NULL, NULL, NULL, n, m, columns};
    s.x = tied ? tied_floats(n * columns) : random_floats(n * columns);
    s.y = tied ? tied_floats(m * columns) : random_floats(m * columns);
    for (size_t k = 0; k < n * columns && !tied; k++) s.x[k] += 0.25f;
    s.wide_x = widened(s.x, n * columns);
    s.wide_y = widened(s.y, m * columns);
    return s;
}

static void free_samples(samples_t s)
{
    free(s.x); free(s.y); free(s.wide_x); free(s.wide_y);
}

/* ---- maps ---- */

static double mean_of(const double *x, size_t n, size_t columns)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i * columns];
    return sum / (double)n;
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* A column sorted, each value so many times. */
static double *quantiles(const double *x, size_t n, size_t columns, size_t times)
{
    double *fine = NEW(double, n * times);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < times; k++) fine[i * times + k] = x[i * columns];
    qsort(fine, n * times, sizeof *fine, compare);
    return fine;
}

/* Covariance of two columns of so many values, over their number. */
static double covariance(const double *a, const double *b, size_t count, size_t columns)
{
    double sum = 0, center = mean_of(a, count, columns), other = mean_of(b, count, columns);
    for (size_t i = 0; i < count; i++) sum += (a[i * columns] - center) * (b[i * columns] - other);
    return sum / (double)count;
}

/* Whether weight * x + bias is the map of this weight that takes mean to mean. */
static int is_map(double weight, double bias, double right, samples_t s, size_t c)
{
    double y_mean = mean_of(s.wide_y + c, s.m, s.columns), x_mean = mean_of(s.wide_x + c, s.n, s.columns);
    return is_close(weight, right, 1e-10) && is_close(bias, y_mean - right * x_mean, 1e-10);
}

static int maps_are_right(samples_t s, const double *shift, const double *gauss, const double *linear)
{
    int right = 1;
    for (size_t c = 0; c < s.columns; c++) {
        const double *x = s.wide_x + c, *y = s.wide_y + c;
        double n = (double)s.n, m = (double)s.m, spread = covariance(x, x, s.n, s.columns);
        right &= is_map(1, shift[c], 1, s, c);
        double ratio = 1;
        if (s.n > 1 && s.m > 1 && spread > 0)
            ratio = sqrt(covariance(y, y, s.m, s.columns) * m / (m - 1) / (spread * n / (n - 1)));
        right &= is_map(gauss[c], gauss[s.columns + c], ratio, s, c);
        double *fine_x = quantiles(x, s.n, s.columns, s.m), *fine_y = quantiles(y, s.m, s.columns, s.n);
        double slope = spread > 0 ? covariance(fine_x, fine_y, s.n * s.m, 1) / spread : 1;
        right &= is_map(linear[c], linear[s.columns + c], slope, s, c);
        free(fine_x); free(fine_y);
    }
    return right;
}

/* Both precisions agree to the last bit, as the sums are double in either; and so do all numbers of threads. */
static int check_maps(samples_t s, int threads)
{
    size_t columns = s.columns, bytes = 5 * columns * sizeof(double);
    double *got = NEW(double, 5 * columns), *wide = NEW(double, 5 * columns);
    void *scratch = allocate((size_t)threads * lns_linear_map_scratch_f32(s.n, s.m));
    void *wide_scratch = allocate((size_t)threads * lns_linear_map_scratch_f64(s.n, s.m));
    double *gauss = got + columns, *linear = gauss + 2 * columns;
    lns_mean_shift_f32(got, s.x, s.y, s.n, s.m, columns, threads);
    lns_gaussian_map_f32(gauss, gauss + columns, s.x, s.y, s.n, s.m, columns, threads);
    lns_linear_map_f32(linear, linear + columns, s.x, s.y, s.n, s.m, columns, scratch, threads);
    lns_mean_shift_f64(wide, s.wide_x, s.wide_y, s.n, s.m, columns, threads);
    lns_gaussian_map_f64(wide + columns, wide + 2 * columns, s.wide_x, s.wide_y, s.n, s.m, columns, threads);
    lns_linear_map_f64(wide + 3 * columns, wide + 4 * columns, s.wide_x, s.wide_y, s.n, s.m, columns, wide_scratch,
                       threads);
    int right = maps_are_right(s, got, gauss, linear) && !memcmp(got, wide, bytes);
    free(got); free(wide); free(scratch); free(wide_scratch);
    return right;
}

static int constants_are_exact(float value)
{
    float x[7 * 3], y[7 * 3];
    double weight[3], bias[3];
    void *scratch = allocate(lns_linear_map_scratch_f32(7, 7));
    int right = 1;
    for (size_t k = 0; k < 7 * 3; k++) {
        x[k] = value;
        y[k] = (float)draw();
    }
    for (int way = 0; way < 2; way++) {
        const float *from = way ? y : x, *to = way ? x : y;
        lns_gaussian_map_f32(weight, bias, from, to, 7, 7, 3, 1);
        for (size_t c = 0; c < 3; c++) right &= way ? weight[c] == 0 && bias[c] == (double)value : weight[c] == 1;
        lns_linear_map_f32(weight, bias, from, to, 7, 7, 3, scratch, 1);
        for (size_t c = 0; c < 3; c++) right &= way ? weight[c] == 0 && bias[c] == (double)value : weight[c] == 1;
    }
    free(scratch);
    return right;
}

/* ---- ranking ---- */

/* Scores of one column from their definitions, which count pairs. */
static void count_pairs(double *auroc, double *precision, samples_t s, size_t c)
{
    double pairs = 0, sum = 0;
    for (size_t i = 0; i < s.n; i++) {
        double at = s.wide_x[i * s.columns + c], hits = 0, misses = 0;
        for (size_t k = 0; k < s.n; k++) hits += s.wide_x[k * s.columns + c] >= at;
        for (size_t j = 0; j < s.m; j++) {
            double other = s.wide_y[j * s.columns + c];
            misses += other >= at;
            pairs += at > other ? 1 : at == other ? 0.5 : 0;
        }
        sum += hits / (hits + misses);
    }
    *auroc = pairs / ((double)s.n * (double)s.m);
    *precision = sum / (double)s.n;
}

static int check_rank(samples_t s, int threads)
{
    size_t columns = s.columns, bytes = 2 * columns * sizeof(double);
    double *got = NEW(double, 2 * columns), *wide = NEW(double, 2 * columns), auroc, precision;
    void *scratch = allocate((size_t)threads * lns_rank_scratch_f32(s.n + s.m));
    void *wide_scratch = allocate((size_t)threads * lns_rank_scratch_f64(s.n + s.m));
    lns_rank_f32(got, got + columns, s.x, s.y, s.n, s.m, columns, scratch, threads);
    lns_rank_f64(wide, wide + columns, s.wide_x, s.wide_y, s.n, s.m, columns, wide_scratch, threads);
    int right = !memcmp(got, wide, bytes);
    for (size_t c = 0; c < columns; c++) {
        count_pairs(&auroc, &precision, s, c);
        right &= is_close(got[c], auroc, 1e-14) && is_close(got[columns + c], precision, 1e-12);
    }
    free(got); free(wide); free(scratch); free(wide_scratch);
    return right;
}

void test_samples(void)
{
    const size_t counts[][2] = {{1, 1}, {1, 5}, {5, 1}, {3, 3}, {4, 6}, {8, 8}, {16, 17}, {32, 32}, {33, 20}};
    const size_t columns[] = {1, 31, 33, 64, 65, 130};
    for (int tied = 0; tied < 2; tied++) {
        int maps = 1, ranks = 1;
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            for (size_t k = 0; k < sizeof columns / sizeof *columns; k++) {
                samples_t s = new_samples(counts[i][0], counts[i][1], columns[k], tied);
                for (int threads = 1; threads <= THREADS; threads += THREADS - 1) {
                    maps &= check_maps(s, threads);
                    ranks &= check_rank(s, threads);
                }
                free_samples(s);
            }
        check(maps, tied ? "lns_mean_shift, _gaussian_map, _linear_map: ties" : "lns_mean_shift, _gaussian_map, "
              "_linear_map: as on a fine grid of quantiles");
        check(ranks, tied ? "lns_rank_f32, _f64: ties" : "lns_rank_f32, _f64: as counted pair by pair");
    }
    check(constants_are_exact(0.1f) && constants_are_exact(-0.0f) && constants_are_exact(-3e30f),
          "lns_gaussian_map, _linear_map: constant columns");
}
