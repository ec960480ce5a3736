/* Binding of lns_null. */
#include "py_checks.h"

#include "lns_null.h"

/* Every relabelling calls n samples source, those that fill the last block included: the kernel relies on it. */
static int require_labels(PyArrayObject *labels, npy_intp n)
{
    npy_intp blocks = PyArray_DIM(labels, 0), rows = PyArray_DIM(labels, 1);
    for (npy_intp b = 0; b < blocks; b++) {
        const uint64_t *words = WORDS(labels) + b * rows * LNS_WORDS;
        npy_intp sources[LNS_BLOCK] = {0};
        for (npy_intp s = 0; s < rows; s++)
            for (int r = 0; r < LNS_BLOCK; r++) sources[r] += (npy_intp)(words[s * LNS_WORDS + r / 64] >> r % 64 & 1);
        for (int r = 0; r < LNS_BLOCK; r++)
            if (sources[r] != n) {
                PyErr_Format(PyExc_ValueError, "labels: expected %zd sources in every relabelling, got %zd in number "
                             "%zd", (Py_ssize_t)n, (Py_ssize_t)sources[r], (Py_ssize_t)(b * LNS_BLOCK + r));
                return -1;
            }
    }
    return 0;
}

static PyObject *py_permutation_null(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *labels, *result = NULL;                     /* x and labels borrowed */
    PyArrayObject *mean = NULL, *std = NULL, *p_value = NULL;
    void *scratch = NULL;
    Py_ssize_t n, relabellings;
    double p;
    int threads, type;
    if (!PyArg_ParseTuple(args, "OOnndi:permutation_null", &x, &labels, &n, &relabellings, &p, &threads)) goto done;
    if ((type = real_type(x, "x")) < 0 || require(x, "x", type, 2) < 0 || require_threads(threads) < 0) goto done;
    PyArrayObject *in = (PyArrayObject *)x;
    npy_intp rows = PyArray_DIM(in, 0), columns = PyArray_DIM(in, 1);
    if (require_rows(in, "x") < 0 || require_finite(in, "x") < 0 || require_power(p) < 0) goto done;
    if (n < 1 || n >= rows || relabellings < 2) {
        PyErr_Format(PyExc_ValueError, "expected 1 to %zd sources and at least 2 relabellings, got %zd and %zd",
                     (Py_ssize_t)rows - 1, n, relabellings);
        goto done;
    }
    npy_intp shape[3] = {(relabellings - 1) / LNS_BLOCK + 1, rows, LNS_WORDS};
    if (require_shape(labels, "labels", NPY_UINT64, 3, shape) < 0) goto done;
    if (require_labels((PyArrayObject *)labels, n) < 0) goto done;
    if (!(mean = new_column_results(in)) || !(std = new_column_results(in))) goto done;
    if (!(p_value = new_column_results(in))) goto done;
    size_t each = CALL_REAL(type, lns_null_scratch, (size_t)rows, (size_t)relabellings);
    if (!(scratch = tile_scratch(each, columns, &threads))) goto done;
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(type, lns_null, DOUBLES(mean), DOUBLES(std), DOUBLES(p_value), DATA(in), DATA(labels), p, (size_t)n,
              (size_t)(rows - n), (size_t)columns, (size_t)relabellings, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(3, mean, std, p_value);
done:
    PyMem_Free(scratch);
    Py_XDECREF(mean); Py_XDECREF(std); Py_XDECREF(p_value);
    return result;
}

PyMethodDef null_methods[] = {
    {"permutation_null", py_permutation_null, METH_VARARGS,
     "permutation_null(x, labels, n, relabellings, p, threads) -> mean, std, p_value"},
    {NULL, NULL, 0, NULL},
};
