/* The binding, the only file that knows Python: check, take pointers, release the GIL, call, one exit.
 * Arguments are positional; the Python side reports to users, so messages here name what a caller of ops.py broke. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include "lns_affine.h"
#include "lns_optim.h"
#include "lns_port.h"
#include "lns_prox.h"
#include "lns_sort.h"
#include "lns_wasserstein.h"

#define FLOATS(array) ((float *)PyArray_DATA(array))
#define DOUBLES(array) ((double *)PyArray_DATA(array))
#define INTS(array) ((int32_t *)PyArray_DATA(array))
#define LONGS(array) ((int64_t *)PyArray_DATA(array))
#define NEW(dims, shape, type) ((PyArrayObject *)PyArray_SimpleNew(dims, shape, type))

/* ---- checks: 0, or -1 with an exception set ---- */

static int require(PyObject *object, const char *name, int type, int dims)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an array, got %.100s", name, Py_TYPE(object)->tp_name);
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

static int require_vector(PyObject *object, const char *name, int type, npy_intp size)
{
    if (require(object, name, type, 1) < 0) return -1;
    npy_intp got = PyArray_DIM((PyArrayObject *)object, 0);
    if (got == size) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected %zd entries, got %zd", name, (Py_ssize_t)size, (Py_ssize_t)got);
    return -1;
}

static int require_writeable(PyObject *object, const char *name, npy_intp size)
{
    if (require_vector(object, name, NPY_FLOAT32, size) < 0) return -1;
    return PyArray_FailUnlessWriteable((PyArrayObject *)object, name);
}

static int require_shape(PyObject *object, const char *name, int type, int dims, const npy_intp *shape)
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

static int require_rows(const PyArrayObject *array, const char *name)
{
    if (PyArray_DIM(array, 0) < INT32_MAX) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected fewer than 2^31 rows", name);
    return -1;
}

static int require_finite(PyArrayObject *array, const char *name)
{
    size_t count = (size_t)PyArray_SIZE(array), at;
    if (PyArray_TYPE(array) == NPY_FLOAT32) at = lns_first_nonfinite_f32(FLOATS(array), count);
    else at = lns_first_nonfinite_f64(DOUBLES(array), count);
    if (at == count) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected finite values, got a NaN or infinity at flat position %zu", name, at);
    return -1;
}

static int require_threads(int threads)
{
    if (threads >= 1 && threads <= 4096) return 0;
    PyErr_Format(PyExc_ValueError, "threads: expected 1 to 4096, got %d", threads);
    return -1;
}

/* float32 or float64: the type number of a real array, or -1. */
static int real_type(PyObject *object, const char *name)
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

/* ---- lns_sort ---- */

enum { LINE = 64 };                                           /* bytes of a cache line, and of the widest vector */

/* Scratch for so many threads, no more than there are tiles to share; *threads is lowered to that. The kernels get it
 * from on_line(scratch). */
static void *tile_scratch(size_t each, npy_intp columns, int *threads)
{
    npy_intp tiles = (columns + LNS_LANES - 1) / LNS_LANES;
    if (*threads > tiles) *threads = (int)tiles;
    if (each > ((size_t)PY_SSIZE_T_MAX - LINE) / (size_t)*threads) return PyErr_NoMemory();
    void *scratch = PyMem_Malloc(each * (size_t)*threads + LINE);
    return scratch ? scratch : PyErr_NoMemory();
}

static void *on_line(void *scratch) { return (char *)scratch + (LINE - (uintptr_t)scratch % LINE) % LINE; }

static PyObject *py_sort_columns(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *result = NULL;                              /* x borrowed */
    PyArrayObject *sorted = NULL, *index = NULL;
    void *scratch = NULL;
    int threads, type;
    if (!PyArg_ParseTuple(args, "Oi:sort_columns", &x, &threads)) goto done;
    if ((type = real_type(x, "x")) < 0 || require(x, "x", type, 2) < 0 || require_threads(threads) < 0) goto done;
    PyArrayObject *in = (PyArrayObject *)x;
    if (require_rows(in, "x") < 0 || require_finite(in, "x") < 0) goto done;
    npy_intp *shape = PyArray_DIMS(in);
    size_t n = (size_t)shape[0], columns = (size_t)shape[1];
    if (!(sorted = NEW(2, shape, type)) || !(index = NEW(2, shape, NPY_INT32))) goto done;
    size_t each = type == NPY_FLOAT32 ? lns_sort_scratch_f32(n) : lns_sort_scratch_f64(n);
    if (!(scratch = tile_scratch(each, shape[1], &threads))) goto done;
    Py_BEGIN_ALLOW_THREADS
    if (type == NPY_FLOAT32) lns_sort_f32(FLOATS(sorted), INTS(index), FLOATS(in), n, columns, on_line(scratch), threads);
    else lns_sort_f64(DOUBLES(sorted), INTS(index), DOUBLES(in), n, columns, on_line(scratch), threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, sorted, index);
done:
    PyMem_Free(scratch);
    Py_XDECREF(sorted); Py_XDECREF(index);
    return result;
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
    if ((t->type = real_type(x, "x")) < 0 || require(x, "x", t->type, 2) < 0 || require(y, "y", t->type, 2) < 0)
        return -1;
    t->x = (PyArrayObject *)x;
    t->y = (PyArrayObject *)y;
    npy_intp *shape = PyArray_DIMS(t->y), columns = PyArray_DIM(t->x, 1);
    if (shape[1] != columns) {
        PyErr_Format(PyExc_ValueError, "y: expected %zd columns, as x has, got %zd", (Py_ssize_t)columns,
                     (Py_ssize_t)shape[1]);
        return -1;
    }
    if (require_rows(t->x, "x") < 0 || require_rows(t->y, "y") < 0 || require_threads(t->threads) < 0) return -1;
    if (!(t->p >= 1)) {
        PyErr_SetString(PyExc_ValueError, "p: expected at least 1");
        return -1;
    }
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
    return require_finite(t->x, "x") < 0 ? -1 : require_finite(t->y, "y");
}

