/*
 * Tasks: whether the caller is one of asyncio's, with no cancel scope of anyio's around it.
 *
 * What the functions of the same names in checkpoints.py say, which every awaited call asks.
 */

static PyObject *find_asyncio; /* -> what `take_asyncio` takes, None while it has not been loaded */
static PyObject *find_records; /* -> anyio's records of tasks, None while there are none */
static PyObject *backend_name; /* of the module that has them */
static PyObject *get_loop, *get_task, *tasks_by_loop; /* the last one NULL, or the one before */
static PyObject *task_records; /* dict: weak reference to a task -> record */

/* bind_tasks(find_asyncio, find_records, name of the backend) */
static PyObject *
bind_tasks(PyObject *module, PyObject *args)
{
    PyObject *asyncio, *records, *name;
    if (!PyArg_ParseTuple(args, "OOU", &asyncio, &records, &name)) {
        return NULL;
    }
    Py_XSETREF(find_asyncio, Py_NewRef(asyncio));
    Py_XSETREF(find_records, Py_NewRef(records));
    Py_XSETREF(backend_name, Py_NewRef(name));
    Py_RETURN_NONE;
}

/* (get_running_loop, current_task, None) | (get_running_loop, None, tasks by loop) */
static bool
take_asyncio(void)
{
    PyObject *found = PyObject_CallNoArgs(find_asyncio), *loop, *task, *tasks;
    bool taken = found != NULL && found != Py_None &&
                 PyArg_ParseTuple(found, "OOO", &loop, &task, &tasks);
    if (taken) {
        get_task = task == Py_None ? NULL : Py_NewRef(task);
        tasks_by_loop = PyDict_CheckExact(tasks) ? Py_NewRef(tasks) : NULL;
        get_loop = Py_NewRef(loop);
    }
    Py_XDECREF(found);
    return taken;
}

/* Whether the backend has been loaded, so that there are records; false also with an exception. */
static bool
take_records(void)
{
    if (PyDict_GetItemWithError(PyImport_GetModuleDict(), backend_name) == NULL) {
        return false;
    }
    PyObject *found = PyObject_CallNoArgs(find_records);
    if (found != NULL && PyDict_CheckExact(found)) {
        task_records = Py_NewRef(found);
    }
    Py_XDECREF(found);
    return task_records != NULL;
}

/* The task that runs in the loop; NULL if none does, or with an exception. */
static PyObject *
task_in(PyObject *loop)
{
    if (tasks_by_loop != NULL) {
        return Py_XNewRef(PyDict_GetItemWithError(tasks_by_loop, loop));
    }
    PyObject *task = get_task == NULL ? NULL : PyObject_CallNoArgs(get_task);
    if (task == Py_None) {
        Py_CLEAR(task);
    }
    return task;
}

/* Whether no cancel scope is around the task; false also with an exception. */
static bool
is_unscoped(PyObject *task)
{
    if (task_records == NULL && !take_records()) {
        return !PyErr_Occurred();
    }
    PyObject *reference = PyWeakref_NewRef(task, NULL);
    if (reference == NULL) {
        return false;
    }
    PyObject *record = PyDict_GetItemWithError(task_records, reference), *scope = NULL;
    Py_DECREF(reference);
    if (record == NULL) {
        return !PyErr_Occurred();
    }
    scope = PyObject_GetAttr(record, name_cancel_scope);
    Py_XDECREF(scope);
    return scope == Py_None;
}

/* The running loop if the caller is at ease, else NULL; with an exception if it is no Exception. */
static PyObject *
find_ease(void)
{
    PyObject *loop = get_loop != NULL || take_asyncio() ? PyObject_CallNoArgs(get_loop) : NULL,
             *task = loop == NULL || loop == Py_None ? NULL : task_in(loop);
    if (task == NULL || !is_unscoped(task)) {
        Py_CLEAR(loop);
    }
    Py_XDECREF(task);
    if (loop == NULL && PyErr_ExceptionMatches(PyExc_Exception)) { /* say, anyio has changed */
        PyErr_Clear();
    }
    return loop;
}

static PyObject *
loop_at_ease(PyObject *module, PyObject *unused)
{
    PyObject *loop = find_ease();
    if (loop == NULL && PyErr_Occurred()) {
        return NULL;
    }
    return loop == NULL ? Py_NewRef(Py_None) : loop;
}

static PyObject *
at_ease(PyObject *module, PyObject *unused)
{
    PyObject *loop = find_ease();
    if (loop == NULL && PyErr_Occurred()) {
        return NULL;
    }
    Py_XDECREF(loop);
    return PyBool_FromLong(loop != NULL);
}
