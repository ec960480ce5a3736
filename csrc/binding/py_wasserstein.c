/* Binding of lns_wasserstein. */
#include "py_checks.h"

#include "lns_sort.h"
#include "lns_wasserstein.h"

typedef struct {
    PyArrayObject *x, *y, *y_index, *x_weights, *y_weights, *coefficient;     /* borrowed; the last four may be NULL */
    double p;
    int type, threads;
} wasserstein_t;

static int require_index(PyArrayObject *index, npy_intp rows)
{
    npy_intp count = PyArray_SIZE(index);
    for (npy_intp k = 0; k < count; k++)
        if (INTS(index)[k] < 0 || INTS(index)[k] >= rows) {
            PyErr_Format(PyExc_ValueError, "y_index: expected entries from 0 to %zd", (Py_ssize_t)rows - 1);
            return -1;
        }
    return 0;
}

static int require_wasserstein(wasserstein_t *t, PyObject *x, PyObject *y, PyObject *y_index, PyObject *x_weights,
                               PyObject *y_weights, PyObject *coefficient)
{
    if ((t->type = require_samples(x, "x", y, "y")) < 0 || require_threads(t->threads) < 0) return -1;
    t->x = (PyArrayObject *)x;
    t->y = (PyArrayObject *)y;
    npy_intp *shape = PyArray_DIMS(t->y), columns = PyArray_DIM(t->x, 1);
    if (require_power(t->p) < 0) return -1;
    if (x_weights != Py_None || y_weights != Py_None) {
        if (require_vector(x_weights, "x_weights", NPY_FLOAT64, PyArray_DIM(t->x, 0)) < 0) return -1;
        if (require_vector(y_weights, "y_weights", NPY_FLOAT64, shape[0]) < 0) return -1;
        if (require_shape(y_index, "y_index", NPY_INT32, 2, shape) < 0) return -1;
        t->x_weights = (PyArrayObject *)x_weights;
        t->y_weights = (PyArrayObject *)y_weights;
        t->y_index = (PyArrayObject *)y_index;
        if (require_index(t->y_index, shape[0]) < 0) return -1;
    }
    if (coefficient != Py_None) {
        if (require_vector(coefficient, "coefficient", NPY_FLOAT64, columns) < 0) return -1;
        t->coefficient = (PyArrayObject *)coefficient;
    }
    return 0;
}

#define DATA_OR_NULL(array) ((array) ? DATA(array) : NULL)

/* No kernel reads or writes astray for a NaN, so they are looked for only where a cost shows that there is one. A sample
 * of weight zero has no part in a cost. */
static int require_finite_samples(const wasserstein_t *t, PyArrayObject *cost)
{
    if (!t->x_weights && lns_first_nonfinite_f64(DOUBLES(cost), (size_t)PyArray_SIZE(cost)) == (size_t)PyArray_SIZE(cost))
        return 0;
    return require_finite(t->x, "x") < 0 ? -1 : require_finite(t->y, "y");
}