#define DOUBLES_OR_NULL(array) ((array) ? DOUBLES(array) : NULL)

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
    return 0;
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

/* ---- lns_affine: h is (batch, tokens, dim), or (batch, dim, tokens) where channels come first ---- */

static int require_affine(PyObject *h, PyObject *scale, PyObject *pool, int first, int threads)
{
    if (require(h, "h", NPY_FLOAT32, 3) < 0 || require_threads(threads) < 0) return -1;
    npy_intp *shape = PyArray_DIMS((PyArrayObject *)h), pool_shape[2] = {shape[0], shape[first ? 2 : 1]};
    if (require_vector(scale, "scale", NPY_FLOAT32, shape[first ? 1 : 2]) < 0) return -1;
    return require_shape(pool, "pool", NPY_FLOAT32, 2, pool_shape);
}

static PyObject *py_affine_pool(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *h, *scale, *shift, *pool, *result = NULL;       /* all but result borrowed */
    PyArrayObject *out = NULL, *pooled = NULL;
    int first, threads;
    if (!PyArg_ParseTuple(args, "OOOOpi:affine_pool", &h, &scale, &shift, &pool, &first, &threads)) goto done;
    if (require_affine(h, scale, pool, first, threads) < 0) goto done;
    PyArrayObject *in = (PyArrayObject *)h;
    npy_intp *shape = PyArray_DIMS(in), dim = shape[first ? 1 : 2], tokens = shape[first ? 2 : 1];
    npy_intp pooled_shape[2] = {shape[0], dim};
    if (require_vector(shift, "shift", NPY_FLOAT32, dim) < 0) goto done;
    if (!(out = NEW(3, shape, NPY_FLOAT32)) || !(pooled = NEW(2, pooled_shape, NPY_FLOAT32))) goto done;
    const float *w = FLOATS((PyArrayObject *)scale), *b = FLOATS((PyArrayObject *)shift);
    const float *at = FLOATS((PyArrayObject *)pool);
    Py_BEGIN_ALLOW_THREADS
    (first ? lns_affine_first_f32 : lns_affine_last_f32)(FLOATS(out), FLOATS(pooled), FLOATS(in), w, b, at,
                                                         (size_t)shape[0], (size_t)tokens, (size_t)dim, threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, out, pooled);
done:
    Py_XDECREF(out); Py_XDECREF(pooled);
    return result;
}

