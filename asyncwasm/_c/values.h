/* Values: between Python and the layouts of the library. */

/* Write a plain number of the type that `letter` stands for; false: it is something else. */
static inline bool
encode(char letter, PyObject *value, unsigned char *to)
{
    switch (letter) {
    case 'i': {
        int overflow;
        if (!PyLong_CheckExact(value)) {
            return false;
        }
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow || number < INT32_MIN || number > (long long)UINT32_MAX) {
            return false;
        }
        uint32_t bits = (uint32_t)number;
        memcpy(to, &bits, 4);
        return true;
    }
    case 'q': {
        int overflow;
        if (!PyLong_CheckExact(value)) {
            return false;
        }
        int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) {
            return false;
        }
        memcpy(to, &number, 8);
        return true;
    }
    case 'f':
    case 'd': {
        double number;
        if (PyFloat_CheckExact(value)) {
            number = PyFloat_AS_DOUBLE(value);
        }
        else if (PyLong_CheckExact(value)) {
            number = PyLong_AsDouble(value);
            if (number == -1.0 && PyErr_Occurred()) {
                PyErr_Clear();
                return false;
            }
        }
        else {
            return false;
        }
        if (letter == 'd') {
            memcpy(to, &number, 8);
        }
        else {
            float rounded = (float)number;
            memcpy(to, &rounded, 4);
        }
        return true;
    }
    }
    return false;
}

static inline PyObject *
decode(char letter, const unsigned char *from)
{
    switch (letter) {
    case 'i': {
        int32_t number;
        memcpy(&number, from, 4);
        return PyLong_FromLong(number);
    }
    case 'q': {
        int64_t number;
        memcpy(&number, from, 8);
        return PyLong_FromLongLong(number);
    }
    case 'f': {
        float number;
        memcpy(&number, from, 4);
        return PyFloat_FromDouble(number);
    }
    case 'd': {
        double number;
        memcpy(&number, from, 8);
        return PyFloat_FromDouble(number);
    }
    }
    return PyBytes_FromStringAndSize((const char *)from, 16);
}

/* The types of a function's parameters and results, a letter each. */
typedef struct {
    Py_ssize_t parameters, results;
    char letters[2 * MOST_VALUES]; /* the results' begin at MOST_VALUES */
} Signature;

static int
take_letters(PyObject *text, char *to, Py_ssize_t *count)
{
    Py_ssize_t length;
    const char *letters = PyUnicode_AsUTF8AndSize(text, &length);
    if (letters == NULL) {
        return -1;
    }
    if (length > MOST_VALUES) {
        PyErr_Format(PyExc_ValueError, "at most %d values, got %zd", MOST_VALUES, length);
        return -1;
    }
    memcpy(to, letters, length);
    *count = length;
    return 0;
}

static int
take_signature(Signature *self, PyObject *parameters, PyObject *results)
{
    if (take_letters(parameters, self->letters, &self->parameters) < 0) {
        return -1;
    }
    return take_letters(results, self->letters + MOST_VALUES, &self->results);
}

static PyObject *
decode_results(const Signature *self, const unsigned char *from, size_t stride)
{
    const char *letters = self->letters + MOST_VALUES;
    if (self->results == 0) {
        Py_RETURN_NONE;
    }
    if (self->results == 1) {
        return decode(letters[0], from);
    }
    PyObject *values = PyTuple_New(self->results);
    for (Py_ssize_t index = 0; values != NULL && index < self->results; index++) {
        PyObject *value = decode(letters[index], from + stride * index);
        if (value == NULL) {
            Py_CLEAR(values);
            break;
        }
        PyTuple_SET_ITEM(values, index, value);
    }
    return values;
}

static const unsigned char kinds[] = {['i'] = 0, ['q'] = 1, ['f'] = 2, ['d'] = 3, ['v'] = 4};
