/* Callee: a function of a store, as both ways of calling it begin. */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Gate *gate;
    uint64_t function[2];
    Signature signature;
} Callee;

/* Read function, parameters and results of a callee from args[1] to args[3]. */
static bool
take_callee(Callee *self, PyObject *const *args)
{
    if (!PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[1]) != 2 ||
        !PyUnicode_CheckExact(args[2]) || !PyUnicode_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "expected two words of a function, and letters");
        return false;
    }
    for (int index = 0; index < 2; index++) {
        self->function[index] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(args[1], index));
    }
    return !PyErr_Occurred() && take_signature(&self->signature, args[2], args[3]) == 0;
}

/* Whether a thread of this process can enter the store, and nobody is in there. */
static inline bool
is_free(const Gate *gate)
{
    return !(gate->inside || gate->first != NULL || gate->closing || gate->generation != generation);
}

/* Take the exception that is on its way, with its traceback. */
static PyObject *
take_raised(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

/* Raise the exception that somebody has made, if it has been made. */
static void
raise_made(PyObject *exc)
{
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
}

/* What a weak reference refers to, as a new reference; NULL if that is gone, or with an exception. */
static PyObject *
referent(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    return PyWeakref_GetRef(reference, &object) < 0 ? NULL : object;
#else
    PyObject *object = PyWeakref_GetObject(reference);
    return object == Py_None ? NULL : Py_XNewRef(object);
#endif
}