/* Fill cost (columns,), and grad (like x) unless it is NULL; a NaN among the samples shows in the cost. */
static int fill_results(const wasserstein_t *t, PyArrayObject *cost, PyArrayObject *grad)
{
    size_t n = (size_t)PyArray_DIM(t->x, 0), m = (size_t)PyArray_DIM(t->y, 0), columns = (size_t)PyArray_DIM(t->x, 1);
    size_t each = CALL_REAL(t->type, lns_wasserstein_scratch, n);
    int threads = t->threads;
    void *scratch = tile_scratch(each, (npy_intp)columns, &threads);
    if (!scratch) return -1;
    void *slope = DATA_OR_NULL(grad);
    const void *y_index = DATA_OR_NULL(t->y_index), *x_weights = DATA_OR_NULL(t->x_weights);
    const void *y_weights = DATA_OR_NULL(t->y_weights), *coefficient = DATA_OR_NULL(t->coefficient);
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(t->type, lns_wasserstein, DOUBLES(cost), slope, DATA(t->x), DATA(t->y), y_index, x_weights, y_weights,
              coefficient, t->p, n, m, columns, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
    PyMem_Free(scratch);
    return 0;
}

static int fill_finite(const wasserstein_t *t, PyArrayObject *cost, PyArrayObject *grad)
{
    return fill_results(t, cost, grad) < 0 ? -1 : require_finite_samples(t, cost);
}

static PyObject *py_wasserstein(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *y, *y_index, *x_weights, *y_weights;        /* borrowed */
    PyArrayObject *cost = NULL;
    wasserstein_t t = {0};
    if (!PyArg_ParseTuple(args, "OOOOOdi:wasserstein", &x, &y, &y_index, &x_weights, &y_weights, &t.p, &t.threads))
        return NULL;
    if (require_wasserstein(&t, x, y, y_index, x_weights, y_weights, Py_None) < 0) return NULL;
    if ((cost = new_column_results(t.x)) && fill_finite(&t, cost, NULL) < 0) Py_CLEAR(cost);
    return (PyObject *)cost;
}

static PyObject *py_wasserstein_grad(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *y, *y_index, *x_weights, *y_weights, *coefficient, *result = NULL;   /* all but result borrowed */
    PyArrayObject *cost = NULL, *grad = NULL;
    wasserstein_t t = {0};
    if (!PyArg_ParseTuple(args, "OOOOOOdi:wasserstein_grad", &x, &y, &y_index, &x_weights, &y_weights, &coefficient,
                          &t.p, &t.threads)) goto done;
    if (require_wasserstein(&t, x, y, y_index, x_weights, y_weights, coefficient) < 0) goto done;
    if (!(cost = new_column_results(t.x)) || !(grad = NEW(2, PyArray_DIMS(t.x), t.type))) goto done;
    if (fill_finite(&t, cost, grad) < 0) goto done;
    result = PyTuple_Pack(2, cost, grad);
done:
    Py_XDECREF(cost); Py_XDECREF(grad);
    return result;
}

/* The same for a training loss, at every step: into arrays that are kept, since new ones would be fresh pages each time.
 * Not looked through for NaN: what is refused must not have been written into, and the caller sees it in the cost. */
static PyObject *py_unit_loss(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *cost, *gradient, *x, *y, *coefficient;          /* borrowed */
    wasserstein_t t = {0};
    if (!PyArg_ParseTuple(args, "OOOOOdi:unit_loss", &cost, &gradient, &x, &y, &coefficient, &t.p, &t.threads)
        || require_wasserstein(&t, x, y, Py_None, Py_None, Py_None, coefficient) < 0) return NULL;
    npy_intp *shape = PyArray_DIMS(t.x);
    if (require_vector(coefficient, "coefficient", NPY_FLOAT64, shape[1]) < 0
        || require_shape(gradient, "gradient", t.type, 2, shape) < 0
        || PyArray_FailUnlessWriteable((PyArrayObject *)gradient, "gradient") < 0
        || require_vector(cost, "cost", NPY_FLOAT64, shape[1]) < 0
        || PyArray_FailUnlessWriteable((PyArrayObject *)cost, "cost") < 0
        || require_apart((PyObject *[]){cost, gradient, x, y, coefficient},
                         (const char *[]){"cost", "gradient", "x", "y", "coefficient"}, 2, 5) < 0) return NULL;
    if (fill_results(&t, (PyArrayObject *)cost, (PyArrayObject *)gradient) < 0) return NULL;
    Py_RETURN_NONE;
}

PyMethodDef wasserstein_methods[] = {
    {"wasserstein", py_wasserstein, METH_VARARGS,
     "wasserstein(x, y_sorted, y_index, x_weights, y_weights, p, threads) -> cost"},
    {"wasserstein_grad", py_wasserstein_grad, METH_VARARGS,
     "wasserstein_grad(x, y_sorted, y_index, x_weights, y_weights, coefficient, p, threads) -> cost, grad"},
    {"unit_loss", py_unit_loss, METH_VARARGS,
     "unit_loss(cost, gradient, x, y_sorted, coefficient, p, threads): the first two in place"},
    {NULL, NULL, 0, NULL},
};
