#include "check.h"
#include "lns_tile.h"

/* n rows of width columns, among more: whole groups of rows, parts of one, narrow and full tiles. */
static int sorts_every_lane(size_t n, size_t width)
{
    size_t stride = LNS_LANES + 20;
    float *x = random_floats((n - 1) * stride + width), row[LNS_LANES], before[LNS_LANES];
    double *wide = widened(x, (n - 1) * stride + width), wide_row[LNS_LANES];
    int64_t *tile = NEW(int64_t, lns_tile_entries_f32(n)), *wide_tile = NEW(int64_t, lns_tile_entries_f64(n));
    lns_tile_sort_f32(tile, x, n, stride, width);
    lns_tile_sort_f64(wide_tile, wide, n, stride, width);
    int64_t *bare_tile = NEW(int64_t, lns_tile_entries_values_f64(n));
    lns_tile_sort_values_f64(bare_tile, wide, n, stride, width);
    int right = 1;
    for (size_t i = 0; i < n; i++) {
        right &= memcmp(bare_tile + i * LNS_PITCH, wide_tile + i * LNS_PITCH, LNS_LANES * sizeof *bare_tile) == 0;
        const int64_t *places = lns_tile_places_f32(tile, i, n), *wide_places = lns_tile_places_f64(wide_tile, i, n);
        lns_tile_values_f32(row, tile, i);
        lns_tile_values_f64(wide_row, wide_tile, i);
        for (size_t l = 0; l < LNS_LANES; l++) {
            size_t at = (uint32_t)places[l] / LNS_LANES;
            right &= (double)row[l] == wide_row[l] && (i == 0 || before[l] <= row[l]);
            right &= (uint32_t)places[l] == (uint32_t)wide_places[l] && (uint32_t)places[l] % LNS_LANES == l;
            right &= l < width ? x[at * stride + l] == row[l] : row[l] == 0 && at == i;
        }
        memcpy(before, row, sizeof before);
    }
    free(x); free(wide); free(tile); free(wide_tile); free(bare_tile);
    return right;
}

void test_tile(void)
{
    const size_t rows[] = {1, 5, 16, 17, 32, 40};
    int right = 1;
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        right &= sorts_every_lane(rows[k], 3) && sorts_every_lane(rows[k], LNS_LANES);
    check(right, "lns_tile_sort_f32, _f64, _values_f64: every lane by itself, zeros beside a narrow tile");
}
