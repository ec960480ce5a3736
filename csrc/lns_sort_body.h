/* Included by lns_sort.c once per precision; not a header of its own. */

void NAME(lns_tile_load)(REAL *key, int32_t *index, const REAL *x, size_t n, size_t stride, size_t width)
{
    for (size_t i = 0; i < n; i++) {
        REAL *row = key + i * LNS_LANES;
        memcpy(row, x + i * stride, width * sizeof *row);
        for (size_t l = width; l < LNS_LANES; l++) row[l] = 0;
        for (size_t l = 0; l < LNS_LANES; l++) index[i * LNS_LANES + l] = (int32_t)i;
    }
}

/* Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M): the comparisons do not depend
 * on the data, so all lanes make the same ones and each is a handful of vector instructions. It works for every n, and
 * comparing (key, index) pairs makes an unstable network stable. */
LNS_CLONES static void NAME(sort_tile)(REAL *restrict key, int32_t *restrict index, size_t n)
{
    size_t top = 1;
    while (top < n) top <<= 1;
    for (size_t p = top >> 1; p > 0; p >>= 1) {
        size_t r = 0, d = p;
        for (size_t q = top >> 1;; q >>= 1) {
            for (size_t i = 0; i + d < n; i++) {
                if ((i & p) != r) continue;
                REAL *low = key + i * LNS_LANES, *high = low + d * LNS_LANES;
                int32_t *low_at = index + i * LNS_LANES, *high_at = low_at + d * LNS_LANES;
                for (size_t l = 0; l < LNS_LANES; l++) {
                    REAL a = low[l], b = high[l];
                    int32_t at_a = low_at[l], at_b = high_at[l];
                    int swap = (a > b) | ((a == b) & (at_a > at_b));
                    low[l] = swap ? b : a;
                    high[l] = swap ? a : b;
                    low_at[l] = swap ? at_b : at_a;
                    high_at[l] = swap ? at_a : at_b;
                }
            }
            if (q == p) break;
            d = q - p;
            r = p;
        }
    }
}

void NAME(lns_tile_sort)(REAL *key, int32_t *index, size_t n) { NAME(sort_tile)(key, index, n); }

size_t NAME(lns_sort_scratch)(size_t n) { return n * LNS_LANES * (sizeof(REAL) + sizeof(int32_t)); }

void NAME(lns_sort)(REAL *sorted, int32_t *index, const REAL *x, size_t n, size_t columns, void *scratch, int threads)
{
    ptrdiff_t tiles = (ptrdiff_t)((columns + LNS_LANES - 1) / LNS_LANES);
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        REAL *key = (REAL *)((char *)scratch + (size_t)lns_thread() * NAME(lns_sort_scratch)(n));
        int32_t *at = (int32_t *)(key + n * LNS_LANES);
        size_t first = (size_t)tile * LNS_LANES;
        size_t width = columns - first < LNS_LANES ? columns - first : LNS_LANES;
        NAME(lns_tile_load)(key, at, x + first, n, columns, width);
        NAME(lns_tile_sort)(key, at, n);
        for (size_t i = 0; i < n; i++) {
            memcpy(sorted + i * columns + first, key + i * LNS_LANES, width * sizeof *key);
            memcpy(index + i * columns + first, at + i * LNS_LANES, width * sizeof *at);
        }
    }
}

size_t NAME(lns_first_nonfinite)(const REAL *x, size_t count)
{   /* x - x is 0 for every finite x and NaN otherwise, so a block is clean when its sum of such terms is 0. */
    enum { BLOCK = 4096 };
    for (size_t start = 0; start < count; start += BLOCK) {
        size_t end = count - start < BLOCK ? count : start + BLOCK;
        int bad = 0;
        for (size_t i = start; i < end; i++) bad |= !(x[i] - x[i] == 0);
        for (size_t i = start; bad && i < end; i++)
            if (!isfinite(x[i])) return i;
    }
    return count;
}
