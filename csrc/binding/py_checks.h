/* What every binding needs: checks that set the exception, and shorthand for arrays.
 * Only the files of this folder know Python. Arguments are positional; the Python side reports to users, so
 * messages here name what a caller of ops.py broke. */
#ifndef PY_CHECKS_H
#define PY_CHECKS_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL lineas_numpy
#ifndef LNS_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY                                       /* py_module.c imports it for all */
#endif
#include <numpy/arrayobject.h>

/* A slot for Pythons without a GIL: the bindings have no state, and no array is touched that was not passed. The limited
 * API, which every other Python gets, has no such slot. */
#ifdef Py_GIL_DISABLED
#define GIL_SLOT {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#else
#define GIL_SLOT
#endif

#define DATA(array) PyArray_DATA((PyArrayObject *)(array))
#define FLOATS(array) ((float *)PyArray_DATA(array))
#define DOUBLES(array) ((double *)PyArray_DATA(array))
#define INTS(array) ((int32_t *)PyArray_DATA(array))
#define LONGS(array) ((int64_t *)PyArray_DATA(array))
#define WORDS(array) ((uint64_t *)PyArray_DATA(array))
#define NEW(dims, shape, type) ((PyArrayObject *)PyArray_SimpleNew(dims, shape, type))

/* The kernel of a precision, function_f32 or function_f64 by the type number that real_type gave, with these arguments.
 * Arrays of that precision go as DATA, which is a pointer to anything; all others by their type. */
#define CALL_REAL(type, function, ...)                                                                                 \
    ((type) == NPY_FLOAT32 ? function##_f32(__VA_ARGS__) : function##_f64(__VA_ARGS__))

/* The functions of each py_x.c, which py_module.c adds to the module. */
extern PyMethodDef sort_methods[], wasserstein_methods[], null_methods[], rank_methods[], transport_methods[],
    affine_methods[], prox_methods[], update_methods[], product_methods[], quadratic_methods[],
    ridge_methods[];

/* All of these return 0, or -1 with an exception set. */

/* An array of this type and number of dimensions: C-contiguous, aligned, native byte order, not empty. */
int require(PyObject *object, const char *name, int type, int dims);
int require_vector(PyObject *object, const char *name, int type, npy_intp size);
int require_shape(PyObject *object, const char *name, int type, int dims, const npy_intp *shape);
int require_writeable(PyObject *object, const char *name, npy_intp size);
/* No more rows than LNS_MAX_ROWS. */
int require_rows(const PyArrayObject *array, const char *name);
int require_finite(PyArrayObject *array, const char *name);
/* Every number from 0 to its size - 1, once; int64. */
int require_permutation(PyArrayObject *order, const char *name);
int require_threads(int threads);
/* Of a cost |difference|^p. */
int require_power(double p);
/* The first so many of the arrays are written: they share no memory with any other. All passed require, which makes of
 * each one range of addresses; None stands for one that is not there. */
int require_apart(PyObject *const *arrays, const char *const *names, int written, int count);

/* float32 or float64: the type number of a real array, or -1. */
int real_type(PyObject *object, const char *name);
/* Two samples of the same columns, of one precision, each with no more rows than a tile takes: their type number. */
int require_samples(PyObject *x, const char *x_name, PyObject *y, const char *y_name);

/* The arguments of functions of two samples: both finite, as above, and the number of threads. */
typedef struct {
    PyArrayObject *x, *y;                                     /* borrowed */
    size_t n, m, columns;
    int type, threads;
} samples_t;
int take_samples(samples_t *s, PyObject *args, const char *format, const char *x_name, const char *y_name);

/* New, a double for each column of x. */
PyArrayObject *new_column_results(const PyArrayObject *x);
/* PyMem_Malloc of count * each * threads bytes, or NULL with a MemoryError, as where the product overflows. */
void *scratch_bytes(size_t count, size_t each, int threads);
/* Scratch for so many threads, no more than there are tiles to share; *threads is lowered to that. The kernels get it
 * from on_line(scratch), on a cache line of its own. */
void *tile_scratch(size_t each, npy_intp columns, int *threads);
void *on_line(void *scratch);

#endif