static PyObject *py_affine_pool_grad(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *grad_out, *grad_pooled, *h, *scale, *pool, *result = NULL;      /* all but result borrowed */
    PyArrayObject *grad_h = NULL, *grad_scale = NULL, *grad_shift = NULL;
    float *scratch = NULL;
    int first, threads;
    if (!PyArg_ParseTuple(args, "OOOOOpi:affine_pool_grad", &grad_out, &grad_pooled, &h, &scale, &pool, &first,
                          &threads)) goto done;
    if (require_affine(h, scale, pool, first, threads) < 0) goto done;
    PyArrayObject *in = (PyArrayObject *)h;
    npy_intp *shape = PyArray_DIMS(in), dim = shape[first ? 1 : 2], tokens = shape[first ? 2 : 1];
    npy_intp pooled_shape[2] = {shape[0], dim};
    if (require_shape(grad_pooled, "grad_pooled", NPY_FLOAT32, 2, pooled_shape) < 0) goto done;
    if (grad_out != Py_None && require_shape(grad_out, "grad_out", NPY_FLOAT32, 3, shape) < 0) goto done;
    if (!(grad_h = NEW(3, shape, NPY_FLOAT32)) || !(grad_scale = NEW(1, &dim, NPY_FLOAT32))
        || !(grad_shift = NEW(1, &dim, NPY_FLOAT32))) goto done;
    if (!(scratch = PyMem_Malloc(2 * (size_t)(shape[0] * dim) * sizeof *scratch))) {
        PyErr_NoMemory();
        goto done;
    }
    const float *from_out = grad_out == Py_None ? NULL : FLOATS((PyArrayObject *)grad_out);
    const float *from_pooled = FLOATS((PyArrayObject *)grad_pooled);
    const float *w = FLOATS((PyArrayObject *)scale), *at = FLOATS((PyArrayObject *)pool);
    Py_BEGIN_ALLOW_THREADS
    (first ? lns_affine_first_grad_f32 : lns_affine_last_grad_f32)(
        FLOATS(grad_h), FLOATS(grad_scale), FLOATS(grad_shift), from_out, from_pooled, FLOATS(in), w, at, scratch,
        (size_t)shape[0], (size_t)tokens, (size_t)dim, threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(3, grad_h, grad_scale, grad_shift);
done:
    PyMem_Free(scratch);
    Py_XDECREF(grad_h); Py_XDECREF(grad_scale); Py_XDECREF(grad_shift);
    return result;
}

/* ---- lns_prox ---- */

typedef struct {
    PyArrayObject *v, *offsets;                               /* borrowed */
    float center;
    size_t groups;
    double l1, group, ridge;
} penalty_t;

static int require_penalty(penalty_t *t, PyObject *v, PyObject *offsets)
{
    if (require(v, "v", NPY_FLOAT32, 1) < 0 || require(offsets, "offsets", NPY_INT64, 1) < 0) return -1;
    t->v = (PyArrayObject *)v;
    t->offsets = (PyArrayObject *)offsets;
    t->groups = (size_t)PyArray_DIM(t->offsets, 0) - 1;
    const int64_t *at = LONGS(t->offsets);
    int right = at[0] == 0 && at[t->groups] == PyArray_DIM(t->v, 0);
    for (size_t k = 0; right && k < t->groups; k++) right = at[k] <= at[k + 1];
    if (!right) {
        PyErr_Format(PyExc_ValueError, "offsets: expected an ascent from 0 to %zd", (Py_ssize_t)PyArray_DIM(t->v, 0));
        return -1;
    }
    if (t->l1 >= 0 && t->group >= 0 && t->ridge >= 0) return 0;
    PyErr_SetString(PyExc_ValueError, "l1, group, ridge: expected strengths of at least 0");
    return -1;
}

static PyObject *py_penalty(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *v, *offsets;                                    /* borrowed */
    penalty_t t = {0};
    if (!PyArg_ParseTuple(args, "OfOddd:penalty", &v, &t.center, &offsets, &t.l1, &t.group, &t.ridge)) return NULL;
    if (require_penalty(&t, v, offsets) < 0) return NULL;
    double value;
    Py_BEGIN_ALLOW_THREADS
    value = lns_penalty_f32(FLOATS(t.v), t.center, LONGS(t.offsets), t.groups, t.l1, t.group, t.ridge);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(value);
}

static PyObject *py_prox(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *v, *offsets;                                    /* borrowed */
    PyArrayObject *out = NULL;
    penalty_t t = {0};
    double step;
    if (!PyArg_ParseTuple(args, "OfOdddd:prox", &v, &t.center, &offsets, &t.l1, &t.group, &t.ridge, &step)) return NULL;
    if (require_penalty(&t, v, offsets) < 0 || !(out = NEW(1, PyArray_DIMS(t.v), NPY_FLOAT32))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_prox_f32(FLOATS(out), FLOATS(t.v), t.center, LONGS(t.offsets), t.groups, t.l1, t.group, t.ridge, step);
    Py_END_ALLOW_THREADS
    return (PyObject *)out;
}

/* ---- lns_optim: in place where an optimiser is, new arrays where a line search tries ---- */

static PyObject *py_sgd(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *velocity, *gradient;                        /* borrowed */
    double rate, momentum;
    if (!PyArg_ParseTuple(args, "OOOdd:sgd", &x, &velocity, &gradient, &rate, &momentum)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_writeable(x, "x", count) < 0 || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    if (velocity != Py_None && require_writeable(velocity, "velocity", count) < 0) return NULL;
    if (velocity == Py_None && momentum != 0) {
        PyErr_SetString(PyExc_ValueError, "velocity: expected an array where momentum is not 0");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    lns_sgd_f32(FLOATS((PyArrayObject *)x), velocity == Py_None ? NULL : FLOATS((PyArrayObject *)velocity),
                FLOATS((PyArrayObject *)gradient), rate, momentum, (size_t)count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_adam(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *first, *second, *gradient;                  /* borrowed */
    double rate, beta1, beta2, epsilon;
    Py_ssize_t iteration;
    if (!PyArg_ParseTuple(args, "OOOOddddn:adam", &x, &first, &second, &gradient, &rate, &beta1, &beta2, &epsilon,
                          &iteration)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_writeable(x, "x", count) < 0 || require_writeable(first, "first", count) < 0
        || require_writeable(second, "second", count) < 0
        || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    if (iteration < 1) {
        PyErr_Format(PyExc_ValueError, "iteration: expected at least 1, got %zd", iteration);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    lns_adam_f32(FLOATS((PyArrayObject *)x), FLOATS((PyArrayObject *)first), FLOATS((PyArrayObject *)second),
                 FLOATS((PyArrayObject *)gradient), rate, beta1, beta2, epsilon, (size_t)iteration, (size_t)count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_gradient_step(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *gradient;                                   /* borrowed */
    PyArrayObject *out = NULL;
    double step;
    if (!PyArg_ParseTuple(args, "OOd:gradient_step", &x, &gradient, &step)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0 || !(out = NEW(1, &count, NPY_FLOAT32))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_gradient_step_f32(FLOATS(out), FLOATS((PyArrayObject *)x), FLOATS((PyArrayObject *)gradient), step,
                          (size_t)count);
    Py_END_ALLOW_THREADS
    return (PyObject *)out;
}

static PyObject *py_movement(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *to, *from, *gradient;                           /* borrowed */
    if (!PyArg_ParseTuple(args, "OOO:movement", &to, &from, &gradient)) return NULL;
    if (require(to, "to", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)to, 0);
    if (require_vector(from, "from", NPY_FLOAT32, count) < 0
        || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    double slope, square;
    Py_BEGIN_ALLOW_THREADS
    lns_movement_f32(&slope, &square, FLOATS((PyArrayObject *)to), FLOATS((PyArrayObject *)from),
                     FLOATS((PyArrayObject *)gradient), (size_t)count);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("dd", slope, square);
}

static PyObject *py_cosine(PyObject *Py_UNUSED(self), PyObject *args)
{
    double rate, floor;
    Py_ssize_t at, total;
    if (!PyArg_ParseTuple(args, "ddnn:cosine", &rate, &floor, &at, &total)) return NULL;
    if (total < 1 || at < 0 || at > total) {
        PyErr_Format(PyExc_ValueError, "at, total: expected 0 <= at <= total and total >= 1, got %zd, %zd", at, total);
        return NULL;
    }
    return PyFloat_FromDouble(lns_cosine(rate, floor, (size_t)at, (size_t)total));
}

/* ---- the module ---- */

static PyMethodDef methods[] = {
    {"sort_columns", py_sort_columns, METH_VARARGS, "sort_columns(x, threads) -> sorted, index"},
    {"first_nonfinite", py_first_nonfinite, METH_O, "first_nonfinite(x) -> flat position, or -1"},
    {"wasserstein", py_wasserstein, METH_VARARGS,
     "wasserstein(x, y_sorted, y_index, x_weights, y_weights, p, threads) -> cost"},
    {"wasserstein_grad", py_wasserstein_grad, METH_VARARGS,
     "wasserstein_grad(x, y_sorted, y_index, x_weights, y_weights, coefficient, p, threads) -> cost, grad"},
    {"affine_pool", py_affine_pool, METH_VARARGS,
     "affine_pool(h, scale, shift, pool, channels_first, threads) -> out, pooled"},
    {"affine_pool_grad", py_affine_pool_grad, METH_VARARGS,
     "affine_pool_grad(grad_out, grad_pooled, h, scale, pool, channels_first, threads)"
     " -> grad_h, grad_scale, grad_shift"},
    {"penalty", py_penalty, METH_VARARGS, "penalty(v, center, offsets, l1, group, ridge) -> value"},
    {"prox", py_prox, METH_VARARGS, "prox(v, center, offsets, l1, group, ridge, step) -> new v"},
    {"sgd", py_sgd, METH_VARARGS, "sgd(x, velocity, gradient, rate, momentum): x and velocity change in place"},
    {"adam", py_adam, METH_VARARGS,
     "adam(x, first, second, gradient, rate, beta1, beta2, epsilon, iteration): in place"},
    {"gradient_step", py_gradient_step, METH_VARARGS, "gradient_step(x, gradient, step) -> x - step * gradient"},
    {"movement", py_movement, METH_VARARGS,
     "movement(to, from, gradient) -> <gradient, to - from>, |to - from|^2"},
    {"cosine", py_cosine, METH_VARARGS, "cosine(rate, floor, at, total) -> rate at that iteration"},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    return PyModule_AddObjectRef(module, "HAS_OPENMP", LNS_HAS_OPENMP ? Py_True : Py_False);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_core", .m_doc = "The C kernels of lineas, bound to NumPy arrays.",
    .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
