#include "check.h"
#include "lns_null.h"
#include "lns_sort.h"
#include "lns_tile.h"
#include "lns_wasserstein.h"

/* Labels of so many blocks, n sources in each relabelling: the observed one, random ones, and at the end the observed
 * one again. rows[r * (n + m) + s] says the same in a byte each. */
static uint64_t *random_labels(char *rows, size_t n, size_t m, size_t blocks)
{
    size_t count = n + m, last = blocks * LNS_BLOCK - 1;
    uint64_t *labels = NEW(uint64_t, blocks * count * LNS_WORDS);
    memset(labels, 0, blocks * count * LNS_WORDS * sizeof *labels);
    for (size_t r = 0; r <= last; r++) {
        char *row = rows + r * count;
        for (size_t s = 0; s < count; s++) row[s] = s < n;
        for (size_t s = count; r > 0 && r < last && s-- > 1;) {
            size_t at = (size_t)((draw() + 1) / 2 * (double)(s + 1));
            char label = row[s];
            row[s] = row[at];
            row[at] = label;
        }
        for (size_t s = 0; s < count; s++)
            labels[(r / LNS_BLOCK * count + s) * LNS_WORDS + r % LNS_BLOCK / 64] |= (uint64_t)row[s] << (r % 64);
    }
    return labels;
}

/* cost (columns,) of one relabelling by lns_wasserstein. */
static void relabelled_cost(double *cost, const double *x, const char *row, size_t n, size_t m, size_t columns,
                            double p)
{
    double *source = NEW(double, n * columns), *target = NEW(double, m * columns), *sorted = NEW(double, m * columns);
    int32_t *index = NEW(int32_t, m * columns);
    void *sort_scratch = allocate(lns_sort_scratch_f64(m)), *scratch = allocate(lns_wasserstein_scratch_f64(n));
    double *to[2] = {target, source};
    for (size_t s = 0; s < n + m; s++) {
        memcpy(to[(int)row[s]], x + s * columns, columns * sizeof *x);
        to[(int)row[s]] += columns;
    }
    lns_sort_f64(sorted, index, target, m, columns, sort_scratch, 1);
    lns_wasserstein_f64(cost, NULL, source, sorted, NULL, NULL, NULL, NULL, p, n, m, columns, scratch, 1);
    free(source); free(target); free(sorted); free(index); free(sort_scratch); free(scratch);
}

typedef struct {
    double *mean, *std, *p_value;
} null_t;

static null_t new_null(size_t columns)
{
    null_t made = {NEW(double, columns), NEW(double, columns), NEW(double, columns)};
    return made;
}

static void free_null(null_t null)
{
    free(null.mean); free(null.std); free(null.p_value);
}

static int same_null(null_t a, null_t b, size_t columns)
{
    size_t bytes = columns * sizeof(double);
    return !memcmp(a.mean, b.mean, bytes) && !memcmp(a.std, b.std, bytes) && !memcmp(a.p_value, b.p_value, bytes);
}

static int is_null_of_costs(size_t n, size_t m, size_t columns, size_t relabellings, double p, int tied)
{
    size_t count = n + m, blocks = (relabellings + LNS_BLOCK - 1) / LNS_BLOCK;
    char *rows = NEW(char, blocks * LNS_BLOCK * count);
    uint64_t *labels = random_labels(rows, n, m, blocks);
    float *x = tied ? tied_floats(count * columns) : random_floats(count * columns);
    double *wide = widened(x, count * columns), *cost = NEW(double, relabellings * columns);
    null_t one = new_null(columns), many = new_null(columns), exact = new_null(columns);
    void *scratch = allocate(THREADS * lns_null_scratch_f32(count, relabellings));
    void *wide_scratch = allocate(lns_null_scratch_f64(count, relabellings));
    lns_null_f32(one.mean, one.std, one.p_value, x, labels, p, n, m, columns, relabellings, scratch, 1);
    lns_null_f32(many.mean, many.std, many.p_value, x, labels, p, n, m, columns, relabellings, scratch, THREADS);
    lns_null_f64(exact.mean, exact.std, exact.p_value, wide, labels, p, n, m, columns, relabellings, wide_scratch, 1);
    for (size_t r = 0; r < relabellings; r++)
        relabelled_cost(cost + r * columns, wide, rows + r * count, n, m, columns, p);
    int right = same_null(one, many, columns) && same_null(one, exact, columns);
    for (size_t c = 0; c < columns; c++) {
        double sum = 0, squares = 0, number = (double)(relabellings - 1), least = 1, most = 1;
        for (size_t r = 1; r < relabellings; r++) sum += cost[r * columns + c];
        for (size_t r = 1; r < relabellings; r++) {
            double difference = cost[r * columns + c] - sum / number, above = cost[r * columns + c] - cost[c];
            squares += difference * difference;
            least += above > 1e-9;                            /* equal costs may differ by rounding here */
            most += above > -1e-9;
        }
        right &= is_close(one.mean[c], sum / number, 1e-12) && is_close(one.std[c], sqrt(squares / number), 1e-8);
        right &= one.p_value[c] >= least / (number + 1) && one.p_value[c] <= most / (number + 1);
        int again = relabellings == blocks * LNS_BLOCK;       /* the last relabelling is the observed one */
        right &= one.p_value[c] >= (1 + again) / (number + 1);
    }
    free(rows); free(labels); free(x); free(wide); free(cost); free(scratch); free(wide_scratch);
    free_null(one); free_null(many); free_null(exact);
    return right;
}

void test_null(void)
{
    const size_t counts[][2] = {{1, 2}, {2, 1}, {3, 3}, {4, 6}, {32, 32}, {33, 33}, {40, 24}, {60, 70}};
    const size_t sizes[][2] = {{65, 2}, {1, 256}, {2, 258}};  /* columns and relabellings */
    const double powers[] = {1, 1.5, 2};
    for (int tied = 0; tied < 2; tied++) {
        int right = 1;
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++)
                for (size_t k = 0; k < sizeof powers / sizeof *powers; k++)
                    right &= is_null_of_costs(counts[i][0], counts[i][1], sizes[j][0], sizes[j][1], powers[k], tied);
        check(right, tied ? "lns_null_f32, _f64: ties" : "lns_null_f32, _f64: the costs of all relabellings");
    }
    check(lns_null_scratch_f32(2, SIZE_MAX / 8) == SIZE_MAX
          && lns_null_scratch_f64(LNS_MAX_ROWS, SIZE_MAX / 16) < SIZE_MAX
          && lns_null_scratch_f64(LNS_MAX_ROWS, SIZE_MAX / 16) > SIZE_MAX / 2, "lns_null_scratch: no overflow");
}
