"""The thread pool in a subinterpreter."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from concurrent import interpreters

WORK = '''
import sys
sys.path[:0] = {path}
from progress_executor import ThreadPoolProgressExecutor

def count(n, progress):
    for _ in progress(range(n)):
        pass
    return n

with ThreadPoolProgressExecutor(2) as executor:
    states = []
    futures = [executor.submit(count, n) for n in (1, 2, 3)]
    futures[2].add_progress_callback(lambda old, new: states.append(new))
    assert [future.result() for future in futures] == [1, 2, 3]
    assert states[-1] == {{"n": 3, "total": 3, "status": "done"}}, states
    future = executor.submit(count, 10**12)
    while not future.state["n"]:
        pass
    assert future.cancel()
assert future.cancelled()
'''
interpreter = interpreters.create()
interpreter.exec(WORK.format(path=sys.path))
interpreter.close()
print("left")
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="from 3.14 on there is a public way to make one")
def test_the_thread_pool_works_in_a_subinterpreter():
    done = subprocess.run([sys.executable, "-X", "dev", "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("left\n", "")
