/* Included by lns_wasserstein.c once per precision; not a header of its own. */

/* Scratch of one thread: a tile of sources and, where a gradient is asked for, a number for each of its places. */
typedef struct {
    int64_t *tile;
    REAL *at_place;
} NAME(work_t);

size_t NAME(lns_wasserstein_scratch)(size_t n)
{
    return NAME(lns_tile_entries)(n) * sizeof(int64_t) + n * LNS_LANES * sizeof(REAL);
}

/* Put the numbers of one sorted row where its samples stand. Scalar stores, from code without clones: they take half as
 * long as the scatter instructions of AVX-512. */
LNS_NOINLINE void NAME(scatter)(REAL *restrict at_place, const REAL *restrict row, const int64_t *restrict places)
{
    LNS_UNROLL
    for (size_t l = 0; l < LNS_LANES; l++) at_place[(uint32_t)places[l]] = row[l];
}

/* ---- n = m, equal weights: the i-th smallest source meets the i-th smallest target ---- */

/* For every source, the target that it meets. */
static void NAME(match)(NAME(work_t) work, const REAL *y, size_t n, size_t columns, size_t width)
{
    REAL padded[LNS_LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        const REAL *row = y + i * columns;
        if (width < LNS_LANES) row = memcpy(padded, row, width * sizeof *row);
        NAME(scatter)(work.at_place, row, NAME(lns_tile_places)(work.tile, i, n));
    }
}

/* Sources against what they meet, in the order in which they stand, a few lanes at a time: their sums stay in registers.
 * p is a constant where this is inlined, and so is lanes but for the last columns of all. */
LNS_INLINE void NAME(compare)(double *restrict cost, REAL *restrict grad, const REAL *restrict x,
                              const REAL *restrict met, const REAL *restrict scale, size_t n, size_t columns, double p,
                              size_t lanes)
{
    double sum[BLOCK] = {0};
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < lanes; l++) {
            double slope;
            sum[l] += power_cost((double)x[i * columns + l] - (double)met[i * LNS_LANES + l], p, &slope);
            if (grad) grad[i * columns + l] = scale[l] * (REAL)slope;
        }
    for (size_t l = 0; l < lanes; l++) cost[l] = sum[l] / (double)n;
}

LNS_INLINE void NAME(compare_all)(double *cost, REAL *grad, const REAL *x, const REAL *met, const REAL *scale, size_t n,
                                  size_t columns, size_t width, double p)
{
    for (size_t l = 0; l < width; l += BLOCK) {
        REAL *out = grad ? grad + l : NULL;
        if (l + BLOCK <= width) NAME(compare)(cost + l, out, x + l, met + l, scale + l, n, columns, p, BLOCK);
        else NAME(compare)(cost + l, out, x + l, met + l, scale + l, n, columns, p, width - l);
    }
}

LNS_CLONES static void NAME(compare_p1)(double *cost, REAL *grad, const REAL *x, const REAL *met, const REAL *scale,
                                        size_t n, size_t columns, size_t width)
{
    NAME(compare_all)(cost, grad, x, met, scale, n, columns, width, 1);
}

LNS_CLONES static void NAME(compare_p2)(double *cost, REAL *grad, const REAL *x, const REAL *met, const REAL *scale,
                                        size_t n, size_t columns, size_t width)
{
    NAME(compare_all)(cost, grad, x, met, scale, n, columns, width, 2);
}

/* ---- the same, where nobody asks for the gradient: sorted sources need no places ---- */

LNS_INLINE void NAME(cost_sorted)(double *restrict cost, const int64_t *restrict tile, const REAL *restrict y, size_t n,
                                  size_t columns, size_t width, double p)
{
    REAL values[LNS_LANES];
    double unused;
    for (size_t i = 0; i < n; i++) {
        NAME(lns_tile_values)(values, tile, i);
        for (size_t l = 0; l < width; l++)
            cost[l] += power_cost((double)values[l] - (double)y[i * columns + l], p, &unused);
    }
    for (size_t l = 0; l < width; l++) cost[l] /= (double)n;
}

LNS_CLONES static void NAME(cost_sorted_p1)(double *cost, const int64_t *tile, const REAL *y, size_t n, size_t columns,
                                            size_t width)
{
    NAME(cost_sorted)(cost, tile, y, n, columns, width, 1);
}

LNS_CLONES static void NAME(cost_sorted_p2)(double *cost, const int64_t *tile, const REAL *y, size_t n, size_t columns,
                                            size_t width)
{
    NAME(cost_sorted)(cost, tile, y, n, columns, width, 2);
}

/* ---- n != m, equal weights: all lanes cut the unit interval at the same places ---- */

/* One run of mass: add mass * |a - b|^p for every lane. p is a constant where this is inlined. */
static inline void NAME(add_run)(double *restrict cost, double *restrict slope, const REAL *restrict a,
                                 const REAL *restrict b, double mass, double p)
{
    for (size_t l = 0; l < LNS_LANES; l++) {
        double derivative, value = power_cost((double)a[l] - (double)b[l], p, &derivative);
        cost[l] += mass * value;
        slope[l] += mass * derivative;
    }
}

