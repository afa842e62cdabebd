/* Host: a Python function with plain numbers. */

typedef struct {
    PyObject_HEAD
    PyObject *callable;
    bool suspending; /* what it returns is awaited */
    Signature signature;
} Host;

static PyTypeObject Host_Type;

static PyObject *
Host_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *callable, *parameters, *results;
    int suspending;
    if (!PyArg_ParseTuple(args, "OUUp", &callable, &parameters, &results, &suspending)) {
        return NULL;
    }
    Host *self = (Host *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->callable = Py_NewRef(callable);
    self->suspending = suspending;
    if (take_signature(&self->signature, parameters, results) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
Host_traverse(Host *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callable);
    return 0;
}

static int
Host_clear(Host *self)
{
    Py_CLEAR(self->callable);
    return 0;
}

static void
Host_dealloc(Host *self)
{
    PyObject_GC_UnTrack(self);
    Host_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Host_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Host",
    .tp_basicsize = sizeof(Host),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Host_new,
    .tp_dealloc = (destructor)Host_dealloc,
    .tp_traverse = (traverseproc)Host_traverse,
    .tp_clear = (inquiry)Host_clear,
};

/* The host with a number, NULL if it has to be called the slow way. */
static Host *
find_host(PyObject *hosts, uint64_t number)
{
    PyObject *entry = PyList_CheckExact(hosts) && (Py_ssize_t)number < PyList_GET_SIZE(hosts)
                          ? PyList_GET_ITEM(hosts, (Py_ssize_t)number)
                          : NULL;
    return entry != NULL && Py_IS_TYPE(entry, &Host_Type) ? (Host *)entry : NULL;
}

/* Call the host with raw arguments. */
static PyObject *
call_host(const unsigned char *from, const Host *host)
{
    PyObject *values[MOST_VALUES + 1] = {NULL}, *answer = NULL;
    Py_ssize_t made = 0, wanted = host->signature.parameters;
    while (made < wanted) {
        PyObject *value = decode(host->signature.letters[made], from + RAW_BYTES * made);
        if (value == NULL) {
            break;
        }
        values[++made] = value;
    }
    if (made == wanted) {
        answer = PyObject_Vectorcall(host->callable, values + 1,
                                     made | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    while (made > 0) {
        Py_DECREF(values[made--]);
    }
    return answer;
}

/* Write what the host has returned, raw; false if that has to be done the slow way. */
static bool
encode_answer(const Host *host, PyObject *answer, unsigned char *to)
{
    Py_ssize_t results = host->signature.results;
    const char *letters = host->signature.letters + MOST_VALUES;
    if (results == 0) {
        return true;
    }
    if (results == 1) {
        return encode(letters[0], answer, to);
    }
    if (!PyTuple_CheckExact(answer) || PyTuple_GET_SIZE(answer) != results) {
        return false;
    }
    for (Py_ssize_t index = 0; index < results; index++) {
        if (!encode(letters[index], PyTuple_GET_ITEM(answer, index), to + RAW_BYTES * index)) {
            return false;
        }
    }
    return true;
}
