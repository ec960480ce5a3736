/* Maps in closed form, against sums over pairs of quantiles on a fine grid. */
#include "check.h"
#include "lns_transport.h"

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

void test_transport(void)
{
    for (int tied = 0; tied < 2; tied++)
        check(holds_for_samples(check_maps, tied), tied ? "lns_mean_shift, _gaussian_map, _linear_map: ties"
              : "lns_mean_shift, _gaussian_map, _linear_map: as on a fine grid of quantiles");
    check(constants_are_exact(0.1f) && constants_are_exact(-0.0f) && constants_are_exact(-3e30f),
          "lns_gaussian_map, _linear_map: constant columns");
}
