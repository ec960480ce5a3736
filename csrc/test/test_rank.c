#include "check.h"
#include "lns_rank.h"

/* Scores of one column from their definitions, which count pairs. */
static void count_pairs(double *auroc, double *precision, samples_t s, size_t c)
{
    double pairs = 0, sum = 0;
    for (size_t i = 0; i < s.n; i++) {
        double at = s.wide_x[i * s.columns + c], hits = 0, misses = 0;
        for (size_t k = 0; k < s.n; k++) hits += s.wide_x[k * s.columns + c] >= at;
        for (size_t j = 0; j < s.m; j++) {
            double other = s.wide_y[j * s.columns + c];
            misses += other >= at;
            pairs += at > other ? 1 : at == other ? 0.5 : 0;
        }
        sum += hits / (hits + misses);
    }
    *auroc = pairs / ((double)s.n * (double)s.m);
    *precision = sum / (double)s.n;
}

static int check_rank(samples_t s, int threads)
{
    size_t columns = s.columns, bytes = 2 * columns * sizeof(double);
    double *got = NEW(double, 2 * columns), *wide = NEW(double, 2 * columns), auroc, precision;
    void *scratch = allocate((size_t)threads * lns_rank_scratch_f32(s.n + s.m));
    void *wide_scratch = allocate((size_t)threads * lns_rank_scratch_f64(s.n + s.m));
    lns_rank_f32(got, got + columns, s.x, s.y, s.n, s.m, columns, scratch, threads);
    lns_rank_f64(wide, wide + columns, s.wide_x, s.wide_y, s.n, s.m, columns, wide_scratch, threads);
    int right = !memcmp(got, wide, bytes);
    for (size_t c = 0; c < columns; c++) {
        count_pairs(&auroc, &precision, s, c);
        right &= is_close(got[c], auroc, 1e-14) && is_close(got[columns + c], precision, 1e-12);
    }
    free(got); free(wide); free(scratch); free(wide_scratch);
    return right;
}

void test_rank(void)
{
    for (int tied = 0; tied < 2; tied++)
        check(holds_for_samples(check_rank, tied),
              tied ? "lns_rank_f32, _f64: ties" : "lns_rank_f32, _f64: as counted pair by pair");
}
