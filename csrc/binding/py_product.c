/* Binding of lns_product. */
#include "py_checks.h"

#include "lns_product.h"

static PyObject *py_product(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *a, *b;                                          /* borrowed */
    PyArrayObject *out = NULL;
    void *scratch = NULL;
    int threads, type;
    if (!PyArg_ParseTuple(args, "OOi:product", &a, &b, &threads)) goto done;
    if ((type = real_type(a, "a")) < 0 || require(a, "a", type, 2) < 0 || require(b, "b", type, 2) < 0) goto done;
    PyArrayObject *left = (PyArrayObject *)a, *right = (PyArrayObject *)b;
    npy_intp shape[2] = {PyArray_DIM(left, 0), PyArray_DIM(right, 1)}, inner = PyArray_DIM(left, 1);
    if (PyArray_DIM(right, 0) != inner) {
        PyErr_Format(PyExc_ValueError, "b: expected %zd rows, as many as a has columns, got %zd", (Py_ssize_t)inner,
                     (Py_ssize_t)PyArray_DIM(right, 0));
        goto done;
    }
    if (require_threads(threads) < 0) goto done;
    size_t n = (size_t)shape[0], d = (size_t)inner, columns = (size_t)shape[1];
    size_t each = CALL_REAL(type, lns_product_scratch, d);
    /* Threads share blocks of rows here, which are as high as tiles are wide. */
    if (!(scratch = tile_scratch(each, shape[0], &threads)) || !(out = NEW(2, shape, type))) goto done;
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(type, lns_product, DATA(out), DATA(left), DATA(right), n, d, columns, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
done:
    PyMem_Free(scratch);
    return (PyObject *)out;
}

PyMethodDef product_methods[] = {
    {"product", py_product, METH_VARARGS, "product(a, b, threads) -> a @ b"},
    {NULL, NULL, 0, NULL},
};
