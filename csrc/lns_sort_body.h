/* Included by lns_sort.c once per precision; not a header of its own. */

/* Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M) on rows [first, first + count)
 * of n: the comparisons do not depend on the data, so all lanes make the same ones, and it works for every count. The
 * index is part of what is compared, which makes an unstable network stable. */
LNS_CLONES static void NAME(network)(int64_t *tile, size_t first, size_t count, size_t n)
{
    size_t top = 1;
    while (top < count) top <<= 1;
    for (size_t p = top >> 1; p > 0; p >>= 1) {
        size_t r = 0, d = p;
        for (size_t q = top >> 1;; q >>= 1) {
            for (size_t i = 0; i + d < count; i++)
                if ((i & p) == r) NAME(exchange)(tile, first + i, first + i + d, n);
            if (q == p) break;
            d = q - p;
            r = p;
        }
    }
}

/* Batcher's odd-even merge of two sorted halves of a block of size rows, a power of two. Rows from n on are not there;
 * they count as larger than any, and no comparison ever moves such a row. */
LNS_CLONES static void NAME(merge)(int64_t *tile, size_t first, size_t size, size_t n)
{
    size_t half = size / 2;
    for (size_t i = first; i < first + half && i + half < n; i++) NAME(exchange)(tile, i, i + half, n);
    for (size_t k = half / 2; k > 0; k /= 2)
        for (size_t j = first + k; j + k < first + size; j += 2 * k)
            for (size_t i = j; i < j + k && i + k < n; i++) NAME(exchange)(tile, i, i + k, n);
}

/* Long columns in halves, depth first, so that most comparisons are among rows that are in the cache. */
static void NAME(sort_rows)(int64_t *tile, size_t first, size_t size, size_t n)
{
    enum { BLOCK = 64 };                                      /* 64 rows of 64 lanes fill a first-level cache */
    if (first >= n) return;
    if (size <= BLOCK) {
        NAME(network)(tile, first, n - first < size ? n - first : size, n);
        return;
    }
    NAME(sort_rows)(tile, first, size / 2, n);
    NAME(sort_rows)(tile, first + size / 2, size / 2, n);
    NAME(merge)(tile, first, size, n);
}

void NAME(lns_tile_sort)(int64_t *tile, size_t n)
{
    size_t top = 1;
    while (top < n) top <<= 1;
    NAME(sort_rows)(tile, 0, top, n);
}

size_t NAME(lns_sort_scratch)(size_t n) { return NAME(lns_tile_entries)(n) * sizeof(int64_t); }

void NAME(lns_sort)(REAL *sorted, int32_t *index, const REAL *x, size_t n, size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < tiles; t++) {
        int64_t *tile = (int64_t *)scratch + (size_t)lns_thread() * NAME(lns_tile_entries)(n);
        size_t first = (size_t)t * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(lns_tile_load)(tile, x + first, n, columns, width);
        NAME(lns_tile_sort)(tile, n);
        for (size_t i = 0; i < n; i++) {
            REAL values[LNS_LANES];
            int32_t at[LNS_LANES];
            NAME(lns_tile_row)(values, at, tile, i, n);
            memcpy(index + i * columns + first, at, width * sizeof *at);
            /* From x, not from values: a zero keeps its sign. */
            for (size_t l = 0; l < width; l++)
                sorted[i * columns + first + l] = x[(size_t)at[l] * columns + first + l];
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
