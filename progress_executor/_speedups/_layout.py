"""Where each field of a slot lies: what the writer (`_updater.py`) and the reader (`_slots.py`) have to agree on.

A slot is `SLOT_SIZE` bytes, aligned to a cache line, in the byte order of the machine. Offsets are in 8-byte words, apart
from those that end in `_BYTE`. The caller writes bytes 0 and 2 and words 56 to 88; the rest is the task's.

    word 0   control: byte 0 the caller's (go, cancel), byte 1 the task's (how the hot path has to count), byte 2 the
             caller's (whether to stand still: apart from byte 0, as one caller may cancel while another resumes)
    word 1   sequence: odd while the task writes anything but a plain count
    word 2   byte 0 kind of n, 1 kind of total, 2 what n is of (see below), 4-5 length of the status
    word 3-  n: an int64, a double, or an int of 32 bytes
    word 7-  total, likewise
    word 11- status, UTF-8
    word 43  when the task started: a double, seconds since the epoch; no positive number as long as it has not
    word 44- low, high, first, last: doubles, from which the n of a task that has parts is calculated
    word 48  since when the task stands still: a double, by the monotonic clock, which processes share; 0 if it does not
    word 49  for how many seconds it did: a double
    word 50  how many bytes the task has written into the ring
    word 51  how many texts found no room there since the last one that did
    word 52  word 88, bits inverted, when the task gave up waiting for room
    word 56  byte 0 length of the caller's message, 1 whether the caller takes texts out of the ring, 2 whether it has taken
             the task back before it began
    word 57- why the task is to stop, UTF-8
    word 88  how many bytes the caller has taken out of the ring
    word 96- the ring: what the task says, each text as its length and how many were lost before it, two uint32, and UTF-8;
             the byte with number i is at i % RING_SIZE

Total and status are the task's, but while it has parts, n may be that of one of them. As `PART_BYTE` says, the task's n is
then n itself (ALONE), n + low (PLUS), or SCALED: low where n is at most first, high where it is at least last, and in
proportion in between.
"""

RING_BYTE = 768
RING_SIZE = 8192
SLOT_SIZE = RING_BYTE + RING_SIZE  # whole cache lines: neighbours in one line would slow each other down
STATUS_SIZE = 256  # bytes of UTF-8; a longer status is cut before the character that crosses it
MESSAGE_SIZE = 248  # likewise
TEXT_SIZE = 4000  # likewise
FRAME_SIZE = 8
NUMBER_SIZE = 32  # bytes of an int that does not fit 64 bits

CONTROL = 0
SEQUENCE = 1
N = 3
TOTAL = 7

CALLER_BYTE = 0
MODE_BYTE = 1
PAUSE_BYTE = 2
RECORD_BYTE = 16  # what lies from here to RECORD_END is written in one
N_KIND_BYTE = 16
TOTAL_KIND_BYTE = 17
PART_BYTE = 18
STATUS_LENGTH_BYTE = 20
STATUS_BYTE = 88
STARTED_AT = 43
SCALE = 44
STANDS_SINCE = 48
STOOD = 49
RECORD_END = 384
SAID = 50
LOST = 51
GAVE_UP = 52
MESSAGE_LENGTH_BYTE = 448
LISTENS_BYTE = 449
TAKEN_BACK_BYTE = 450
MESSAGE_BYTE = 456
HEARD = 88

# The caller's byte.
GO = 0
CANCEL = 1

# The caller's other byte.
PAUSE = 1

# Whether the caller has taken the task back: it is about to know, it has, it has not as the task had begun.
ASKED = 1
TAKEN = 2
LEFT = 3

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

# What n is of.
ALONE = 0
PLUS = 1
SCALED = 2


def encoded(text: str, size: int) -> bytes:
    """At most `size` bytes of UTF-8; a longer text is cut before the character that crosses them."""
    data = text.encode("utf-8", "replace")
    if len(data) > size:
        data = data[:size].decode("utf-8", "ignore").encode()
    return data
