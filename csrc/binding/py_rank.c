/* Binding of lns_rank. */
#include "py_checks.h"

#include "lns_rank.h"
#include "lns_tile.h"

static PyObject *py_rank(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *result = NULL;
    PyArrayObject *auroc = NULL, *precision = NULL;
    void *scratch = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:rank", "positive", "negative") < 0) goto done;
    if (s.n + s.m > LNS_MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "positive, negative: expected at most 2^26 rows together, got %zu", s.n + s.m);
        goto done;
    }
    size_t each = CALL_REAL(s.type, lns_rank_scratch, s.n + s.m);
    if (!(auroc = new_column_results(s.x)) || !(precision = new_column_results(s.x))) goto done;
    if (!(scratch = tile_scratch(each, (npy_intp)s.columns, &s.threads))) goto done;
    double *area = DOUBLES(auroc), *average = DOUBLES(precision);
    void *work = on_line(scratch);
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(s.type, lns_rank, area, average, DATA(s.x), DATA(s.y), s.n, s.m, s.columns, work, s.threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, auroc, precision);
done:
    PyMem_Free(scratch);
    Py_XDECREF(auroc); Py_XDECREF(precision);
    return result;
}

PyMethodDef rank_methods[] = {
    {"rank", py_rank, METH_VARARGS, "rank(positive, negative, threads) -> auroc, average precision"},
    {NULL, NULL, 0, NULL},
};
