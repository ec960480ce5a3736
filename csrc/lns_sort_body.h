/* Included by lns_sort.c once per precision; not a header of its own. */

size_t NAME(lns_sort_scratch)(size_t n) { return NAME(lns_tile_entries)(n) * sizeof(int64_t); }

/* From x, not from the tile: a zero keeps its sign. */
static void NAME(store_index)(REAL *restrict sorted, int32_t *restrict index, const REAL *restrict x,
                              const int64_t *restrict tile, size_t i, size_t n, size_t columns, size_t width)
{
    const int64_t *places = NAME(lns_tile_places)(tile, i, n);
    for (size_t l = 0; l < width; l++) {
        size_t row = (uint32_t)places[l] / LNS_LANES;
        index[l] = (int32_t)row;
        sorted[l] = x[row * columns + l];
    }
}

LNS_CLONES static void NAME(store_values)(REAL *restrict sorted, const int64_t *restrict tile, size_t i, size_t width)
{
    REAL values[LNS_LANES];
    NAME(lns_tile_values)(values, tile, i);
    memcpy(sorted, values, width * sizeof *sorted);
}

void NAME(lns_sort)(REAL *sorted, int32_t *index, const REAL *x, size_t n, size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        int64_t *tile = (int64_t *)scratch + (size_t)lns_thread() * NAME(lns_tile_entries)(n);
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        if (index) NAME(lns_tile_sort)(tile, x + first, n, columns, width);
        else NAME(lns_tile_sort_values)(tile, x + first, n, columns, width);
        for (size_t i = 0; i < n; i++) {
            size_t out = i * columns + first;
            if (index) NAME(store_index)(sorted + out, index + out, x + first, tile, i, n, columns, width);
            else NAME(store_values)(sorted + out, tile, i, width);
        }
    }
}

/* x - x is 0 for every finite x and NaN otherwise. */
LNS_CLONES static int NAME(all_finite)(const REAL *x, size_t count)
{
    int bad = 0;
    for (size_t i = 0; i < count; i++) bad |= x[i] - x[i] != 0;
    return !bad;
}

size_t NAME(lns_first_nonfinite)(const REAL *x, size_t count)
{
    enum { BLOCK = 4096 };
    for (size_t start = 0; start < count; start += BLOCK) {
        size_t end = count - start < BLOCK ? count : start + BLOCK;
        if (NAME(all_finite)(x + start, end - start)) continue;
        for (size_t i = start; i < end; i++)
            if (!isfinite(x[i])) return i;
    }
    return count;
}
