# The C types for _updater.py when it is compiled. The Python form ignores this file.

cimport cython

cdef Py_ssize_t CONTROL, SEQUENCE, N, TOTAL
cdef Py_ssize_t CALLER_BYTE, MODE_BYTE, PAUSE_BYTE, RECORD_BYTE, RECORD_END, STANDS_SINCE, STOOD, MESSAGE_LENGTH_BYTE, MESSAGE_BYTE
cdef Py_ssize_t N_KIND_BYTE, TOTAL_KIND_BYTE, STATUS_LENGTH_BYTE, STATUS_BYTE
cdef int GO, CANCEL, PAUSE, LOCKED, FLOATING, WIDE, PLAIN, PUSHING, INT, FLOAT, BIG, NONE
cdef Py_ssize_t PART_BYTE, SCALE
cdef Py_ssize_t SAID, LOST, GAVE_UP, HEARD, LISTENS_BYTE, RING_BYTE, RING_SIZE, FRAME_SIZE, TEXT_SIZE
cdef Py_ssize_t SLOT_SIZE, STATUS_SIZE, NUMBER_SIZE, MESSAGE_SIZE
cdef long long _FLOATING_WORD


@cython.final
cdef class Updater:
    cdef long long[::1] _words
    cdef double[::1] _doubles
    cdef object _bytes
    cdef object _lock
    cdef object _push
    cdef object _changes
    cdef int _base_mode
    cdef long long _n
    cdef void *_vectorcall
    cdef object _part
    cdef Updater _parent
    cdef object __weakref__

    cdef _set_up(self, object slot, object push)
    cpdef update(self, object amount=*)
    cpdef check(self)



@cython.final
cdef class _Iteration:
    cdef Updater _updater
    cdef object _iterator
    cdef bint _counting


cdef _update(Updater updater, object amount)
