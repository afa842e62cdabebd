/* Fiber: one activation on a stack of its own. */

static PyObject *
Fiber_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *handle;
    Py_ssize_t payload;
    if (!PyArg_ParseTuple(args, "O!n", &Gate_Type, &handle, &payload)) {
        return NULL;
    }
    Fiber *self = (Fiber *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->memory = PyBytes_FromStringAndSize(NULL, sizeof(head) + payload);
    if (self->memory == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    self->head = (head *)PyBytes_AS_STRING(self->memory);
    memset(self->head, 0, sizeof(head) + payload);
    self->head->gate = (Gate *)handle;
    self->handle = Py_NewRef(handle);
    return (PyObject *)self;
}

static int
Fiber_traverse(Fiber *self, visitproc visit, void *arg)
{
    Py_VISIT(self->handle);
    Py_VISIT(self->child);
    Py_VISIT(self->action);
    Py_VISIT(self->failure);
    return 0;
}

static int
Fiber_clear(Fiber *self)
{
    Py_CLEAR(self->child);
    Py_CLEAR(self->action);
    Py_CLEAR(self->failure);
    return 0;
}

static PyObject *abandoned; /* called with a fiber that dies with a future */

static void
Fiber_finalize(PyObject *object)
{
    Fiber *self = (Fiber *)object;
    if (self->head != NULL && self->head->future != NULL && abandoned != NULL) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyObject *done = PyObject_CallOneArg(abandoned, object);
        if (done == NULL) {
            PyErr_WriteUnraisable(object);
        }
        Py_XDECREF(done);
        PyErr_Restore(type, value, traceback);
    }
}

static void
Fiber_dealloc(Fiber *self)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    Fiber_clear(self);
    Py_CLEAR(self->handle);
    Py_CLEAR(self->memory);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int
Fiber_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    Fiber *self = (Fiber *)object;
    return PyBuffer_FillInfo(view, object, self->head, PyBytes_GET_SIZE(self->memory), 0, flags);
}

static PyBufferProcs Fiber_buffer = {.bf_getbuffer = Fiber_getbuffer};

/* start_call(context, (function), arguments, results) -> future */
static PyObject *
Fiber_begin_call(Fiber *self, PyObject *args)
{
    unsigned long long context, first, second;
    Py_ssize_t parameters, results;
    if (!PyArg_ParseTuple(args, "K(KK)nn", &context, &first, &second, &parameters, &results)) {
        return NULL;
    }
    head *own = self->head;
    unsigned char *values = (unsigned char *)(own + 1);
    own->function[0] = first;
    own->function[1] = second;
    own->future =
        api.call_async((void *)(uintptr_t)context, own->function, values, parameters,
                       values + VAL_BYTES * parameters, results, (void **)&own->trap,
                       (void **)&own->error);
    return PyLong_FromVoidPtr(own->future);
}

static bool
poll_now(head *own)
{
    head *previous = here.polled;
    here.polled = own;
    PyThreadState *thread = PyEval_SaveThread();
    bool done = api.poll(own->future);
    PyEval_RestoreThread(thread);
    here.polled = previous;
    if (done) {
        own->finished = 1;
    }
    return done;
}

static PyObject *
raise_failure(Fiber *self)
{
    PyObject *failure = self->failure;
    self->failure = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
    Py_DECREF(failure);
    return NULL;
}

static PyObject *
Fiber_poll(Fiber *self, PyObject *unused)
{
    self->head->guarded = ((Gate *)self->handle)->guarded;
    Py_INCREF(self);
    bool done = poll_now(self->head);
    PyObject *result = self->failure != NULL ? raise_failure(self) : PyBool_FromLong(done);
    Py_DECREF(self);
    return result;
}

/* answer(gate, hosts, value) -> whether the request has been answered */
static PyObject *
Fiber_answer(Fiber *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyObject_TypeCheck(args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "answer(gate, hosts, value)");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    head *own = self->head;
    if (!is_free(gate) || own->future == NULL) {
        Py_RETURN_FALSE;
    }
    Host *host = requested_host(own, args[1]);
    return PyBool_FromLong(host != NULL && answer_plainly(own, host, args[2]));
}

/*
 * advance(gate, hosts, operation, seconds, awaits)
 *     -> state | outcome
 *
 * Poll, and answer requests of hosts, until something else is to be done or the time is over. An
 * outcome hands back what a host has returned or raised, for the slow way, or what is to be awaited
 * for one that suspends, if the caller `awaits` those: then the context variable stays set. Its
 * value while hosts run is a call of the operation.
 */
