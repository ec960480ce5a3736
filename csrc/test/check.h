/* What the test program's files share. */
#ifndef CHECK_H
#define CHECK_H
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NEW(type, count) ((type *)allocate((count) * sizeof(type)))

enum { THREADS = 3 };                                         /* and 1: scratch for idle threads would hide overruns */

/* Print what was checked, and count it. Not assert, which -DNDEBUG turns off. */
void check(int passed, const char *what);

/* Memory of exactly this size, to be freed; ends the program where there is none. */
void *allocate(size_t bytes);

int is_close(double got, double expected, double tolerance);

/* Uniform in [-1, 1), the same on every machine. */
double draw(void);
float *random_floats(size_t count);
/* Few different values, zeros of both signs among them: many ties. */
float *tied_floats(size_t count);
double *widened(const float *x, size_t count);

/* order[i] = row of the i-th smallest entry of column c, ties by row. */
void stable_order(int32_t *order, const float *x, size_t n, size_t columns, size_t c);

/* Two samples of the same columns, in both precisions. */
typedef struct {
    float *x, *y;
    double *wide_x, *wide_y;
    size_t n, m, columns;
} samples_t;

/* Whether the check passes for samples of many sizes, with one thread and with several. */
int holds_for_samples(int (*passes)(samples_t s, int threads), int tied);

/* The tests, test_x.c of lns_x.c, which main calls. */
void test_tile(void);
void test_sort(void);
void test_wasserstein(void);
void test_null(void);
void test_rank(void);
void test_transport(void);
void test_affine(void);
void test_prox(void);
void test_update(void);
void test_product(void);
void test_quadratic(void);
void test_ridge(void);

#endif
