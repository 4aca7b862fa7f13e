"""Where each field of a slot lies: what the writer (`_updater.py`) and the reader (`slots.py`) have to agree on.

A slot is `SLOT_SIZE` bytes, aligned to a cache line, in the byte order of the machine. Offsets are in 8-byte words, apart
from those that end in `_BYTE`. The caller writes the control byte; all else belongs to the task.

    word 0   control: byte 0 the caller's (go, cancel), byte 1 the task's (how the hot path has to count)
    word 1   sequence: odd while the task writes anything but a plain count
    word 2   byte 0 kind of n, 1 kind of total, 4-5 length of the status
    word 3-  n: an int64, a double, or an int of 32 bytes
    word 7-  total, likewise
    word 11- status, UTF-8
    word 43  when the task started: a double, seconds since the epoch; no positive number as long as it has not
"""

SLOT_SIZE = 384  # six cache lines: neighbours in one line would slow each other down
STATUS_SIZE = 256  # bytes of UTF-8; a longer status is cut before the character that crosses it
NUMBER_SIZE = 32  # bytes of an int that does not fit 64 bits

CONTROL = 0
SEQUENCE = 1
N = 3
TOTAL = 7

CALLER_BYTE = 0
MODE_BYTE = 1
RECORD_BYTE = 16  # from here on, all is written in one
N_KIND_BYTE = 16
TOTAL_KIND_BYTE = 17
STATUS_LENGTH_BYTE = 20
STATUS_BYTE = 88
STARTED_AT = 43

# The caller's byte.
GO = 0
CANCEL = 1

# The task's byte: what keeps a step from being one addition to an int64.
PLAIN = 0
FLOATING = 1  # n is a double
WIDE = 2  # n is an int of 32 bytes
PUSHING = 4  # every step may have to call back (the sync executor)
LOCKED = 8  # a thread is writing under the lock; always set where there is no GIL

# Kinds.
INT = 0
FLOAT = 1
BIG = 2
NONE = 3
