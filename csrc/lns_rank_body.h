/* Included by lns_rank.c once per precision; not a header of its own. */

size_t NAME(lns_rank_scratch)(size_t rows)
{
    return NAME(lns_tile_entries)(rows) * sizeof(int64_t) + rows * LNS_LANES * sizeof(REAL);
}

/* Both samples in one block of rows LNS_LANES wide, the positive ones first. */
static void NAME(pool)(REAL *restrict pooled, const REAL *restrict positive, const REAL *restrict negative, size_t n,
                       size_t m, size_t columns, size_t width)
{
    for (size_t i = 0; i < n; i++) memcpy(pooled + i * LNS_LANES, positive + i * columns, width * sizeof *pooled);
    pooled += n * LNS_LANES;
    for (size_t j = 0; j < m; j++) memcpy(pooled + j * LNS_LANES, negative + j * columns, width * sizeof *pooled);
}

/* One row of a sorted tile. An entry is a threshold where the next smaller one, at next, has another value, and everywhere
 * under a mask of ones: there both curves go on, by what was found since the last threshold.
 * A function of its own: where the loop over rows is seen, GCC merges two rows into one loop, and AVX2 gets scalar code. */
LNS_CLONES static void NAME(count_row)(curves_t *restrict of, const int64_t *restrict entry,
                                       const int64_t *restrict next, const int64_t *restrict places, uint64_t mask,
                                       uint64_t limit, double seen)
{
    double inverse = 1 / seen;
    for (size_t l = 0; l < LNS_LANES; l++) {
        uint64_t differs = ((uint64_t)(entry[l] ^ next[l]) & NAME(value_bits)) | mask;
        double hits = of->hits[l] + top_bit((uint64_t)(places[l] & UINT32_MAX) - limit);
        double threshold = top_bit(differs | (0 - differs));
        double more_hits = threshold * (hits - of->hits_before[l]), more = threshold * (seen - of->seen_before[l]);
        of->area[l] += (more - more_hits) * (hits + of->hits_before[l]);
        of->sum[l] += more_hits * (1 - (seen - hits) * inverse);  /* so that a perfect precision is exactly 1 */
        of->hits[l] = hits;
        of->hits_before[l] += more_hits;
        of->seen_before[l] += more;
    }
}

/* A sorted tile, from the largest entries down. */
static void NAME(count)(curves_t *of, const int64_t *tile, size_t n, size_t m)
{
    size_t rows = n + m, limit = n * LNS_LANES;               /* places of positive entries are below */
    for (size_t i = rows; i-- > 0;) {
        const int64_t *entry = tile + i * LNS_PITCH, *next = i > 0 ? entry - LNS_PITCH : entry;
        NAME(count_row)(of, entry, next, NAME(lns_tile_places)(tile, i, rows), i > 0 ? 0 : UINT64_MAX, limit,
                        (double)(rows - i));
    }
}

void NAME(lns_rank)(double *auroc, double *precision, const REAL *positive, const REAL *negative, size_t n, size_t m,
                    size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        int64_t *tile = (int64_t *)(void *)((char *)scratch + (size_t)lns_thread() * NAME(lns_rank_scratch)(n + m));
        REAL *pooled = (REAL *)(tile + NAME(lns_tile_entries)(n + m));
        curves_t of = {{0}, {0}, {0}, {0}, {0}};
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(pool)(pooled, positive + first, negative + first, n, m, columns, width);
        NAME(lns_tile_sort)(tile, pooled, n + m, LNS_LANES, width);
        NAME(count)(&of, tile, n, m);
        for (size_t l = 0; l < width; l++) {
            auroc[first + l] = of.area[l] / (2 * (double)n * (double)m);
            precision[first + l] = of.sum[l] / (double)n;
        }
    }
}
