/* Included by lns_wasserstein.c once per precision; not a header of its own. */

/* Scratch of one thread: a tile of sources, and the gradient of its columns, where the samples stand. */
typedef struct {
    int64_t *tile;
    REAL *grad;
} NAME(work_t);

size_t NAME(lns_wasserstein_scratch)(size_t n)
{
    return NAME(lns_tile_entries)(n) * sizeof(int64_t) + n * LNS_LANES * sizeof(REAL);
}

/* Put the slopes of one sorted row where its samples stand. */
static inline void NAME(scatter)(REAL *restrict grad, const REAL *restrict slope, const int32_t *restrict at)
{
    for (size_t l = 0; l < LNS_LANES; l++) grad[(size_t)at[l] * LNS_LANES + l] = slope[l];
}

/* n = m, p = 2, equal weights: sorted row against sorted row. The case that training meets, so all in one loop. */
LNS_CLONES static void NAME(cost_squares)(double *restrict cost, NAME(work_t) work, const REAL *restrict y, size_t n,
                                          size_t columns, size_t width)
{
    double mass = 1 / (double)n;
    for (size_t i = 0; i < n; i++) {
        REAL values[LNS_LANES], slope[LNS_LANES], padded[LNS_LANES] = {0};
        int32_t at[LNS_LANES];
        const REAL *target = y + i * columns;
        if (width < LNS_LANES) target = memcpy(padded, target, width * sizeof *y);
        NAME(lns_tile_row)(values, at, work.tile, i, n);
        for (size_t l = 0; l < LNS_LANES; l++) {
            double difference = (double)values[l] - (double)target[l];
            cost[l] += mass * difference * difference;
            slope[l] = (REAL)(2 * mass * difference);
        }
        NAME(scatter)(work.grad, slope, at);
    }
}

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

/* Equal weights: all lanes cut the unit interval at the same places. Mass is counted in units of 1/(n*m), in integers,
 * so that no cut is ever lost or doubled by rounding. */
static inline void NAME(cost_uniform)(double *restrict cost, NAME(work_t) work, const REAL *y, size_t n, size_t m,
                                      size_t columns, size_t width, double p)
{
    REAL values[LNS_LANES], target[LNS_LANES] = {0}, rounded[LNS_LANES];
    int32_t at[LNS_LANES];
    double unit = 1.0 / ((double)n * (double)m);
    size_t j = 0, left_y = 0;
    for (size_t i = 0; i < n; i++) {
        double slope[LNS_LANES] = {0};
        NAME(lns_tile_row)(values, at, work.tile, i, n);
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
        for (size_t l = 0; l < LNS_LANES; l++) rounded[l] = (REAL)slope[l];
        NAME(scatter)(work.grad, rounded, at);
    }
}

LNS_CLONES static void NAME(cost_p1)(double *cost, NAME(work_t) work, const REAL *y, size_t n, size_t m,
                                     size_t columns, size_t width)
{
    NAME(cost_uniform)(cost, work, y, n, m, columns, width, 1);
}

LNS_CLONES static void NAME(cost_p2)(double *cost, NAME(work_t) work, const REAL *y, size_t n, size_t m,
                                     size_t columns, size_t width)
{
    NAME(cost_uniform)(cost, work, y, n, m, columns, width, 2);
}

/* Given weights: every lane sorts them differently and so cuts the unit interval elsewhere. */
static void NAME(cost_weighted)(double *restrict cost, NAME(work_t) work, const REAL *y, const int32_t *y_index,
                                const double *x_weights, const double *y_weights, size_t n, size_t m,
                                size_t columns, size_t width, double p)
{
    REAL values[LNS_LANES], slope[LNS_LANES] = {0};
    int32_t at[LNS_LANES];
    size_t j[LNS_LANES] = {0};                                /* where each lane is in y, and the mass left there */
    double left_y[LNS_LANES];
    for (size_t l = 0; l < width; l++) left_y[l] = y_weights[y_index[l]];
    for (size_t i = 0; i < n; i++) {
        NAME(lns_tile_row)(values, at, work.tile, i, n);
        for (size_t l = 0; l < width; l++) {
            double total = 0;
            for (double left_x = x_weights[at[l]]; left_x > 0;) {
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
        NAME(scatter)(work.grad, slope, at);
    }
}

LNS_CLONES static void NAME(scale_row)(REAL *restrict out, const REAL *restrict slope,
                                       const double *restrict coefficient, size_t width)
{
    for (size_t l = 0; l < width; l++) out[l] = (REAL)(coefficient[l] * (double)slope[l]);
}

void NAME(lns_wasserstein)(double *cost, REAL *grad, const REAL *x, const REAL *y, const int32_t *y_index,
                           const double *x_weights, const double *y_weights, const double *coefficient, double p,
                           size_t n, size_t m, size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        NAME(work_t) work;
        work.tile = (int64_t *)(void *)((char *)scratch + (size_t)lns_thread() * NAME(lns_wasserstein_scratch)(n));
        work.grad = (REAL *)(work.tile + NAME(lns_tile_entries)(n));
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        double sum[LNS_LANES] = {0};
        const REAL *y_at = y + first;
        NAME(lns_tile_load)(work.tile, x + first, n, columns, width);
        NAME(lns_tile_sort)(work.tile, n);
        if (x_weights)
            NAME(cost_weighted)(sum, work, y_at, y_index + first, x_weights, y_weights, n, m, columns, width, p);
        else if (p == 2 && n == m) NAME(cost_squares)(sum, work, y_at, n, columns, width);
        else if (p == 2) NAME(cost_p2)(sum, work, y_at, n, m, columns, width);
        else if (p == 1) NAME(cost_p1)(sum, work, y_at, n, m, columns, width);
        else NAME(cost_uniform)(sum, work, y_at, n, m, columns, width, p);
        memcpy(cost + first, sum, width * sizeof *sum);
        for (size_t i = 0; grad && i < n; i++) {
            REAL *out = grad + i * columns + first;
            const REAL *slope = work.grad + i * LNS_LANES;
            if (coefficient) NAME(scale_row)(out, slope, coefficient + first, width);
            else memcpy(out, slope, width * sizeof *out);
        }
    }
}
