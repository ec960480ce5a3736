#include "py_checks.h"

#include "lns_sort.h"
#include "lns_tile.h"

int require(PyObject *object, const char *name, int type, int dims)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an array, got %R", name, (PyObject *)Py_TYPE(object));
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_TYPE(array) != type || !PyArray_ISNOTSWAPPED(array)) {
        PyObject *expected = (PyObject *)PyArray_DescrFromType(type);
        PyErr_Format(PyExc_TypeError, "%s: expected %R, got %R", name, expected, (PyObject *)PyArray_DESCR(array));
        Py_XDECREF(expected);
        return -1;
    }
    if (PyArray_NDIM(array) != dims) {
        PyErr_Format(PyExc_ValueError, "%s: expected %d dimensions, got %d", name, dims, PyArray_NDIM(array));
        return -1;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISALIGNED(array)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous, aligned array", name);
        return -1;
    }
    if (PyArray_SIZE(array) < 1) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least one entry, got none", name);
        return -1;
    }
    return 0;
}

int require_vector(PyObject *object, const char *name, int type, npy_intp size)
{
    if (require(object, name, type, 1) < 0) return -1;
    npy_intp got = PyArray_DIM((PyArrayObject *)object, 0);
    if (got == size) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected %zd entries, got %zd", name, (Py_ssize_t)size, (Py_ssize_t)got);
    return -1;
}

int require_writeable(PyObject *object, const char *name, npy_intp size)
{
    if (require_vector(object, name, NPY_FLOAT32, size) < 0) return -1;
    return PyArray_FailUnlessWriteable((PyArrayObject *)object, name);
}

int require_shape(PyObject *object, const char *name, int type, int dims, const npy_intp *shape)
{
    if (require(object, name, type, dims) < 0) return -1;
    for (int k = 0; k < dims; k++) {
        npy_intp got = PyArray_DIM((PyArrayObject *)object, k);
        if (got != shape[k]) {
            PyErr_Format(PyExc_ValueError, "%s: expected %zd entries in dimension %d, got %zd", name,
                         (Py_ssize_t)shape[k], k, (Py_ssize_t)got);
            return -1;
        }
    }
    return 0;
}

int require_rows(const PyArrayObject *array, const char *name)
{
    if (PyArray_DIM(array, 0) <= (npy_intp)LNS_MAX_ROWS) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected at most 2^26 rows, got %zd", name, (Py_ssize_t)PyArray_DIM(array, 0));
    return -1;
}

int require_finite(PyArrayObject *array, const char *name)
{
    size_t count = (size_t)PyArray_SIZE(array);
    size_t at = CALL_REAL(PyArray_TYPE(array), lns_first_nonfinite, DATA(array), count);
    if (at == count) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected finite values, got a NaN or infinity at flat position %zu", name, at);
    return -1;
}

int require_permutation(PyArrayObject *order, const char *name)
{
    npy_intp count = PyArray_DIM(order, 0), seen = 0;
    const int64_t *unit = LONGS(order);
    char *met = PyMem_Calloc((size_t)count, 1);
    if (!met) {
        PyErr_NoMemory();
        return -1;
    }
    for (npy_intp j = 0; j < count; j++)
        if (unit[j] >= 0 && unit[j] < count && !met[unit[j]]) {
            met[unit[j]] = 1;
            seen++;
        }
    PyMem_Free(met);
    if (seen == count) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected every unit from 0 to %zd once", name, (Py_ssize_t)(count - 1));
    return -1;
}

int require_threads(int threads)
{
    if (threads >= 1 && threads <= 4096) return 0;
    PyErr_Format(PyExc_ValueError, "threads: expected 1 to 4096, got %d", threads);
    return -1;
}

int require_power(double p)
{
    if (p >= 1) return 0;
    PyErr_SetString(PyExc_ValueError, "p: expected at least 1");
    return -1;
}

