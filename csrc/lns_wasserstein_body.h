/* Included by lns_wasserstein.c once per precision; not a header of its own. */

/* Scratch of one thread. slope is one row of a tile: the derivative for the sorted position at hand. */
typedef struct {
    REAL *key, *grad;
    int32_t *at;
} NAME(tile_t);

size_t NAME(lns_wasserstein_scratch)(size_t n) { return n * LNS_LANES * (2 * sizeof(REAL) + sizeof(int32_t)); }

/* One run of mass: add mass * |a - y|^p for every lane. p is a constant where this is inlined. */
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
 * so that no cut is ever lost or doubled by rounding; for n = m this is the plain sum over sorted pairs. */
static inline void NAME(cost_uniform)(double *restrict cost, NAME(tile_t) tile, const REAL *y, size_t n, size_t m,
                                      size_t columns, size_t width, double p)
{
    REAL target[LNS_LANES] = {0};
    double unit = 1.0 / ((double)n * (double)m);
    size_t j = 0, left_y = 0;
    for (size_t i = 0; i < n; i++) {
        double slope[LNS_LANES] = {0};
        for (size_t left_x = m; left_x > 0;) {
            if (left_y == 0) {
                memcpy(target, y + j++ * columns, width * sizeof *target);
                left_y = n;
            }
            size_t run = left_x < left_y ? left_x : left_y;
            NAME(add_run)(cost, slope, tile.key + i * LNS_LANES, target, (double)run * unit, p);
            left_x -= run;
            left_y -= run;
        }
        for (size_t l = 0; l < LNS_LANES; l++)
            tile.grad[(size_t)tile.at[i * LNS_LANES + l] * LNS_LANES + l] = (REAL)slope[l];
    }
}

LNS_CLONES static void NAME(cost_p1)(double *cost, NAME(tile_t) tile, const REAL *y, size_t n, size_t m,
                                     size_t columns, size_t width)
{
    NAME(cost_uniform)(cost, tile, y, n, m, columns, width, 1);
}

LNS_CLONES static void NAME(cost_p2)(double *cost, NAME(tile_t) tile, const REAL *y, size_t n, size_t m,
                                     size_t columns, size_t width)
{
    NAME(cost_uniform)(cost, tile, y, n, m, columns, width, 2);
}

/* Given weights: every lane sorts them differently and so cuts the unit interval elsewhere. */
static double NAME(cost_weighted)(NAME(tile_t) tile, size_t lane, const REAL *y, const int32_t *y_index,
                                  const double *x_weights, const double *y_weights, size_t n, size_t m,
                                  size_t columns, double p)
{
    double cost = 0, left_y = y_weights[y_index[0]];
    size_t j = 0;
    for (size_t i = 0; i < n; i++) {
        size_t at = (size_t)tile.at[i * LNS_LANES + lane];
        double slope = 0;
        for (double left_x = x_weights[at]; left_x > 0;) {
            while (left_y <= 0 && j + 1 < m) left_y = y_weights[y_index[++j * columns]];
            /* The last value takes what rounding leaves over. */
            double run = left_x < left_y || j + 1 == m ? left_x : left_y, derivative;
            cost += run * power_cost((double)tile.key[i * LNS_LANES + lane] - (double)y[j * columns], p, &derivative);
            slope += run * derivative;
            left_x -= run;
            left_y -= run;
        }
        tile.grad[at * LNS_LANES + lane] = (REAL)slope;
    }
    return cost;
}

void NAME(lns_wasserstein)(double *cost, REAL *grad, const REAL *x, const REAL *y, const int32_t *y_index,
                           const double *x_weights, const double *y_weights, const double *coefficient, double p,
                           size_t n, size_t m, size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t t = 0; t < tiles; t++) {
        NAME(tile_t) tile;
        tile.key = (REAL *)((char *)scratch + (size_t)lns_thread() * NAME(lns_wasserstein_scratch)(n));
        tile.grad = tile.key + n * LNS_LANES;
        tile.at = (int32_t *)(tile.grad + n * LNS_LANES);
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        double sum[LNS_LANES] = {0};
        NAME(lns_tile_load)(tile.key, tile.at, x + first, n, columns, width);
        NAME(lns_tile_sort)(tile.key, tile.at, n);
        if (x_weights)
            for (size_t l = 0; l < width; l++)
                sum[l] = NAME(cost_weighted)(tile, l, y + first + l, y_index + first + l, x_weights, y_weights, n, m,
                                             columns, p);
        else if (p == 2) NAME(cost_p2)(sum, tile, y + first, n, m, columns, width);
        else if (p == 1) NAME(cost_p1)(sum, tile, y + first, n, m, columns, width);
        else NAME(cost_uniform)(sum, tile, y + first, n, m, columns, width, p);
        memcpy(cost + first, sum, width * sizeof *sum);
        if (!grad) continue;
        for (size_t i = 0; i < n; i++)
            for (size_t l = 0; l < width; l++)
                grad[i * columns + first + l] =
                    (REAL)((coefficient ? coefficient[first + l] : 1.0) * (double)tile.grad[i * LNS_LANES + l]);
    }
}
