/* Quick: the first slice of an awaited call. */

typedef struct {
    Callee callee;
    Clock *clock;
    PyObject *failed; /* makes the exception of an error and a trap pointer */
    PyObject *hosts;  /* list of the store's that are plain, None for each other one */
    PyTypeObject *fiber_type;
} Quick;

#define SLICE_SECONDS 0.001 /* in which hosts are answered; drive.py and running.py know theirs */
#define STRETCH_SECONDS 0.02

/* Make the fiber of a call that is not over, and note it where it has to be known. */
static PyObject *
Quick_hand_over(Quick *self, PyObject *memory)
{
    head *own = (head *)PyBytes_AS_STRING(memory);
    Gate *gate = self->callee.gate;
    PyObject *key = NULL, *kept = NULL, *handed = NULL;
    Fiber *fiber = (Fiber *)self->fiber_type->tp_alloc(self->fiber_type, 0);
    if (fiber == NULL) {
        goto failed;
    }
    fiber->memory = Py_NewRef(memory);
    fiber->handle = Py_NewRef((PyObject *)gate);
    handed = PyWeakref_NewRef((PyObject *)fiber, NULL);
    key = PyLong_FromVoidPtr(own->future);
    kept = PyTuple_Pack(2, memory, Py_None);
    if (handed == NULL || key == NULL || kept == NULL ||
        futures_of(gate) == NULL || PyDict_SetItem(gate->futures, key, kept) < 0) {
        goto failed;
    }
    fiber->head = own;
    Py_XSETREF(gate->handed, handed);
    gate->quick = false; /* until its operation is over */
    gate->handed_by = PyThread_get_thread_ident();
    Py_DECREF(key);
    Py_DECREF(kept);
    return (PyObject *)fiber;
failed:
    api.delete(own->future); /* the caller is inside */
    own->future = NULL;
    Py_XDECREF(handed);
    Py_XDECREF(key);
    Py_XDECREF(kept);
    Py_XDECREF(fiber);
    return NULL;
}

/* Delete the future of a call that is over; the caller is inside. */
static int
forget_future(Gate *gate, head *own)
{
    PyObject *key = PyLong_FromVoidPtr(own->future);
    if (key == NULL) {
        return -1;
    }
    api.delete(own->future);
    own->future = NULL;
    int done = PyDict_DelItem(gate->futures, key);
    Py_DECREF(key);
    return done;
}

/*
 * Answer requests of hosts, of a call that nobody knows of yet; of those that suspend if `awaits`.
 *
 * Hosts see a call without an operation; should they need one, it is made (`HostCall.operation`),
 * and has the room from then on. Returns NULL if it is `done`, or with an exception; the fiber, if
 * it has to go on the long way; or the call, with what its host has returned or raised.
 */
static PyObject *
Quick_answer(Quick *self, PyObject *function, PyObject *given, PyObject *fiber, double end,
             bool awaits, bool *done)
{
    Gate *gate = self->callee.gate;
    head *own = ((Fiber *)fiber)->head;
    PyObject *result = NULL, *token = NULL, *begun = NULL;
    PyObject *call = NULL;
    for (;;) {
        /* Where the guest is gone, so is what it has given. */
        Host *host = is_there(gate, own) ? requested_host(own, self->hosts) : NULL;
        if (host == NULL || (host->suspending && !awaits)) {
            result = Py_NewRef(fiber);
            break;
        }
        if (token == NULL) {
            call = PyObject_CallFunctionObjArgs(call_type, Py_None, function, given, fiber, NULL);
            token = enter_call(call);
            if (token == NULL) {
                break;
            }
            Py_XSETREF(gate->answering, Py_NewRef(call));
        }
        Py_INCREF(host);
        Run run = run_host(own, host);
        bool ended = host->suspending && !run.goes_on;
        Py_XSETREF(begun, PyObject_GetAttr(call, name_begun));
        bool plain = begun == Py_False && answer_at_once(gate, own, host, &run);
        Py_DECREF(host);
        if (!plain && begun != NULL) {
            PyObject *outcome = outcome_of(&run, call);
            if (outcome != NULL && PyObject_SetAttr(call, name_outcome, outcome) == 0) {
                result = Py_NewRef(call);
            }
            Py_XDECREF(outcome);
        }
        if (run.goes_on && result != NULL) { /* whoever awaits the rest leaves the call */
            Py_CLEAR(gate->answering);
            Py_CLEAR(token);
            Py_CLEAR(call);
        }
        else if (plain && ended) { /* tasks that it has left behind are on their own */
            Py_CLEAR(gate->answering);
            leave_call(&call, &token);
        }
        clear_run(&run);
        if (!plain) {
            break;
        }
        if (fine_seconds() >= end) {
            result = Py_NewRef(fiber);
            break;
        }
        /* Another thread may look at something in there. */
        if (!wait_outside(gate)) {
            break;
        }
        if (gate->closing) {
            result = Py_NewRef(call != NULL ? call : fiber); /* its operation says so */
            break;
        }
        go_inside(gate, true);
        *done = poll_now(own);
        gate->roomless = false;
        int left = *done ? forget_future(gate, own) : 0;
        if (leave(gate) < 0 || left < 0) {
            *done = false;
            break;
        }
        if (*done || !own->requested) {
            result = *done ? NULL : Py_NewRef(fiber);
            break;
        }
    }
    if (token != NULL) {
        Py_CLEAR(gate->answering);
    }
    if (*done) {
        Py_CLEAR(gate->handed);
        gate->quick = true;
    }
    leave_call(&call, &token);
    Py_XDECREF(begun);
    return result;
}

