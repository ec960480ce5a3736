/* Binding of what sorts columns, compares distributions, and projects samples for that. */
#include "py_checks.h"

#include "lns_null.h"
#include "lns_product.h"
#include "lns_sort.h"
#include "lns_wasserstein.h"

/* ---- lns_sort ---- */

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
    size_t each = type == NPY_FLOAT32 ? lns_sort_scratch_f32(n) : lns_sort_scratch_f64(n);
    if (index && !(*index = NEW(2, shape, NPY_INT32))) return NULL;
    if (!(scratch = tile_scratch(each, shape[1], &threads)) || !(sorted = NEW(2, shape, type))) goto done;
    int32_t *rows = index ? INTS(*index) : NULL;
    Py_BEGIN_ALLOW_THREADS
    if (type == NPY_FLOAT32) lns_sort_f32(FLOATS(sorted), rows, FLOATS(in), n, columns, on_line(scratch), threads);
    else lns_sort_f64(DOUBLES(sorted), rows, DOUBLES(in), n, columns, on_line(scratch), threads);
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
    at = type == NPY_FLOAT32 ? lns_first_nonfinite_f32(FLOATS(array), count)
                             : lns_first_nonfinite_f64(DOUBLES(array), count);
    Py_END_ALLOW_THREADS
    return at == count ? PyLong_FromLong(-1) : PyLong_FromSize_t(at);
}

/* ---- lns_wasserstein ---- */

static int require_power(double p)
{
    if (p >= 1) return 0;
    PyErr_SetString(PyExc_ValueError, "p: expected at least 1");
    return -1;
}

typedef struct {
    PyArrayObject *x, *y, *y_index, *x_weights, *y_weights, *coefficient;     /* borrowed; the last four may be NULL */
    double p;
    int type, threads;
} transport_t;

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