/* Mass is counted in units of 1/(n*m), in integers, so that no cut is ever lost or doubled by rounding. */
static inline void NAME(cost_runs)(double *restrict cost, NAME(work_t) work, const REAL *y, size_t n, size_t m,
                                   size_t columns, size_t width, double p)
{
    REAL values[LNS_LANES], target[LNS_LANES] = {0}, rounded[LNS_LANES];
    double unit = 1.0 / ((double)n * (double)m);
    size_t j = 0, left_y = 0;
    for (size_t i = 0; i < n; i++) {
        double slope[LNS_LANES] = {0};
        NAME(lns_tile_values)(values, work.tile, i);
        for (size_t left_x = m; left_x > 0;) {
            if (left_y == 0) {
                memcpy(target, y + j++ * columns, width * sizeof *target);
                left_y = n;
            }
            size_t run = left_x < left_y ? left_x : left_y;
            NAME(add_run)(cost, slope, values, target, (double)run * unit, p);
            left_x -= run;
            left_y -= run;
        }
        if (!work.at_place) continue;
        for (size_t l = 0; l < LNS_LANES; l++) rounded[l] = (REAL)slope[l];
        NAME(scatter)(work.at_place, rounded, NAME(lns_tile_places)(work.tile, i, n));
    }
}

LNS_CLONES static void NAME(cost_runs_p1)(double *cost, NAME(work_t) work, const REAL *y, size_t n, size_t m,
                                          size_t columns, size_t width)
{
    NAME(cost_runs)(cost, work, y, n, m, columns, width, 1);
}

LNS_CLONES static void NAME(cost_runs_p2)(double *cost, NAME(work_t) work, const REAL *y, size_t n, size_t m,
                                          size_t columns, size_t width)
{
    NAME(cost_runs)(cost, work, y, n, m, columns, width, 2);
}

/* ---- given weights: every lane sorts them differently and so cuts the unit interval elsewhere ---- */

static void NAME(cost_weighted)(double *restrict cost, NAME(work_t) work, const REAL *y, const int32_t *y_index,
                                const double *x_weights, const double *y_weights, size_t n, size_t m,
                                size_t columns, size_t width, double p)
{
    REAL values[LNS_LANES], slope[LNS_LANES] = {0};
    size_t j[LNS_LANES] = {0};                                /* where each lane is in y, and the mass left there */
    double left_y[LNS_LANES];
    for (size_t l = 0; l < width; l++) left_y[l] = y_weights[y_index[l]];
    for (size_t i = 0; i < n; i++) {
        const int64_t *places = NAME(lns_tile_places)(work.tile, i, n);
        NAME(lns_tile_values)(values, work.tile, i);
        for (size_t l = 0; l < width; l++) {
            double total = 0;
            for (double left_x = x_weights[(uint32_t)places[l] / LNS_LANES]; left_x > 0;) {
                while (left_y[l] <= 0 && j[l] + 1 < m) left_y[l] = y_weights[y_index[++j[l] * columns + l]];
                /* The last value takes what rounding leaves over. */
                double run = left_x < left_y[l] || j[l] + 1 == m ? left_x : left_y[l], derivative;
                cost[l] += run * power_cost((double)values[l] - (double)y[j[l] * columns + l], p, &derivative);
                total += run * derivative;
                left_x -= run;
                left_y[l] -= run;
            }
            slope[l] = (REAL)total;
        }
        if (work.at_place) NAME(scatter)(work.at_place, slope, places);
    }
}

/* ---- a tile ---- */

LNS_CLONES static void NAME(scale_rows)(REAL *restrict grad, const REAL *restrict slope, const REAL *restrict scale,
                                        size_t n, size_t columns, size_t width)
{
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < width; l++) grad[i * columns + l] = scale[l] * slope[i * LNS_LANES + l];
}

void NAME(lns_wasserstein)(double *cost, REAL *grad, const REAL *x, const REAL *y, const int32_t *y_index,
                           const double *x_weights, const double *y_weights, const double *coefficient, double p,
                           size_t n, size_t m, size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    int paired = n == m && !x_weights;
    double mass = paired ? 1 / (double)n : 1;
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        NAME(work_t) work;
        work.tile = (int64_t *)(void *)((char *)scratch + (size_t)lns_thread() * NAME(lns_wasserstein_scratch)(n));
        work.at_place = grad ? (REAL *)(work.tile + NAME(lns_tile_entries)(n)) : NULL;
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        double sum[LNS_LANES] = {0};
        REAL scale[LNS_LANES], *out = grad ? grad + first : NULL;
        const REAL *x_at = x + first, *y_at = y + first;
        for (size_t l = 0; l < width; l++)
            scale[l] = (REAL)(mass * (coefficient ? coefficient[first + l] : 1));
        if (grad || x_weights) NAME(lns_tile_sort)(work.tile, x_at, n, columns, width);
        else NAME(lns_tile_sort_values)(work.tile, x_at, n, columns, width);
        if (paired && !grad) {
            if (p == 2) NAME(cost_sorted_p2)(sum, work.tile, y_at, n, columns, width);
            else if (p == 1) NAME(cost_sorted_p1)(sum, work.tile, y_at, n, columns, width);
            else NAME(cost_sorted)(sum, work.tile, y_at, n, columns, width, p);
        } else if (paired) {
            NAME(match)(work, y_at, n, columns, width);
            if (p == 2) NAME(compare_p2)(sum, out, x_at, work.at_place, scale, n, columns, width);
            else if (p == 1) NAME(compare_p1)(sum, out, x_at, work.at_place, scale, n, columns, width);
            else NAME(compare_all)(sum, out, x_at, work.at_place, scale, n, columns, width, p);
        } else {
            if (x_weights)
                NAME(cost_weighted)(sum, work, y_at, y_index + first, x_weights, y_weights, n, m, columns, width, p);
            else if (p == 2) NAME(cost_runs_p2)(sum, work, y_at, n, m, columns, width);
            else if (p == 1) NAME(cost_runs_p1)(sum, work, y_at, n, m, columns, width);
            else NAME(cost_runs)(sum, work, y_at, n, m, columns, width, p);
            if (out) NAME(scale_rows)(out, work.at_place, scale, n, columns, width);
        }
        memcpy(cost + first, sum, width * sizeof *sum);
    }
}
