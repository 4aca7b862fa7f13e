"""Tasks started, watched and cancelled from a web page: `python examples/serve_states.py [--port 8080]`; Ctrl-C ends it.

Needs aiohttp (`pip install aiohttp`). It prints its address, which this machine alone can reach; port 0 is any free one.
Without a browser: `curl -X POST ADDRESS/tasks?steps=100` starts a task and answers with its path, `curl -N ADDRESS/tasks/1`
streams its states as server-sent events, and `curl -X DELETE ADDRESS/tasks/1` cancels it.
"""

import argparse
import json
import multiprocessing
import socket
import time

from aiohttp import web

from progress_executor import *

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Tasks</title>
<button id="start">Start a task</button>
<ul id="tasks"></ul>
<script>
document.getElementById("start").onclick = async () => {
  const task = await (await fetch("/tasks?steps=200", {method: "POST"})).text();
  const row = document.getElementById("tasks").appendChild(document.createElement("li"));
  const [bar, text, button] = ["progress", "span", "button"].map(tag => row.appendChild(document.createElement(tag)));
  button.textContent = "Cancel";
  button.onclick = () => fetch(task, {method: "DELETE"});
  const states = new EventSource(task);
  states.onmessage = event => {
    const {n, total, status} = JSON.parse(event.data);
    if (total !== null) [bar.max, bar.value] = [total, n];
    text.textContent = ` ${n}/${total ?? "?"} ${status} `;
  };
  states.addEventListener("end", () => { states.close(); button.remove(); });  // else it would ask again
};
</script>
</html>
"""


def work(steps, progress: Updater):
    for _ in progress(range(steps)):
        time.sleep(0.05)


def make_app(workers=None):
    futures = []  # whoever comes late still hears how a task has ended

    def asked_for(request):
        number = int(request.match_info["number"])
        if not 1 <= number <= len(futures):
            raise web.HTTPNotFound
        return futures[number - 1]

    async def page(request):
        return web.Response(text=PAGE, content_type="text/html")

    async def start(request):
        steps = request.query.get("steps", "")
        if not steps.isdecimal() or len(steps) > 6:
            raise web.HTTPBadRequest(text="steps is to be a number of up to six digits")
        futures.append(app[EXECUTOR].submit(work, int(steps)))
        return web.Response(text=f"/tasks/{len(futures)}", status=201)

    async def stream(request):
        future = asked_for(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        # A browser that goes away cancels this handler, but not the task. A slow one is sent the newest state only.
        async for state in future.states():
            await response.write(f"data: {json.dumps(state)}\n\n".encode())
        await response.write(b"event: end\ndata:\n\n")
        return response

    async def cancel(request):
        asked_for(request).cancel()
        return web.Response(status=204)

    async def executing(app):
        # Forked workers would have the browsers' connections too, which then stay open when the server closes them.
        spawning = multiprocessing.get_context("spawn")
        async with ProcessPoolProgressExecutor(workers, mp_context=spawning) as app[EXECUTOR]:
            yield

    async def cancel_all(app):  # the streams end, and so the server need not wait for them
        for future in futures:
            future.cancel()

    app = web.Application()
    app.add_routes(
        [
            web.get("/", page),
            web.post("/tasks", start),
            web.get(r"/tasks/{number:\d{1,9}}", stream),
            web.delete(r"/tasks/{number:\d{1,9}}", cancel),
        ]
    )
    app.cleanup_ctx.append(executing)
    app.on_shutdown.append(cancel_all)
    return app


EXECUTOR = web.AppKey("executor", ProgressExecutor)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--workers", type=int, help="how many processes; by default one per processor")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        web.run_app(make_app(options.workers), sock=listening, print=None, handler_cancellation=True)