static int require_transport(transport_t *t, PyObject *x, PyObject *y, PyObject *y_index, PyObject *x_weights,
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

#define DOUBLES_OR_NULL(array) ((array) ? DOUBLES(array) : NULL)

/* No kernel reads or writes astray for a NaN, so they are looked for only where a cost shows that there is one. A sample
 * of weight zero has no part in a cost. */
static int require_finite_samples(const transport_t *t, PyArrayObject *cost)
{
    if (!t->x_weights && lns_first_nonfinite_f64(DOUBLES(cost), (size_t)PyArray_SIZE(cost)) == (size_t)PyArray_SIZE(cost))
        return 0;
    return require_finite(t->x, "x") < 0 ? -1 : require_finite(t->y, "y");
}

/* Fill cost (columns,), and grad (like x) unless it is NULL. */
static int transport(const transport_t *t, PyArrayObject *cost, PyArrayObject *grad)
{
    size_t n = (size_t)PyArray_DIM(t->x, 0), m = (size_t)PyArray_DIM(t->y, 0), columns = (size_t)PyArray_DIM(t->x, 1);
    size_t each = t->type == NPY_FLOAT32 ? lns_wasserstein_scratch_f32(n) : lns_wasserstein_scratch_f64(n);
    int threads = t->threads;
    void *scratch = tile_scratch(each, (npy_intp)columns, &threads);
    if (!scratch) return -1;
    const int32_t *y_index = t->y_index ? INTS(t->y_index) : NULL;
    const double *x_weights = DOUBLES_OR_NULL(t->x_weights), *y_weights = DOUBLES_OR_NULL(t->y_weights);
    const double *coefficient = DOUBLES_OR_NULL(t->coefficient);
    Py_BEGIN_ALLOW_THREADS
    if (t->type == NPY_FLOAT32)
        lns_wasserstein_f32(DOUBLES(cost), grad ? FLOATS(grad) : NULL, FLOATS(t->x), FLOATS(t->y), y_index,
                            x_weights, y_weights, coefficient, t->p, n, m, columns, on_line(scratch), threads);
    else
        lns_wasserstein_f64(DOUBLES(cost), grad ? DOUBLES(grad) : NULL, DOUBLES(t->x), DOUBLES(t->y), y_index,
                            x_weights, y_weights, coefficient, t->p, n, m, columns, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
    PyMem_Free(scratch);
    return require_finite_samples(t, cost);
}

static PyObject *py_wasserstein(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *y, *y_index, *x_weights, *y_weights;        /* borrowed */
    PyArrayObject *cost = NULL;
    transport_t t = {0};
    if (!PyArg_ParseTuple(args, "OOOOOdi:wasserstein", &x, &y, &y_index, &x_weights, &y_weights, &t.p, &t.threads))
        return NULL;
    if (require_transport(&t, x, y, y_index, x_weights, y_weights, Py_None) < 0) return NULL;
    npy_intp columns = PyArray_DIM(t.x, 1);
    if ((cost = NEW(1, &columns, NPY_FLOAT64)) && transport(&t, cost, NULL) < 0) Py_CLEAR(cost);
    return (PyObject *)cost;
}

static PyObject *py_wasserstein_grad(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *y, *y_index, *x_weights, *y_weights, *coefficient, *result = NULL;   /* all but result borrowed */
    PyArrayObject *cost = NULL, *grad = NULL;
    transport_t t = {0};
    if (!PyArg_ParseTuple(args, "OOOOOOdi:wasserstein_grad", &x, &y, &y_index, &x_weights, &y_weights, &coefficient,
                          &t.p, &t.threads)) goto done;
    if (require_transport(&t, x, y, y_index, x_weights, y_weights, coefficient) < 0) goto done;
    npy_intp columns = PyArray_DIM(t.x, 1);
    if (!(cost = NEW(1, &columns, NPY_FLOAT64)) || !(grad = NEW(2, PyArray_DIMS(t.x), t.type))) goto done;
    if (transport(&t, cost, grad) < 0) goto done;
    result = PyTuple_Pack(2, cost, grad);
done:
    Py_XDECREF(cost); Py_XDECREF(grad);
    return result;
}

/* The same for a training loss, at every step: into arrays that are kept, since new ones would be fresh pages each time.
 * Not looked through for NaN: the caller sees it in the cost. */
static PyObject *py_unit_loss(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *cost, *gradient, *x, *y, *coefficient;          /* borrowed */
    void *scratch;
    double p;
    int threads, type;
    if (!PyArg_ParseTuple(args, "OOOOOdi:unit_loss", &cost, &gradient, &x, &y, &coefficient, &p, &threads)) return NULL;
    if ((type = require_samples(x, "x", y, "y")) < 0 || require_threads(threads) < 0 || require_power(p) < 0) return NULL;
    npy_intp *shape = PyArray_DIMS((PyArrayObject *)x);
    if (require_shape(gradient, "gradient", type, 2, shape) < 0
        || PyArray_FailUnlessWriteable((PyArrayObject *)gradient, "gradient") < 0
        || require_vector(cost, "cost", NPY_FLOAT64, shape[1]) < 0
        || PyArray_FailUnlessWriteable((PyArrayObject *)cost, "cost") < 0
        || require_vector(coefficient, "coefficient", NPY_FLOAT64, shape[1]) < 0
        || require_apart((PyObject *[]){cost, gradient, x, y, coefficient},
                         (const char *[]){"cost", "gradient", "x", "y", "coefficient"}, 2, 5) < 0) return NULL;
    PyArrayObject *from = (PyArrayObject *)x, *to = (PyArrayObject *)y, *slope = (PyArrayObject *)gradient;
    double *costs = DOUBLES((PyArrayObject *)cost), *counts = DOUBLES((PyArrayObject *)coefficient);
    size_t n = (size_t)shape[0], m = (size_t)PyArray_DIM(to, 0), columns = (size_t)shape[1];
    size_t each = type == NPY_FLOAT32 ? lns_wasserstein_scratch_f32(n) : lns_wasserstein_scratch_f64(n);
    if (!(scratch = tile_scratch(each, shape[1], &threads))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (type == NPY_FLOAT32)
        lns_wasserstein_f32(costs, FLOATS(slope), FLOATS(from), FLOATS(to), NULL, NULL, NULL, counts, p, n, m, columns,
                            on_line(scratch), threads);
    else
        lns_wasserstein_f64(costs, DOUBLES(slope), DOUBLES(from), DOUBLES(to), NULL, NULL, NULL, counts, p, n, m, columns,
                            on_line(scratch), threads);
    Py_END_ALLOW_THREADS
    PyMem_Free(scratch);
    Py_RETURN_NONE;
}

/* ---- lns_null ---- */

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
    if (!(mean = NEW(1, &columns, NPY_FLOAT64)) || !(std = NEW(1, &columns, NPY_FLOAT64))) goto done;
    if (!(p_value = NEW(1, &columns, NPY_FLOAT64))) goto done;
    size_t each = type == NPY_FLOAT32 ? lns_null_scratch_f32((size_t)rows, (size_t)relabellings)
                                      : lns_null_scratch_f64((size_t)rows, (size_t)relabellings);
    if (!(scratch = tile_scratch(each, columns, &threads))) goto done;
    Py_BEGIN_ALLOW_THREADS
    if (type == NPY_FLOAT32)
        lns_null_f32(DOUBLES(mean), DOUBLES(std), DOUBLES(p_value), FLOATS(in), WORDS((PyArrayObject *)labels), p,
                     (size_t)n, (size_t)(rows - n), (size_t)columns, (size_t)relabellings, on_line(scratch), threads);
    else
        lns_null_f64(DOUBLES(mean), DOUBLES(std), DOUBLES(p_value), DOUBLES(in), WORDS((PyArrayObject *)labels), p,
                     (size_t)n, (size_t)(rows - n), (size_t)columns, (size_t)relabellings, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(3, mean, std, p_value);
done:
    PyMem_Free(scratch);
    Py_XDECREF(mean); Py_XDECREF(std); Py_XDECREF(p_value);
    return result;
}

/* ---- lns_product ---- */

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
    size_t each = type == NPY_FLOAT32 ? lns_product_scratch_f32(d) : lns_product_scratch_f64(d);
    /* Threads share blocks of rows here, which are as high as tiles are wide. */
    if (!(scratch = tile_scratch(each, shape[0], &threads)) || !(out = NEW(2, shape, type))) goto done;
    Py_BEGIN_ALLOW_THREADS
    if (type == NPY_FLOAT32)
        lns_product_f32(FLOATS(out), FLOATS(left), FLOATS(right), n, d, columns, on_line(scratch), threads);
    else lns_product_f64(DOUBLES(out), DOUBLES(left), DOUBLES(right), n, d, columns, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
done:
    PyMem_Free(scratch);
    return (PyObject *)out;
}

PyMethodDef transport_methods[] = {
    {"sort_columns", py_sort_columns, METH_VARARGS, "sort_columns(x, threads) -> sorted, index"},
    {"sort_values", py_sort_values, METH_VARARGS, "sort_values(x, threads) -> sorted, every zero +0"},
    {"first_nonfinite", py_first_nonfinite, METH_O, "first_nonfinite(x) -> flat position, or -1"},
    {"wasserstein", py_wasserstein, METH_VARARGS,
     "wasserstein(x, y_sorted, y_index, x_weights, y_weights, p, threads) -> cost"},
    {"wasserstein_grad", py_wasserstein_grad, METH_VARARGS,
     "wasserstein_grad(x, y_sorted, y_index, x_weights, y_weights, coefficient, p, threads) -> cost, grad"},
    {"unit_loss", py_unit_loss, METH_VARARGS,
     "unit_loss(cost, gradient, x, y_sorted, coefficient, p, threads): the first two in place"},
    {"permutation_null", py_permutation_null, METH_VARARGS,
     "permutation_null(x, labels, n, relabellings, p, threads) -> mean, std, p_value"},
    {"product", py_product, METH_VARARGS, "product(a, b, threads) -> a @ b"},
    {NULL, NULL, 0, NULL},
};
