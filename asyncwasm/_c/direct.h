/*
 * Direct: what is called on this thread's own stack, unchecked.
 *
 * The base of exported functions. Where an argument or the store needs more care, or if it was not
 * made for one, its `_detour` is called with the arguments instead. `_failed` makes the exception
 * of an error and a trap pointer; `_held` is told about calls longer than it was made with.
 */

static PyObject *
Direct_detour(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    PyObject *values = PyTuple_New(count);
    if (values == NULL) {
        return NULL;
    }
    for (Py_ssize_t index = 0; index < count; index++) {
        PyTuple_SET_ITEM(values, index, Py_NewRef(args[index]));
    }
    PyObject *result = PyObject_CallMethodOneArg(self, name_detour, values);
    Py_DECREF(values);
    return result;
}

/* Call with encoded values; the caller has made sure that nobody is in the way. */
static PyObject *
Direct_run(Direct *self, unsigned char *values, Py_ssize_t length)
{
    Callee *callee = &self->callee;
    Gate *gate = callee->gate;
    Clock *clock = (Clock *)gate->clock;
    void *trap = NULL;
    Activation own = {.outer = here.running, .function = self};
    head *polled = here.polled; /* whose action has come here by way of a finalizer */
    if (clock->parked) {
        wake_clock(clock); /* if that is impossible, nobody looks for signals */
    }
    count_call(self, clock);
    Py_INCREF(self); /* the guest may outlive every other reference */
    begin_yielding(gate);
    here.polled = NULL;
    here.running = &own;
    if (gate->top == NULL) {
        gate->top = (char *)&own;
    }
    clock->guests++; /* what it does between two ticks may take longer than the clock has patience */
    run_on(&own);
    /* Where no host runs and no tick is met, it has not taken long. */
    bool timed = gate->hosted || !own.holds || self->hold_seconds < TICK_SECONDS;
    double started = timed ? coarse_seconds() : 0;
    void *error = api.call_unchecked(gate->context, callee->function, values, length, &trap);
    if (own.thread != NULL) {
        PyEval_RestoreThread(own.thread);
    }
    clock->guests--;
    gate->inside = gate->roomless = false; /* for what has been left behind */
    here.running = own.outer;
    here.polled = polled;
    if (gate->top == (char *)&own) {
        gate->top = NULL;
    }
    PyObject *result = NULL;
    bool goes_on = end_activation(&own, error, trap);
    if (leave(gate) < 0 || !goes_on) {
        goto leave;
    }
    if (error != NULL || trap != NULL) {
        raise_made(PyObject_CallMethod((PyObject *)self, "_failed", "KK",
                                       (unsigned long long)(uintptr_t)error,
                                       (unsigned long long)(uintptr_t)trap));
        goto leave;
    }
    if (timed || own.since != 0) {
        double seconds = coarse_seconds() - (timed ? started : own.since);
        if (seconds > self->hold_seconds) {
            PyObject *done = PyObject_CallMethod((PyObject *)self, "_held", "d", seconds);
            if (done == NULL) {
                goto leave;
            }
            Py_DECREF(done);
        }
    }
    result = decode_results(&callee->signature, values, RAW_BYTES);
leave:
    Py_DECREF(self);
    return result;
}

static bool deadlines; /* whether some store has ever had one for synchronous calls */

/* Whether what runs now runs on behalf of a call. */
static bool
has_outer(void)
{
    PyObject *call = NULL;
    if (here.running != NULL || PyContextVar_Get(current_call, Py_None, &call) < 0) {
        PyErr_Clear();
        return true;
    }
    Py_DECREF(call);
    return call != Py_None;
}

/* Whether hosts can run on this thread's own stack, as far as can be told without Python. */
static inline bool
can_host(const Direct *self)
{
    return self->hosts != NULL && !(deadlines && has_outer()) && !greenlets_switch();
}

/* Whether there is a fiber that waits for its operation. */
static bool
is_handed(const Gate *gate)
{
    if (gate->handed == NULL || gate->handed == Py_None) {
        return false;
    }
    PyObject *fiber = referent(gate->handed);
    PyErr_Clear(); /* it is no reference of ours */
    Py_XDECREF(fiber);
    return fiber != NULL;
}

/* Whether a call that nobody knows of yet is in the way: on this thread it is what this one nests in. */
static inline bool
is_stopped(const Gate *gate)
{
    return (gate->standing || is_handed(gate)) && gate->handed_by != PyThread_get_thread_ident();
}

