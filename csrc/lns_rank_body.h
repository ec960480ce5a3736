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

/* BLOCK lanes of a sorted tile, from the largest entry down. An entry is a threshold where the next one is smaller, or
 * there is none; there both curves go on, by what was found since the last threshold. `hits` are the positive entries
 * so far; `hits_before` and `seen_before` are what hits, and the number of all entries, were at the last threshold. */
LNS_CLONES static void NAME(count)(double *restrict auroc, double *restrict precision, const int64_t *restrict tile,
                                   size_t n, size_t m)
{
    double hits[BLOCK] = {0}, hits_before[BLOCK] = {0}, seen_before[BLOCK] = {0}, area[BLOCK] = {0}, sum[BLOCK] = {0};
    size_t rows = n + m;
    int64_t limit = (int64_t)(n * LNS_LANES);                 /* places of positive entries are below */
    for (size_t i = rows; i-- > 0;) {
        const int64_t *entry = tile + i * LNS_PITCH, *next = i > 0 ? entry - LNS_PITCH : entry;
        const int64_t *places = NAME(lns_tile_places)(tile, i, rows);
        double seen = (double)(rows - i), inverse = 1 / seen;
        int64_t last = -(int64_t)(i == 0);
        for (size_t l = 0; l < BLOCK; l++) {
            int64_t differs = ((entry[l] ^ next[l]) & NAME(value_bits)) | last;
            hits[l] += (places[l] & UINT32_MAX) < limit ? 1.0 : 0.0;
            double threshold = differs != 0 ? 1.0 : 0.0;
            double more_hits = threshold * (hits[l] - hits_before[l]), more = threshold * (seen - seen_before[l]);
            area[l] += (more - more_hits) * (hits[l] + hits_before[l]);
            sum[l] += more_hits * (1 - (seen - hits[l]) * inverse);       /* so that a perfect precision is exactly 1 */
            hits_before[l] += more_hits;
            seen_before[l] += more;
        }
    }
    for (size_t l = 0; l < BLOCK; l++) {
        auroc[l] = area[l] / (2 * (double)n * (double)m);
        precision[l] = sum[l] / (double)n;
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
        double areas[LNS_LANES], precisions[LNS_LANES];
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(pool)(pooled, positive + first, negative + first, n, m, columns, width);
        NAME(lns_tile_sort)(tile, pooled, n + m, LNS_LANES, width);
        for (size_t l = 0; l < width; l += BLOCK) NAME(count)(areas + l, precisions + l, tile + l, n, m);
        memcpy(auroc + first, areas, width * sizeof *areas);
        memcpy(precision + first, precisions, width * sizeof *precisions);
    }
}
