/* Binding of lns_sort. */
#include "py_checks.h"

#include "lns_sort.h"

/* A new array like x with every column sorted, and the rows they came from in *index unless index is NULL. */
static PyArrayObject *sort_columns(PyObject *x, PyArrayObject **index, int threads)
{
    PyArrayObject *sorted = NULL, *in = (PyArrayObject *)x;
    void *scratch = NULL;
    int type = real_type(x, "x");
    if (type < 0 || require(x, "x", type, 2) < 0 || require_threads(threads) < 0) return NULL;
    if (require_rows(in, "x") < 0 || require_finite(in, "x") < 0) return NULL;
    npy_intp *shape = PyArray_DIMS(in);
    size_t n = (size_t)shape[0], columns = (size_t)shape[1];
    size_t each = CALL_REAL(type, lns_sort_scratch, n);
    if (index && !(*index = NEW(2, shape, NPY_INT32))) return NULL;
    if (!(scratch = tile_scratch(each, shape[1], &threads)) || !(sorted = NEW(2, shape, type))) goto done;
    int32_t *rows = index ? INTS(*index) : NULL;
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(type, lns_sort, DATA(sorted), rows, DATA(in), n, columns, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
done:
    PyMem_Free(scratch);
    return sorted;
}

static PyObject *py_sort_columns(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *result = NULL;                              /* x borrowed */
    PyArrayObject *sorted = NULL, *index = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "Oi:sort_columns", &x, &threads)) goto done;
    if ((sorted = sort_columns(x, &index, threads))) result = PyTuple_Pack(2, sorted, index);
done:
    Py_XDECREF(sorted); Py_XDECREF(index);
    return result;
}

static PyObject *py_sort_values(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x;                                              /* borrowed */
    int threads;
    if (!PyArg_ParseTuple(args, "Oi:sort_values", &x, &threads)) return NULL;
    return (PyObject *)sort_columns(x, NULL, threads);
}

static PyObject *py_first_nonfinite(PyObject *Py_UNUSED(self), PyObject *x)
{
    int type = real_type(x, "x");
    if (type < 0) return NULL;
    PyArrayObject *array = (PyArrayObject *)x;
    if (require(x, "x", type, PyArray_NDIM(array)) < 0) return NULL;
    size_t count = (size_t)PyArray_SIZE(array), at;
    Py_BEGIN_ALLOW_THREADS
    at = CALL_REAL(type, lns_first_nonfinite, DATA(array), count);
    Py_END_ALLOW_THREADS
    return at == count ? PyLong_FromLong(-1) : PyLong_FromSize_t(at);
}

PyMethodDef sort_methods[] = {
    {"sort_columns", py_sort_columns, METH_VARARGS, "sort_columns(x, threads) -> sorted, index"},
    {"sort_values", py_sort_values, METH_VARARGS, "sort_values(x, threads) -> sorted, every zero +0"},
    {"first_nonfinite", py_first_nonfinite, METH_O, "first_nonfinite(x) -> flat position, or -1"},
    {NULL, NULL, 0, NULL},
};