static PyObject *
Direct_vectorcall(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Direct *self = (Direct *)callable;
    Callee *callee = &self->callee;
    Gate *gate = callee->gate;
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    unsigned char values[RAW_BYTES * MOST_VALUES];
    if (names != NULL && PyTuple_GET_SIZE(names)) {
        PyErr_SetString(PyExc_TypeError, "a wasm function takes no keyword arguments");
        return NULL;
    }
    if (gate == NULL || gate->detour || gate->clock == NULL || !is_free(gate) || is_stopped(gate) ||
        count != callee->signature.parameters || !fits(gate) ||
        (gate->hosted && !can_host(self))) {
        return Direct_detour(callable, args, count);
    }
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!encode(callee->signature.letters[index], args[index], values + RAW_BYTES * index)) {
            return Direct_detour(callable, args, count);
        }
    }
    Py_ssize_t results = callee->signature.results;
    return Direct_run(self, values, count > results ? count : results);
}

/* _through(values) -> the result; NotImplemented if somebody has come in. Nothing else is checked. */
static PyObject *
Direct_through(Direct *self, PyObject *given)
{
    Callee *callee = &self->callee;
    Gate *gate = callee->gate;
    unsigned char values[RAW_BYTES * MOST_VALUES];
    if (gate == NULL || !PyTuple_CheckExact(given) ||
        PyTuple_GET_SIZE(given) != callee->signature.parameters ||
        gate->clock == NULL || (gate->hosted && self->hosts == NULL)) {
        PyErr_SetString(PyExc_TypeError, "_through(converted values), of one in a store");
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(given), results = callee->signature.results;
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!encode(callee->signature.letters[index], PyTuple_GET_ITEM(given, index),
                    values + RAW_BYTES * index)) {
            PyErr_SetString(PyExc_TypeError, "a value has not been converted");
            return NULL;
        }
    }
    /* Whoever only looks at something is waited for. */
    if (!(gate->inside && gate->roomless) && !wait_outside(gate)) {
        return NULL;
    }
    if (gate->inside || gate->closing || gate->generation != generation || is_stopped(gate)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    return Direct_run(self, values, count > results ? count : results);
}

static PyObject *
Direct_call(PyObject *callable, PyObject *args, PyObject *kwargs)
{
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "a wasm function takes no keyword arguments");
        return NULL;
    }
    return Direct_vectorcall(callable, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args),
                             NULL);
}

static PyObject *
Direct_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Direct *self = (Direct *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->callee.vectorcall = Direct_vectorcall;
    }
    return (PyObject *)self;
}

/*
 * _new(gate, (function), parameters, results, hold_seconds, store, shape, name): one of a store
 */