static PyObject *
Fiber_advance(Fiber *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyObject_TypeCheck(args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "advance(gate, hosts, operation, seconds, awaits)");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    PyObject *operation = args[2], *call = NULL, *token = NULL, *result = NULL;
    double end = PyFloat_AsDouble(args[3]);
    bool awaits = args[4] == Py_True;
    head *own = self->head;
    if (end == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    end += fine_seconds();
    own->guarded = gate->guarded;
    Py_INCREF(self);
    for (;;) {
        /* Another thread may have come in while Python code ran, and may have closed the store. */
        if (!wait_outside(gate)) {
            break;
        }
        if (!is_there(gate, own)) {
            result = Py_NewRef(state_yielded);
            break;
        }
        go_inside(gate, false);
        bool done = poll_now(own);
        if (self->failure != NULL) {
            raise_failure(self);
        }
        if (leave(gate) < 0 || PyErr_Occurred()) {
            break;
        }
        if (done) {
            result = Py_NewRef(state_done);
            break;
        }
        if (!own->requested || gate->closing) {
            result = Py_NewRef(state_yielded);
            break;
        }
        Host *host = requested_host(own, args[1]);
        if (host == NULL || (host->suspending && !awaits)) {
            result = Py_NewRef(state_import);
            break;
        }
        if (token == NULL) {
            call = PyObject_CallOneArg(call_type, operation);
            token = enter_call(call);
            if (token == NULL) {
                break;
            }
        }
        Py_INCREF(host);
        Run run = run_host(own, host);
        int occupied = run.answer == NULL || run.goes_on ? 1 : is_occupied(operation);
        if (occupied > 0 || (occupied == 0 && !answer_at_once(gate, own, host, &run))) {
            result = outcome_of(&run, call);
        }
        else if (occupied == 0 && fine_seconds() >= end) {
            result = Py_NewRef(state_answered);
        }
        if (result != NULL && run.goes_on) {
            Py_CLEAR(token);
            Py_CLEAR(call);
        }
        else if (host->suspending) { /* tasks that it has left behind are on their own */
            leave_call(&call, &token);
        }
        Py_DECREF(host);
        clear_run(&run);
        if (result != NULL || PyErr_Occurred()) {
            break;
        }
    }
    leave_call(&call, &token);
    Py_DECREF(self);
    return result;
}

static PyObject *
Fiber_resume(Fiber *self, PyObject *unused)
{
    self->head->requested = 0;
    self->head->flag = 1;
    Py_RETURN_NONE;
}

static PyObject *
Fiber_get_request(Fiber *self, void *unused)
{
    head *own = self->head;
    if (!own->requested) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("KKKK", (unsigned long long)own->host, (unsigned long long)own->arguments,
                         (unsigned long long)own->results, (unsigned long long)own->trap_out);
}

static PyObject *
Fiber_get_address(Fiber *self, void *unused)
{
    return PyLong_FromVoidPtr(self->head);
}

static PyObject *
Fiber_get_future(Fiber *self, void *unused)
{
    return PyLong_FromVoidPtr(self->head->future);
}

static int
Fiber_set_future(Fiber *self, PyObject *value, void *unused)
{
    void *future = value == NULL ? NULL : PyLong_AsVoidPtr(value);
    if (future == NULL && PyErr_Occurred()) {
        return -1;
    }
    self->head->future = future;
    return 0;
}

static PyObject *
Fiber_get_finished(Fiber *self, void *unused)
{
    return PyBool_FromLong(self->head->finished);
}

static PyObject *
Fiber_get_dispatching(Fiber *self, void *unused)
{
    return PyBool_FromLong(self->head->dispatching);
}

static PyObject *
Fiber_get_object(Fiber *self, void *which)
{
    PyObject *value = *(PyObject **)((char *)self + (size_t)which);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static int
Fiber_set_object(Fiber *self, PyObject *value, void *which)
{
    PyObject **slot = (PyObject **)((char *)self + (size_t)which);
    PyObject *old = *slot;
    *slot = value == NULL || value == Py_None ? NULL : Py_NewRef(value);
    Py_XDECREF(old);
    if (slot == &self->child) {
        self->head->child =
            self->child != NULL && PyObject_TypeCheck(self->child, &Fiber_Type) ? ((Fiber *)self->child)->head
                                                                        : NULL;
    }
    if (slot == &self->action) {
        self->head->fiber = self->action == NULL ? NULL : (PyObject *)self;
    }
    return 0;
}

static PyMethodDef Fiber_methods[] = {
    {"begin_call", (PyCFunction)Fiber_begin_call, METH_VARARGS, NULL},
    {"poll", (PyCFunction)Fiber_poll, METH_O, NULL},
    {"advance", (PyCFunction)(void (*)(void))Fiber_advance, METH_FASTCALL, NULL},
    {"answer", (PyCFunction)(void (*)(void))Fiber_answer, METH_FASTCALL, NULL},
    {"resume", (PyCFunction)Fiber_resume, METH_NOARGS, NULL},
    {NULL},
};

#define OBJECT(name) (void *)offsetof(Fiber, name)

static PyGetSetDef Fiber_getset[] = {
    {"_request", (getter)Fiber_get_request, NULL, NULL, NULL},
    {"address", (getter)Fiber_get_address, NULL, NULL, NULL},
    {"future", (getter)Fiber_get_future, (setter)Fiber_set_future, NULL, NULL},
    {"finished", (getter)Fiber_get_finished, NULL, NULL, NULL},
    {"dispatching", (getter)Fiber_get_dispatching, NULL, NULL, NULL},
    {"handle", (getter)Fiber_get_object, NULL, NULL, OBJECT(handle)},
    {"kept", (getter)Fiber_get_object, NULL, NULL, OBJECT(memory)},
    {"child", (getter)Fiber_get_object, (setter)Fiber_set_object, NULL, OBJECT(child)},
    {"action", (getter)Fiber_get_object, (setter)Fiber_set_object, NULL, OBJECT(action)},
    {"failure", (getter)Fiber_get_object, (setter)Fiber_set_object, NULL, OBJECT(failure)},
    {NULL},
};

static PyTypeObject Fiber_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Fiber",
    .tp_basicsize = sizeof(Fiber),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = Fiber_new,
    .tp_dealloc = (destructor)Fiber_dealloc,
    .tp_finalize = Fiber_finalize,
    .tp_traverse = (traverseproc)Fiber_traverse,
    .tp_clear = (inquiry)Fiber_clear,
    .tp_as_buffer = &Fiber_buffer,
    .tp_methods = Fiber_methods,
    .tp_getset = Fiber_getset,
    .tp_weaklistoffset = offsetof(Fiber, weakrefs),
};
