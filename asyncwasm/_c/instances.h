/* Instances: the steps of a short life, one call each. */

/* Find what `instance` exports as `name`; false with an exception. Nobody is inside. */
static bool
find(void *context, PyObject *instance, PyObject *name, unsigned char *found)
{
    if (PyBytes_GET_SIZE(instance) != INSTANCE_BYTES) {
        PyErr_SetString(PyExc_ValueError, "an instance of the wrong size");
        return false;
    }
    memset(found, 0, EXTERN_BYTES);
    if (!api.export_get(context, PyBytes_AS_STRING(instance), PyBytes_AS_STRING(name),
                        (size_t)PyBytes_GET_SIZE(name), found)) {
        PyErr_SetObject(PyExc_KeyError, name);
        return false;
    }
    return true;
}

/*
 * Find the function that `instance` exports as `name`: its two words, and a tuple of its kind and
 * those words of what they point to that say which one it is; see externs.py. Nobody is inside.
 */
static PyObject *
identify_export(const Gate *gate, PyObject *instance, PyObject *name, uint64_t *words)
{
    unsigned char found[EXTERN_BYTES];
    if (!find(gate->context, instance, name, found)) {
        return NULL;
    }
    memcpy(words, found + 8, 2 * sizeof(uint64_t));
    const size_t *described = (const size_t *)(uintptr_t)words[1];
    return Py_BuildValue("iKK", 0, (unsigned long long)described[0],
                         (unsigned long long)described[3]);
}

/* (context, module, externs): (error, trap, instance) */
static PyObject *
instantiate(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PySequence_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "expected a context, a module and externs");
        return NULL;
    }
    void *context = take_address(args[0]);
    void *code = context == NULL ? NULL : take_address(args[1]);
    if (code == NULL) {
        return NULL;
    }
    PyObject *joined = NULL;
    Py_ssize_t length = PySequence_Size(args[2]);
    if (length < 0) {
        return NULL;
    }
    if (length) {
        PyObject *empty = PyBytes_FromStringAndSize(NULL, 0);
        joined = empty == NULL ? NULL : PyObject_CallMethod(empty, "join", "O", args[2]);
        Py_XDECREF(empty);
        if (joined == NULL) {
            return NULL;
        }
        if (PyBytes_GET_SIZE(joined) != length * EXTERN_BYTES) {
            Py_DECREF(joined);
            PyErr_SetString(PyExc_ValueError, "an extern of the wrong size");
            return NULL;
        }
    }
    unsigned char instance[INSTANCE_BYTES] = {0};
    void *trap = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    void *error = api.instance_new(context, code, joined ? PyBytes_AS_STRING(joined) : NULL,
                                      (size_t)length, instance, &trap);
    PyEval_RestoreThread(thread);
    Py_XDECREF(joined);
    return Py_BuildValue("KKy#", (unsigned long long)(uintptr_t)error,
                         (unsigned long long)(uintptr_t)trap, instance,
                         (Py_ssize_t)INSTANCE_BYTES);
}

/* Return a gate for (engine, limits). */
static Gate *
new_gate(PyTypeObject *type, PyObject *const *args, Py_ssize_t stack_bytes)
{
    if (type->tp_init != (initproc)Gate_init) { /* somebody wants to know of each */
        return (Gate *)PyObject_CallFunction((PyObject *)type, "OKOn", args[0],
                                             (unsigned long long)FAR, args[1], stack_bytes);
    }
    Gate *gate = (Gate *)Gate_new(type, NULL, NULL);
    if (gate != NULL && open_gate(gate, args[0], FAR, args[1], stack_bytes) < 0) {
        Py_CLEAR(gate);
    }
    return gate;
}

/*
 * build(type of gates, engine, limits, stack bytes, module, whether that is a linked one):
 *     (gate, error, trap, instance)
 *
 * A store and its first instance. It imports nothing, or is linked with plain hosts.
 */
static PyObject *
build(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6 || !PyType_Check(args[0]) ||
        !PyType_IsSubtype((PyTypeObject *)args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a type of gates, an engine, limits, bytes of "
                                         "stack, a module, and whether it is linked");
        return NULL;
    }
    Py_ssize_t stack_bytes = PyLong_AsSsize_t(args[3]);
    if (stack_bytes == -1 && PyErr_Occurred()) {
        return NULL;
    }
    void *code = take_address(args[4]);
    Gate *gate = code == NULL ? NULL : new_gate((PyTypeObject *)args[0], args + 1, stack_bytes);
    if (gate == NULL) {
        return NULL;
    }
    unsigned char instance[INSTANCE_BYTES] = {0};
    void *trap = NULL, *error;
    gate->inside = true;
    PyThreadState *thread = PyEval_SaveThread();
    if (args[5] == Py_True) {
        error = api.linked_new(code, gate->context, instance, &trap);
    }
    else {
        error = api.instance_new(gate->context, code, NULL, 0, instance, &trap);
    }
    PyEval_RestoreThread(thread);
    gate->inside = false; /* nobody else has known it yet */
    PyObject *made[] = {(PyObject *)gate, PyLong_FromVoidPtr(error), PyLong_FromVoidPtr(trap),
                        PyBytes_FromStringAndSize((const char *)instance, INSTANCE_BYTES)};
    PyObject *result = PyTuple_New(4);
    for (int index = 0; index < 4; index++) {
        if (result == NULL || made[index] == NULL) {
            Py_XDECREF(made[index]);
            Py_CLEAR(result);
        }
        else {
            PyTuple_SET_ITEM(result, index, made[index]);
        }
    }
    return result;
}

/* (context, linked module): (error, trap, instance). It has plain hosts only, and no start. */
static PyObject *
instantiate_linked(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    void *context = count == 2 ? take_address(args[0]) : NULL;
    void *linked = context == NULL ? NULL : take_address(args[1]);
    if (linked == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "expected a context and a linked module");
        }
        return NULL;
    }
    unsigned char instance[INSTANCE_BYTES] = {0};
    void *trap = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    void *error = api.linked_new(linked, context, instance, &trap);
    PyEval_RestoreThread(thread);
    return Py_BuildValue("KKy#", (unsigned long long)(uintptr_t)error,
                         (unsigned long long)(uintptr_t)trap, instance,
                         (Py_ssize_t)INSTANCE_BYTES);
}

/* (context, instance, name): the extern */
static PyObject *
find_export(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    unsigned char found[EXTERN_BYTES];
    if (count != 3 || !PyBytes_CheckExact(args[1]) || !PyBytes_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "expected a context, an instance and a name");
        return NULL;
    }
    void *context = take_address(args[0]);
    if (context == NULL || !find(context, args[1], args[2], found)) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)found, EXTERN_BYTES);
}

/*
 * (gate, instance, name): (the two words of a function), (its kind, and of what they point to those
 * words that say which one it is); None if somebody is inside, or nobody can be.
 */
static PyObject *
find_function(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyObject_TypeCheck(args[0], &Gate_Type) || !PyBytes_CheckExact(args[1]) ||
        !PyBytes_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "expected a gate, an instance and a name");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    if (!is_free(gate) || !gate->open) {
        Py_RETURN_NONE;
    }
    uint64_t words[2];
    PyObject *identity = identify_export(gate, args[1], args[2], words);
    return identity == NULL ? NULL
                            : Py_BuildValue("(KK)N", (unsigned long long)words[0],
                                            (unsigned long long)words[1], identity);
}
