# The C types for _updater.py when it is compiled. The Python form ignores this file.

cimport cython
from progress_executor._speedups._c cimport pe_place

cdef Py_ssize_t CONTROL, SEQUENCE, N, TOTAL, INSIDE
cdef Py_ssize_t CALLER_BYTE, PAUSE_BYTE, PUBLISH_BYTE, TASK_BYTE, PAUSED_SINCE, PAUSED_SECONDS
cdef Py_ssize_t TOTAL_KIND_BYTE, INSIDE_KIND_BYTE, OPEN_BYTE, STATUS_LENGTH_BYTE, STATUS_BYTE
cdef Py_ssize_t MESSAGE_LENGTH_BYTE, MESSAGE_BYTE, LISTENS_BYTE
cdef int GO, CANCEL, PAUSE, PUSHING, ENDED, NONE, INT, FLOAT
cdef Py_ssize_t SLOT_SIZE, STATUS_SIZE, MESSAGE_SIZE, TEXT_SIZE


@cython.final
cdef class Updater:
    cdef pe_place _place
    cdef object _slot
    cdef object _words
    cdef object _doubles
    cdef object _counters
    cdef object _former
    cdef object _lock
    cdef object _push
    cdef object _send
    cdef object _changes
    cdef object _node
    cdef Updater _parent
    cdef long long _n
    cdef void *_vectorcall
    cdef object __weakref__

    cdef _set_up(self, object slot, object push, object send)
    cpdef update(self, object amount=*)
    cpdef check(self)


@cython.final
cdef class _Iteration:
    cdef Updater _updater
    cdef object _iterator
    cdef bint _counting


cdef _update(Updater updater, object amount)
