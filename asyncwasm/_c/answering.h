/* Answering the requests of fibers: running hosts, and how far they have come. */

static Host *
requested_host(const head *own, PyObject *hosts)
{
    return own->requested ? find_host(hosts, own->host) : NULL;
}

/* How far a host has come: what it has raised, or returned, which may have to be awaited. */
typedef struct {
    PyObject *answer, *raised;
    bool goes_on;
} Run;

/*
 * Coroutines that run within each other, on this thread. Should the innermost wait, each of them is
 * awaited by more frames than it runs in now, of which the recursion limit has to allow as many.
 */
static THREAD_LOCAL int steps;
#define MOST_STEPS 4
#define STEP_FRAMES 40
#define FRAMES_EACH 4

static bool
is_room(long frames)
{
    frames += FRAMES_EACH * steps;
#if PY_VERSION_HEX < 0x030C0000
    return PyThreadState_Get()->recursion_remaining > frames;
#else
    return PyThreadState_Get()->py_recursion_remaining > frames;
#endif
}

/* Call the host, and run the coroutine of one that suspends until it waits for something. */
static Run
run_host(const head *own, const Host *host)
{
    Run run = {.answer = call_host((const unsigned char *)(uintptr_t)own->arguments, host)};
    if (run.answer != NULL && host->suspending) {
        PyObject *value = NULL;
        /* One that somebody else knows may have begun. */
        bool fresh = PyCoro_CheckExact(run.answer) && Py_REFCNT(run.answer) == 1;
        if (!fresh || steps == MOST_STEPS || !is_room(STEP_FRAMES)) {
            run.goes_on = true;
            return run;
        }
        steps++;
        PySendResult came = PyIter_Send(run.answer, Py_None, &value);
        steps--;
        if (came == PYGEN_NEXT) {
            run.goes_on = true;
            PyObject *given[] = {run.answer, value};
            PyObject *rest = PyObject_Vectorcall(resume, given, 2, NULL);
            Py_DECREF(value);
            value = rest;
        }
        Py_SETREF(run.answer, value);
    }
    if (run.answer != NULL && !run.goes_on && PyErr_CheckSignals() < 0) {
        Py_CLEAR(run.answer);
    }
    if (run.answer == NULL) {
        run.goes_on = false;
        run.raised = take_raised();
    }
    return run;
}

/* (value,) | (None, exception) | (awaitable, call) */
static PyObject *
outcome_of(const Run *run, PyObject *call)
{
    return run->raised != NULL ? PyTuple_Pack(2, Py_None, run->raised)
           : run->goes_on      ? PyTuple_Pack(2, run->answer, call)
                               : PyTuple_Pack(1, run->answer);
}

static void
clear_run(Run *run)
{
    Py_CLEAR(run->answer);
    Py_CLEAR(run->raised);
}

/* Have hosts see `call` as what they run for; NULL with an exception, else for `leave_call`. */
static PyObject *
enter_call(PyObject *call)
{
    return call == NULL ? NULL : PyContextVar_Set(current_call, call);
}

/* Undo that, if there is a call; keeps an exception that is on its way. */
static void
leave_call(PyObject **call, PyObject **token)
{
    if (*call == NULL) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if ((*token != NULL && PyContextVar_Reset(current_call, *token) < 0) ||
        PyObject_SetAttr(*call, name_active, Py_False) < 0) {
        PyErr_WriteUnraisable(current_call);
    }
    Py_CLEAR(*token);
    Py_CLEAR(*call);
    PyErr_Restore(type, value, traceback);
}

/* Answer the request with what its host has returned; false if that has to be done the slow way. */
static bool
answer_plainly(head *own, Host *host, PyObject *answer)
{
    if (!encode_answer(host, answer, (unsigned char *)(uintptr_t)own->results)) {
        return false;
    }
    own->requested = 0;
    own->flag = 1;
    return true;
}

/* Whether the guest is still there: another thread may have closed the store. */
static bool
is_there(const Gate *gate, const head *own)
{
    return !gate->closing && gate->generation == generation && own->future != NULL;
}

/* Answer if what the host has returned is plain, and the guest still there; false otherwise. */
static bool
answer_at_once(const Gate *gate, head *own, Host *host, const Run *run)
{
    return run->answer != NULL && !run->goes_on && !PyCoro_CheckExact(run->answer) &&
           is_there(gate, own) && answer_plainly(own, host, run->answer);
}

/* Whether something that a host has started is on top of the operation; -1 for an error. */
static int
is_occupied(PyObject *operation)
{
    PyObject *children = PyObject_GetAttr(operation, name_children), *current;
    if (children == NULL || children == Py_None) {
        Py_XDECREF(children);
        return children == NULL ? -1 : 0;
    }
    current = PyObject_GetAttr(children, name_current);
    Py_DECREF(children);
    Py_XDECREF(current);
    return current == NULL ? -1 : current != Py_None;
}
