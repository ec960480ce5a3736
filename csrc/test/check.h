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

/* The files' tests, which main calls. */
void test_transport(void);
void test_null(void);
void test_samples(void);
void test_product(void);
void test_affine(void);
void test_optim(void);
void test_quadratic(void);

#endif