int require_apart(PyObject *const *arrays, const char *const *names, int written, int count)
{
    for (int i = 0; i < written; i++)
        for (int k = i + 1; k < count; k++) {
            if (arrays[i] == Py_None || arrays[k] == Py_None) continue;
            PyArrayObject *a = (PyArrayObject *)arrays[i], *b = (PyArrayObject *)arrays[k];
            uintptr_t from = (uintptr_t)PyArray_DATA(a), other = (uintptr_t)PyArray_DATA(b);
            if (from >= other + (uintptr_t)PyArray_NBYTES(b) || other >= from + (uintptr_t)PyArray_NBYTES(a)) continue;
            PyErr_Format(PyExc_ValueError, "%s, %s: expected arrays that share no memory, since %s changes in place",
                         names[i], names[k], names[i]);
            return -1;
        }
    return 0;
}

int real_type(PyObject *object, const char *name)
{
    PyObject *got = (PyObject *)Py_TYPE(object);
    if (PyArray_Check(object)) {
        int type = PyArray_TYPE((PyArrayObject *)object);
        if (type == NPY_FLOAT32 || type == NPY_FLOAT64) return type;
        got = (PyObject *)PyArray_DESCR((PyArrayObject *)object);
    }
    PyErr_Format(PyExc_TypeError, "%s: expected a float32 or float64 array, got %R", name, got);
    return -1;
}

int require_samples(PyObject *x, const char *x_name, PyObject *y, const char *y_name)
{
    int type = real_type(x, x_name);
    if (type < 0 || require(x, x_name, type, 2) < 0 || require(y, y_name, type, 2) < 0) return -1;
    PyArrayObject *first = (PyArrayObject *)x, *second = (PyArrayObject *)y;
    npy_intp columns = PyArray_DIM(first, 1), got = PyArray_DIM(second, 1);
    if (got != columns) {
        PyErr_Format(PyExc_ValueError, "%s: expected %zd columns, as %s has, got %zd", y_name, (Py_ssize_t)columns, x_name,
                     (Py_ssize_t)got);
        return -1;
    }
    return require_rows(first, x_name) < 0 || require_rows(second, y_name) < 0 ? -1 : type;
}

int take_samples(samples_t *s, PyObject *args, const char *format, const char *x_name, const char *y_name)
{
    PyObject *x, *y;
    if (!PyArg_ParseTuple(args, format, &x, &y, &s->threads)) return -1;
    if ((s->type = require_samples(x, x_name, y, y_name)) < 0 || require_threads(s->threads) < 0) return -1;
    s->x = (PyArrayObject *)x;
    s->y = (PyArrayObject *)y;
    if (require_finite(s->x, x_name) < 0 || require_finite(s->y, y_name) < 0) return -1;
    s->n = (size_t)PyArray_DIM(s->x, 0);
    s->m = (size_t)PyArray_DIM(s->y, 0);
    s->columns = (size_t)PyArray_DIM(s->x, 1);
    return 0;
}

PyArrayObject *new_column_results(const PyArrayObject *x)
{
    npy_intp columns = PyArray_DIM(x, 1);
    return NEW(1, &columns, NPY_FLOAT64);
}

void *scratch_bytes(size_t count, size_t each, int threads)
{
    size_t most = (size_t)PY_SSIZE_T_MAX / (size_t)threads;
    if (each > 0 && count > most / each) return PyErr_NoMemory();
    void *scratch = PyMem_Malloc(count * each * (size_t)threads);
    return scratch ? scratch : PyErr_NoMemory();
}

enum { LINE = 64 };                                           /* bytes of a cache line, and of the widest vector */

void *tile_scratch(size_t each, npy_intp columns, int *threads)
{
    npy_intp tiles = (columns - 1) / LNS_LANES + 1;
    if (*threads > tiles) *threads = (int)tiles;
    if (each > (size_t)PY_SSIZE_T_MAX - LINE) return PyErr_NoMemory();
    return scratch_bytes(each + LINE, 1, *threads);           /* one line would do, but not in one product */
}

void *on_line(void *scratch) { return (char *)scratch + (LINE - (uintptr_t)scratch % LINE) % LINE; }