static PyObject *
Direct_make(PyObject *type, PyObject *const *args, Py_ssize_t count)
{
    if (count != 8 || !PyObject_TypeCheck(args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "_new(gate, function, parameters, results, hold_seconds, "
                                         "store, shape, name)");
        return NULL;
    }
    Direct *self = (Direct *)Direct_new((PyTypeObject *)type, NULL, NULL);
    if (self == NULL) {
        return NULL;
    }
    self->store = Py_NewRef(args[5]);
    self->shape = Py_NewRef(args[6]);
    self->name = Py_NewRef(args[7]);
    self->hold_seconds = PyFloat_AsDouble(args[4]);
    if (!take_callee(&self->callee, args) || PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    self->callee.gate = (Gate *)Py_NewRef(args[0]);
    return (PyObject *)self;
}

/*
 * _exported(gate, instance, (name, parameters, results, shape, name), hold_seconds, store, hosts,
 *           known)
 *
 * The function that an instance exports: the one that is `known` by what it is, or one made now,
 * which becomes so. None if somebody is inside, or nobody can be.
 */
static PyObject *
Direct_exported(PyObject *type, PyObject *const *args, Py_ssize_t count)
{
    if (count != 7 || !PyObject_TypeCheck(args[0], &Gate_Type) || !PyBytes_CheckExact(args[1]) ||
        !PyTuple_CheckExact(args[2]) || PyTuple_GET_SIZE(args[2]) != 5 ||
        !PyBytes_CheckExact(PyTuple_GET_ITEM(args[2], 0)) || !PyDict_CheckExact(args[6])) {
        PyErr_SetString(PyExc_TypeError, "_exported(gate, instance, what is exported, "
                                         "hold_seconds, store, hosts, known functions)");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    PyObject *const *export = ((PyTupleObject *)args[2])->ob_item;
    uint64_t words[2];
    if (!is_free(gate) || !gate->open) {
        Py_RETURN_NONE;
    }
    PyObject *identity = identify_export(gate, args[1], export[0], words), *made = NULL;
    if (identity == NULL) {
        return NULL;
    }
    PyObject *reference = PyDict_GetItemWithError(args[6], identity);
    if (reference != NULL) {
        made = referent(reference);
    }
    if (made != NULL) {
        if (PyObject_TypeCheck(made, &Direct_Type) && PyObject_Not(((Direct *)made)->name) == 1) {
            Py_XSETREF(((Direct *)made)->name, Py_NewRef(export[4])); /* met in a table before */
        }
    }
    else if (!PyErr_Occurred()) {
        PyObject *words_of = Py_BuildValue("KK", (unsigned long long)words[0],
                                           (unsigned long long)words[1]);
        PyObject *given[] = {args[0], words_of, export[1], export[2],
                             args[3], args[4],  export[3], export[4]};
        made = words_of == NULL ? NULL : Direct_make(type, given, 8);
        Py_XDECREF(words_of);
        reference = made == NULL ? NULL : PyWeakref_NewRef(made, NULL);
        if (reference == NULL || PyDict_SetItem(args[6], identity, reference) < 0) {
            Py_CLEAR(made);
        }
        else if (args[5] != Py_None) {
            ((Direct *)made)->hosts = Py_NewRef(args[5]);
        }
        Py_XDECREF(reference);
    }
    Py_DECREF(identity);
    return made;
}

static PyObject *make_extern; /* of the two words of a function */

static PyObject *
Direct_get_extern(Direct *self, void *unused)
{
    const uint64_t *words = self->callee.function;
    if (self->external == NULL && self->callee.gate != NULL) {
        self->external = PyObject_CallFunction(make_extern, "((KK))", (unsigned long long)words[0],
                                               (unsigned long long)words[1]);
        if (self->external == NULL) {
            return NULL;
        }
    }
    return Py_NewRef(self->external == NULL ? Py_None : self->external);
}

static int
Direct_set_extern(Direct *self, PyObject *value, void *unused)
{
    Py_XSETREF(self->external, value == NULL || value == Py_None ? NULL : Py_NewRef(value));
    return 0;
}

static PyMemberDef Direct_members[] = {
    {"_name", T_OBJECT, offsetof(Direct, name), 0, NULL},
    {"_quick", T_OBJECT, offsetof(Direct, quick), 0, NULL},
    {"_shape", T_OBJECT, offsetof(Direct, shape), 0, NULL},
    {"_store", T_OBJECT, offsetof(Direct, store), 0, NULL},
    {NULL},
};

static PyMethodDef Direct_methods[] = {
    {"_exported", (PyCFunction)(void (*)(void))Direct_exported, METH_FASTCALL | METH_CLASS, NULL},
    {"_new", (PyCFunction)(void (*)(void))Direct_make, METH_FASTCALL | METH_CLASS, NULL},
    {"_through", (PyCFunction)Direct_through, METH_O, NULL},
    {NULL},
};

static int
Direct_set_hosts(Direct *self, PyObject *hosts, void *unused)
{
    if (hosts == NULL || !PyList_CheckExact(hosts)) {
        PyErr_SetString(PyExc_TypeError, "expected a list of hosts");
        return -1;
    }
    if (self->hosts == NULL) { /* it is the same one each time */
        self->hosts = Py_NewRef(hosts);
    }
    return 0;
}

static PyObject *
Direct_get_hosts(Direct *self, void *unused)
{
    return Py_NewRef(self->hosts == NULL ? Py_None : self->hosts);
}

static PyGetSetDef Direct_getset[] = {
    {"_extern", (getter)Direct_get_extern, (setter)Direct_set_extern, NULL, NULL},
    {"_hosts", (getter)Direct_get_hosts, (setter)Direct_set_hosts, NULL, NULL},
    {NULL},
};

static int
Direct_traverse(Direct *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callee.gate);
    Py_VISIT(self->external);
    Py_VISIT(self->hosts);
    Py_VISIT(self->name);
    Py_VISIT(self->quick);
    Py_VISIT(self->shape);
    Py_VISIT(self->store);
    return 0;
}

static int
Direct_clear(Direct *self)
{
    Py_CLEAR(self->quick);
    return 0;
}

static void
Direct_dealloc(Direct *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->callee.gate);
    Py_CLEAR(self->external);
    Py_CLEAR(self->hosts);
    Py_CLEAR(self->name);
    Py_CLEAR(self->quick);
    Py_CLEAR(self->shape);
    Py_CLEAR(self->store);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Direct_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Direct",
    .tp_basicsize = sizeof(Direct),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
                Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = Direct_new,
    .tp_dealloc = (destructor)Direct_dealloc,
    .tp_traverse = (traverseproc)Direct_traverse,
    .tp_clear = (inquiry)Direct_clear,
    .tp_call = Direct_call,
    .tp_vectorcall_offset = offsetof(Callee, vectorcall),
    .tp_methods = Direct_methods,
    .tp_getset = Direct_getset,
    .tp_members = Direct_members,
};
