"""Where each field of a slot lies: what the writer (`_updater.py`) and the reader (`_slots.py`) agree on.

A slot is `SLOT_SIZE` bytes, aligned to a cache line, in the byte order of the machine. Offsets are in 8-byte words, apart
from those that end in `_BYTE`.

    word 0   control, tested as one word by each step; zero: go on. Byte 0: CANCEL, the caller's. Byte 1: PAUSE, the
             caller's. Byte 2: PUBLISH, set by the caller and reset by the task. Byte 3: the task's own
    word 1   sequence: odd while the task writes anything but a step
    word 2   n, int64: what steps by ints have added
    word 3   n, double: what steps by floats have added; NO_FLOAT as long as there was none
    word 4   byte 0 kind of the total, 1 kind of the parts' sum, 2 whether there are open parts, 4-5 length of the status
    word 5   the total: int64 or double
    word 6   how much of n the parts have counted, likewise
    word 7-  the status, UTF-8
    word 39  when the task started: a double, seconds since the epoch; no positive number as long as it has not
    word 40  since when the task is paused: a double, by the monotonic clock, which processes share; 0 if it is not
    word 41  for how many seconds it was paused: a double
    word 42  how many messages the task has sent, or lost
    word 43  how many bytes of them the caller has taken: the caller's
    word 48  byte 0 length of the reason, 1 whether the caller takes messages, 2 whether it has taken the task back before it
             began; all of this line is the caller's
    word 49- why the task is to stop, UTF-8

The task's n is the sum of both counters and of what its parts have counted.
"""

SLOT_SIZE = 640  # whole cache lines: neighbours in one line would slow each other down
STATUS_SIZE = 256  # bytes of UTF-8; a longer status is cut before the character that crosses it
MESSAGE_SIZE = 248  # likewise
TEXT_SIZE = 4000  # likewise

CONTROL = 0
SEQUENCE = 1
N = 2
TOTAL = 5
INSIDE = 6
STARTED_AT = 39
PAUSED_SINCE = 40
PAUSED_SECONDS = 41
MESSAGES = 42
MESSAGES_TAKEN = 43

CALLER_BYTE = 0
PAUSE_BYTE = 1
PUBLISH_BYTE = 2
TASK_BYTE = 3
RECORD_BYTE = 32  # what lies from here to RECORD_END is written in one
TOTAL_KIND_BYTE = 32
INSIDE_KIND_BYTE = 33
OPEN_BYTE = 34
STATUS_LENGTH_BYTE = 36
STATUS_BYTE = 56
RECORD_END = 312
MESSAGE_LENGTH_BYTE = 384
LISTENS_BYTE = 385
TAKEN_BACK_BYTE = 386
MESSAGE_BYTE = 392

# Byte 0.
GO = 0
CANCEL = 1

# Byte 1.
PAUSE = 1

# Byte 3.
PUSHING = 1  # every step may have to call back (the sync executor)
LOCKED = 2  # every step takes the lock: the interpreted form without the GIL
ENDED = 4  # a part that has ended: in no slot, but in what its steps look at

# Whether the caller has taken the task back: it is about to know, it has, it has not as the task had begun.
ASKED = 1
TAKEN = 2
LEFT = 3

LOG = "log"
"""The kind of a message that is a text."""

# Kinds of numbers.
NONE = 0
INT = 1
FLOAT = 2

NO_FLOAT = -(1 << 63)
"""The bits of -0.0, which no sum of floats ever is unless all of them are: no float was added."""


def encoded(text: str, size: int) -> bytes:
    """At most `size` bytes of UTF-8; a longer text is cut before the character that crosses them."""
    data = text.encode("utf-8", "replace")
    if len(data) > size:
        data = data[:size].decode("utf-8", "ignore").encode()
    return data
