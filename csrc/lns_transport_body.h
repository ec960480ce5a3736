/* Included by lns_transport.c once per precision; not a header of its own. */

/* ---- moments of a tile of columns, BLOCK of them at a time ---- */

/* width is a constant where these are inlined, but for the last columns of all. */
LNS_INLINE void NAME(add_shift)(moments_t *restrict of, size_t at, const REAL *restrict x, size_t n, size_t columns,
                                size_t width)
{
    double sum[BLOCK] = {0}, first[BLOCK] = {0};
    for (size_t l = 0; l < width; l++) first[l] = (double)x[l];
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < width; l++) sum[l] += (double)x[i * columns + l] - first[l];
    for (size_t l = 0; l < width; l++) {
        of->first[at + l] = first[l];
        of->shift[at + l] = sum[l] / (double)n;
    }
}

LNS_INLINE void NAME(add_squares)(moments_t *restrict of, size_t at, const REAL *restrict x, size_t n, size_t columns,
                                  size_t width)
{
    double sum[BLOCK] = {0}, first[BLOCK] = {0}, shift[BLOCK] = {0};
    memcpy(first, of->first + at, width * sizeof *first);
    memcpy(shift, of->shift + at, width * sizeof *shift);
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < width; l++) {
            double apart = (double)x[i * columns + l] - first[l] - shift[l];
            sum[l] += apart * apart;
        }
    memcpy(of->squares + at, sum, width * sizeof *sum);
}

LNS_CLONES static void NAME(shifts)(moments_t *of, const REAL *x, size_t n, size_t columns, size_t width)
{
    for (size_t l = 0; l < width; l += BLOCK)
        if (l + BLOCK <= width) NAME(add_shift)(of, l, x + l, n, columns, BLOCK);
        else NAME(add_shift)(of, l, x + l, n, columns, width - l);
}

/* Needs the shifts. */
LNS_CLONES static void NAME(squares)(moments_t *of, const REAL *x, size_t n, size_t columns, size_t width)
{
    for (size_t l = 0; l < width; l += BLOCK)
        if (l + BLOCK <= width) NAME(add_squares)(of, l, x + l, n, columns, BLOCK);
        else NAME(add_squares)(of, l, x + l, n, columns, width - l);
}

void NAME(lns_mean_shift)(double *bias, const REAL *x, const REAL *y, size_t n, size_t m, size_t columns, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        moments_t source, target;
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(shifts)(&source, x + first, n, columns, width);
        NAME(shifts)(&target, y + first, m, columns, width);
        for (size_t l = 0; l < width; l++) bias[first + l] = mean_of(&target, l) - mean_of(&source, l);
    }
}

void NAME(lns_gaussian_map)(double *weight, double *bias, const REAL *x, const REAL *y, size_t n, size_t m,
                            size_t columns, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        moments_t source, target;
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(shifts)(&source, x + first, n, columns, width);
        NAME(shifts)(&target, y + first, m, columns, width);
        NAME(squares)(&source, x + first, n, columns, width);
        NAME(squares)(&target, y + first, m, columns, width);
        for (size_t l = 0; l < width; l++) {
            double ratio = 1;
            if (n > 1 && m > 1 && source.squares[l] > 0)
                ratio = sqrt(target.squares[l] / (double)(m - 1)) / sqrt(source.squares[l] / (double)(n - 1));
            weight[first + l] = ratio;
            bias[first + l] = mean_of(&target, l) - ratio * mean_of(&source, l);
        }
    }
}

/* ---- least squares between quantiles ---- */

/* Row i of a sorted tile, as differences from the mean. */
LNS_INLINE void NAME(row_apart)(double *restrict apart, const moments_t *restrict of, const int64_t *restrict tile,
                                size_t i)
{
    REAL values[LNS_LANES];
    NAME(lns_tile_values)(values, tile, i);
    for (size_t l = 0; l < LNS_LANES; l++) apart[l] = (double)values[l] - of->first[l] - of->shift[l];
}

/* product = n * the integral of the product of both quantile functions, each less its mean. All lanes cut the unit
 * interval at the same places; mass is counted in units of 1/(n*m), in integers, so that no cut is lost or doubled. */
LNS_CLONES static void NAME(products)(double *restrict product, const moments_t *source, const moments_t *target,
                                      const int64_t *x_tile, const int64_t *y_tile, size_t n, size_t m)
{
    double x[LNS_LANES], y[LNS_LANES] = {0};
    size_t j = 0, left_y = 0;
    for (size_t i = 0; i < n; i++) {
        NAME(row_apart)(x, source, x_tile, i);
        for (size_t left_x = m; left_x > 0;) {
            if (left_y == 0) {
                NAME(row_apart)(y, target, y_tile, j++);
                left_y = n;
            }
            size_t run = left_x < left_y ? left_x : left_y;
            double mass = (double)run / (double)m;
            for (size_t l = 0; l < LNS_LANES; l++) product[l] += mass * (x[l] * y[l]);
            left_x -= run;
            left_y -= run;
        }
    }
}

size_t NAME(lns_linear_map_scratch)(size_t n, size_t m)
{
    return (NAME(lns_tile_entries_values)(n) + NAME(lns_tile_entries_values)(m)) * sizeof(int64_t);
}

void NAME(lns_linear_map)(double *weight, double *bias, const REAL *x, const REAL *y, size_t n, size_t m, size_t columns,
                          void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        moments_t source = {{0}, {0}, {0}}, target = {{0}, {0}, {0}};
        double product[LNS_LANES] = {0};
        int64_t *x_tile = (int64_t *)(void *)((char *)scratch
                                              + (size_t)lns_thread() * NAME(lns_linear_map_scratch)(n, m));
        int64_t *y_tile = x_tile + NAME(lns_tile_entries_values)(n);
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(shifts)(&source, x + first, n, columns, width);
        NAME(shifts)(&target, y + first, m, columns, width);
        NAME(squares)(&source, x + first, n, columns, width);
        NAME(lns_tile_sort_values)(x_tile, x + first, n, columns, width);
        NAME(lns_tile_sort_values)(y_tile, y + first, m, columns, width);
        NAME(products)(product, &source, &target, x_tile, y_tile, n, m);
        for (size_t l = 0; l < width; l++) {
            double slope = source.squares[l] > 0 ? product[l] / source.squares[l] : 1;
            weight[first + l] = slope;
            bias[first + l] = mean_of(&target, l) - slope * mean_of(&source, l);
        }
    }
}