static PyObject *
Quick_vectorcall(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Quick *self = (Quick *)callable;
    Callee *callee = &self->callee;
    const Signature *signature = &callee->signature;
    Gate *gate = callee->gate;
    Clock *clock = self->clock;
    Py_ssize_t passed = PyVectorcall_NARGS(flags);
    if (passed < 2 || passed > 3 || !PyTuple_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError,
                        "expected a function, a tuple, and whether the call is awaited");
        return NULL;
    }
    PyObject *given = args[1];
    bool awaited = passed == 2 || args[2] != Py_False;
    Py_ssize_t count = PyTuple_GET_SIZE(given);
    if (!gate->quick || !is_free(gate) || gate->standing || clock->parked || clock->manual ||
        (gate->hosted && !gate->waitable) || count != signature->parameters ||
        (awaited && streak(clock, false) != 0)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    PyObject *result = NULL,
             *memory = PyBytes_FromStringAndSize(
                 NULL, sizeof(head) + VAL_BYTES * (signature->parameters + signature->results));
    if (memory == NULL) {
        return NULL;
    }
    head *own = (head *)PyBytes_AS_STRING(memory);
    unsigned char *values = (unsigned char *)(own + 1);
    memset(own, 0, sizeof(head));
    for (Py_ssize_t index = 0; index < count; index++) {
        unsigned char *to = values + VAL_BYTES * index;
        char letter = signature->letters[index];
        if (!encode(letter, PyTuple_GET_ITEM(given, index), to + 8)) {
            Py_DECREF(memory);
            Py_RETURN_NOTIMPLEMENTED;
        }
        memset(to, 0, 8);
        to[0] = kinds[(unsigned char)letter];
    }
    unsigned char *returned = values + VAL_BYTES * count;
    memset(returned, 0, VAL_BYTES * signature->results);
    own->function[0] = callee->function[0];
    own->function[1] = callee->function[1];
    own->guarded = gate->guarded;
    own->gate = gate;
    Py_INCREF(self); /* the guest may outlive every other reference */
    begin_yielding(gate);
    gate->near = gate->soon = true;
    api.set_deadline(gate->context, NEAR); /* from now on: the last one may be long over */
    clock->needed = true;
    go_inside(gate, true);
    head *previous = here.polled;
    here.polled = own;
    PyThreadState *thread = PyEval_SaveThread();
    own->future = api.call_async(gate->context, own->function, values, count, returned,
                                 signature->results, (void **)&own->trap, (void **)&own->error);
    bool done = api.poll(own->future);
    if (done) {
        api.delete(own->future);
    }
    PyEval_RestoreThread(thread);
    here.polled = previous;
    gate->roomless = false;
    if (awaited) {
        turn.last = clock->ticks;
    }
    bool alone = gate->quick; /* else somebody has come meanwhile, who may get the room first */
    if (!done) {
        result = Quick_hand_over(self, memory);
    }
    if (leave(gate) < 0) {
        Py_CLEAR(result);
        goto leave;
    }
    if (!done && result != NULL && own->requested && !gate->guarded && alone) {
        double end = fine_seconds() + (awaited ? SLICE_SECONDS : STRETCH_SECONDS);
        PyObject *fiber = result;
        result = Quick_answer(self, args[0], given, fiber, end, awaited, &done);
        Py_DECREF(fiber);
        if (awaited) {
            turn.last = clock->ticks;
        }
    }
    if (!done) {
        goto leave;
    }
    if (own->error || own->trap) {
        raise_made(PyObject_CallFunction(self->failed, "KK", (unsigned long long)own->error,
                                         (unsigned long long)own->trap));
        goto leave;
    }
    result = decode_results(signature, returned + 8, VAL_BYTES);
leave:
    Py_DECREF(memory);
    Py_DECREF(self);
    return result;
}

/* Quick(gate, function, parameters, results, clock, failed, hosts, fiber type) */
static PyObject *
Quick_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *const *given = ((PyTupleObject *)args)->ob_item;
    if (PyTuple_GET_SIZE(args) != 8 || !PyObject_TypeCheck(given[0], &Gate_Type) ||
        !Py_IS_TYPE(given[4], &Clock_Type) || !PyType_Check(given[7]) ||
        !PyType_IsSubtype((PyTypeObject *)given[7], &Fiber_Type)) {
        PyErr_SetString(PyExc_TypeError, "Quick(gate, function, parameters, results, "
                                         "clock, failed, hosts, fiber type)");
        return NULL;
    }
    Quick *self = (Quick *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->callee.vectorcall = Quick_vectorcall;
    self->callee.gate = (Gate *)Py_NewRef(given[0]);
    self->clock = (Clock *)Py_NewRef(given[4]);
    self->failed = Py_NewRef(given[5]);
    self->hosts = Py_NewRef(given[6]);
    self->fiber_type = (PyTypeObject *)Py_NewRef(given[7]);
    if (!take_callee(&self->callee, given)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
Quick_traverse(Quick *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callee.gate);
    Py_VISIT(self->failed);
    Py_VISIT(self->hosts);
    return 0;
}

static int
Quick_clear(Quick *self)
{
    Py_CLEAR(self->failed);
    return 0;
}

static void
Quick_dealloc(Quick *self)
{
    PyObject_GC_UnTrack(self);
    Quick_clear(self);
    Py_CLEAR(self->callee.gate);
    Py_CLEAR(self->clock);
    Py_CLEAR(self->hosts);
    Py_CLEAR(self->fiber_type);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Quick_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Quick",
    .tp_basicsize = sizeof(Quick),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = Quick_new,
    .tp_dealloc = (destructor)Quick_dealloc,
    .tp_traverse = (traverseproc)Quick_traverse,
    .tp_clear = (inquiry)Quick_clear,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Callee, vectorcall),
};
