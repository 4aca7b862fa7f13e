"""Counts what tasks do, on a page for Prometheus: `python examples/metrics.py [port]`, then http://127.0.0.1:9000/metrics."""

import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

from progress_executor import *

counts = Counter()


class Metrics(Sink):
    """Adds up the steps of all tasks that it is told of, the seconds for which they ran, and how they ended."""

    def __init__(self):
        self.n = 0

    def update(self, view):
        counts["steps_total"] += view.n - self.n
        self.n = view.n

    def close(self, view):
        self.update(view)
        counts[f'tasks_total{{status="{view.status}"}}'] += 1
        if view.began is not None and view.ended is not None:  # of what reports nothing they may be unknown
            counts["seconds_total"] += view.ended - view.began - view.paused


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(f"{name} {count}\n" for name, count in sorted(counts.items())).encode())

    def log_message(self, *_):
        pass


def work(n, progress: Updater):
    for _ in progress(range(n)):
        time.sleep(0.01)


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 9000), Page)
    print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with ThreadPoolProgressExecutor(2) as executor:
        for n in (20, 50, 80):
            executor.submit(work, n).add_sink(Metrics())
    input("Enter ends it\n")
