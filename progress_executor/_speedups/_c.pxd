# What the compiled Updater needs from C and Cython has no words for. The interpreted twin has its own versions, in _updater.py.

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <intrin.h>
    #include <windows.h>
    #define pe_fence() MemoryBarrier()
    #else
    #define pe_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif

    /* An int of one digit, read in place: a call of the C API takes as long as all the rest of a step. */
    static CYTHON_INLINE int pe_one_digit(PyObject *number, long long *value) {
        PyLongObject *digits = (PyLongObject *)number;
    #if PY_VERSION_HEX >= 0x030C0000
        if (!PyUnstable_Long_IsCompact(digits)) return 0;
        *value = PyUnstable_Long_CompactValue(digits);
    #else
        Py_ssize_t size = Py_SIZE(digits);  /* with the sign */
        if (size < -1 || size > 1) return 0;
        *value = (long long)size * digits->ob_digit[0];
    #endif
        return 1;
    }

    static int pe_by_index(PyObject *number, long long *value) {
        int overflow;
        PyObject *exact;
        if (!PyIndex_Check(number)) return 0;
        exact = PyNumber_Index(number);
        if (!exact) {
            PyErr_Clear();  /* the slow path looks again, and complains */
            return 0;
        }
        *value = PyLong_AsLongLongAndOverflow(exact, &overflow);
        Py_DECREF(exact);
        return !overflow;
    }

    /* The value of an int, or of what has __index__ (NumPy's integers), that fits a long long; 0 for all else. */
    static CYTHON_INLINE int pe_small(PyObject *number, long long *value) {
        return (PyLong_CheckExact(number) && pe_one_digit(number, value)) || pe_by_index(number, value);
    }

    /* The value of a float; 0 for all else. */
    static CYTHON_INLINE int pe_double(PyObject *number, double *value) {
        if (!PyFloat_Check(number)) return 0;
        *value = PyFloat_AS_DOUBLE(number);
        return 1;
    }

    /* The next item, or NULL with StopIteration or what the iterator raised; says whether there is one to be counted. */
    static CYTHON_INLINE PyObject *pe_next(void *iterator, int *counting) {
        PyObject *item = Py_TYPE((PyObject *)iterator)->tp_iternext((PyObject *)iterator);
        *counting = item != NULL;
        if (!item && !PyErr_Occurred()) PyErr_SetNone(PyExc_StopIteration);
        return item;
    }
    /* PEP 590 for `progress(1)`, which Cython does not offer for its own types: tp_call has to make a tuple first. */
    static PyObject *(*pe_update)(PyObject *, PyObject *);

    static PyObject *pe_vectorcall(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
        Py_ssize_t nargs = PyVectorcall_NARGS(nargsf), i;
        PyObject *positional, *named = NULL, *result = NULL;
        if (nargs == 1 && !kwnames && PyLong_CheckExact(args[0])) return pe_update(self, args[0]);
        positional = PyTuple_New(nargs);
        if (!positional) return NULL;
        for (i = 0; i < nargs; i++) PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
        if (kwnames) {
            named = PyDict_New();
            if (!named) goto done;
            for (i = 0; i < PyTuple_GET_SIZE(kwnames); i++)
                if (PyDict_SetItem(named, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) < 0) goto done;
        }
        result = Py_TYPE(self)->tp_call(self, positional, named);
    done:
        Py_DECREF(positional);
        Py_XDECREF(named);
        return result;
    }

    /* `field` is where `instance` has the address of pe_vectorcall. */
    static void pe_make_vectorcallable(PyObject *instance, void **field, void *update) {
        PyTypeObject *type = Py_TYPE(instance);
        pe_update = (PyObject *(*)(PyObject *, PyObject *))update;
        type->tp_vectorcall_offset = (char *)field - (char *)instance;
        type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
        PyType_Modified(type);
    }
    #define PE_VECTORCALL ((void *)pe_vectorcall)
    """
    void *PE_VECTORCALL
    void pe_make_vectorcallable(object instance, void **field, void *update)
    object pe_next(void *iterator, bint *counting)
    void pe_fence() noexcept nogil
    bint pe_small(object number, long long *value) noexcept
    bint pe_double(object number, double *value) noexcept


cdef extern from "_step.h":
    ctypedef struct pe_place:
        pass
    bint pe_add(pe_place *place, long long step) noexcept
    bint pe_add_float(pe_place *place, double step) noexcept
    bint pe_step(pe_place *place, long long step) noexcept
    bint pe_step_float(pe_place *place, double step) noexcept
    void pe_move(pe_place *place, long long *control, long long *counter) noexcept
