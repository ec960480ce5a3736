/* Included by lns_null.c once per precision; not a header of its own. */

/* Scratch of one thread. */
typedef struct {
    int64_t *tile;
    double *values;                                           /* (LNS_LANES, rows): sorted, each column by itself */
    double *cost;                                             /* of each relabelling of one column */
    uint64_t *words;                                          /* labels of one block in the order of one column */
    int32_t *index;                                           /* like values: from which row each came */
} NAME(work_t);

size_t NAME(lns_null_scratch)(size_t rows, size_t relabellings)
{
    if (relabellings > SIZE_MAX / (2 * sizeof(double))) return SIZE_MAX;      /* what rows add is far below that */
    size_t costs = LNS_BLOCK * parts(relabellings, LNS_BLOCK), words = STRIDE * parts(rows, BITS);
    size_t each = sizeof(double) + sizeof(int32_t);
    return NAME(lns_tile_entries)(rows) * sizeof(int64_t) + (costs + words) * sizeof(double) + LNS_LANES * rows * each;
}

static NAME(work_t) NAME(divide)(void *scratch, size_t rows, size_t relabellings)
{
    NAME(work_t) work;
    work.tile = (int64_t *)scratch;
    work.values = (double *)(work.tile + NAME(lns_tile_entries)(rows));
    work.cost = work.values + LNS_LANES * rows;
    work.words = (uint64_t *)(work.cost + LNS_BLOCK * parts(relabellings, LNS_BLOCK));
    work.index = (int32_t *)(work.words + STRIDE * parts(rows, BITS));
    return work;
}

/* Sort columns [0, width) of x, and put each side by side with itself. */
static void NAME(sort_tile)(NAME(work_t) work, const REAL *x, size_t rows, size_t columns, size_t width)
{
    NAME(lns_tile_sort)(work.tile, x, rows, columns, width);
    for (size_t i = 0; i < rows; i++) {
        REAL values[LNS_LANES];
        const int64_t *places = NAME(lns_tile_places)(work.tile, i, rows);
        NAME(lns_tile_values)(values, work.tile, i);
        for (size_t l = 0; l < width; l++) {
            work.values[l * rows + i] = (double)values[l];
            work.index[l * rows + i] = (int32_t)((uint32_t)places[l] / LNS_LANES);
        }
    }
}

void NAME(lns_null)(double *mean, double *std, double *p_value, const REAL *x, const uint64_t *labels, double p,
                    size_t n, size_t m, size_t columns, size_t relabellings, void *scratch, int threads)
{
    size_t rows = n + m, divisor = greatest_divisor(n, m);
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        void *own = (char *)scratch + (size_t)lns_thread() * NAME(lns_null_scratch)(rows, relabellings);
        NAME(work_t) work = NAME(divide)(own, rows, relabellings);
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(sort_tile)(work, x + first, rows, columns, width);
        for (size_t l = 0; l < width; l++) {
            for (size_t r = 0; r < relabellings; r += LNS_BLOCK) {
                size_t count = relabellings - r < LNS_BLOCK ? relabellings - r : LNS_BLOCK;
                sort_labels(work.words, labels + r / LNS_BLOCK * LNS_WORDS * rows, work.index + l * rows, rows);
                cost_block(work.cost + r, work.words, work.values + l * rows, count, n, m, divisor, p);
            }
            size_t c = first + l;
            summarise(mean + c, std + c, p_value + c, work.cost, relabellings);
        }
    }
}
