"""Short requests without end, and the ends of a server.

    python soak.py soak  URL PID [N]      N (10000) requests at 8 streams: none lost, memory flat
    python soak.py leave URL PID          clients that leave stop their work at once
    python soak.py swap  URL ID ID [S]    two models take turns under load for S (20) seconds: not one request fails
    python soak.py idle  URL PID          no model: little memory is resident, also after a visit
    python soak.py drain URL PID          8 open streams, SIGTERM: all end with an event, the process within 5 s

Only the standard library is needed.
"""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.parse


def connect(url):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    connection.connect()
    # Headers and body are two packets; the second one must not wait for the first one's receipt.
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection, path, body, method="POST"):
    connection.request(method, path, json.dumps(body) if body is not None else None, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def get(url, path):
    return ask(connect(url), path, None, "GET")[1]


def metric(url, name):
    for line in get(url, "/metrics").decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise KeyError(name)


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0])


def chat(number, max_tokens=3, stream=True, **more):
    content = f"Question {number % 97}: " + "why? " * (number % 13)
    return {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "stream": stream, "model": "default", **more}


def is_whole(status, text):
    return status == 200 and b"data: [DONE]" in text and b'"error"' not in text


def many(url, n, n_streams, check):
    numbers, lock, lost = iter(range(n)), threading.Lock(), []

    def client():
        connection = connect(url)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            status, text = ask(connection, "/v1/chat/completions", chat(number))
            if not check(status, text):
                lost.append((number, status, text[:200]))

    threads = [threading.Thread(target=client) for _ in range(n_streams)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return lost


def soak(url, pid, n=10000):
    lost = many(url, 500, 8, is_whole)
    before, started = resident(int(pid)), time.monotonic()
    marks = []
    for _ in range(10):
        lost += many(url, int(n) // 10, 8, is_whole)
        marks.append(resident(int(pid)))
    seconds = time.monotonic() - started
    drift = (marks[-1] - before) / before
    print(f"{n} requests in {seconds:.0f} s, {len(lost)} lost; resident {before} KiB, then {marks}: drift {100 * drift:+.2f} %")
    return not lost and drift < 0.01


def leave(url, _pid):
    """After a client has left, at most one more token is begun: the one at work when the connection closes may end."""
    slowest, most = 0, 0
    for _ in range(10):
        generated = metric(url, "secateur_generated_tokens_total")
        cancelled = metric(url, "secateur_requests_cancelled_total")
        connection = connect(url)
        body = chat(1, 2000, logprobs=True, logit_bias={"0": -100, "1": -100, "2": -100})
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        seen = 0
        while seen < 5:
            line = answer.fp.readline()
            if line.startswith(b"data: {"):
                logprobs = json.loads(line[6:])["choices"][0].get("logprobs")
                seen += len(logprobs["content"]) if logprobs else 0
        # What has arrived meanwhile was generated before the client left.
        connection.sock.setblocking(False)
        try:
            seen += connection.sock.recv(1 << 20).count(b'"logprob":')
        except BlockingIOError:
            pass
        connection.sock.close()
        answer.close()
        started = time.monotonic()
        while metric(url, "secateur_requests_cancelled_total") == cancelled:
            if time.monotonic() - started > 5:
                print("the request goes on")
                return False
        slowest = max(slowest, time.monotonic() - started)
        most = max(most, metric(url, "secateur_generated_tokens_total") - generated - seen)
    print(f"10 clients left: the slowest was noticed after {1000 * slowest:.0f} ms; at most {most:.0f} tokens more than they had read")
    # One is under way when the client leaves, one may begin before the closed connection is noticed.
    return slowest < 1.0 and most <= 2


def swap(url, one, two, seconds=20):
    failed, n_done, stop = [], [0], threading.Event()

    def client(number):
        connection = connect(url)
        while not stop.is_set():
            status, text = ask(connection, "/v1/chat/completions", chat(number, 8))
            n_done[0] += 1
            if not is_whole(status, text):
                failed.append((status, text[:200]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    n_swaps, until = 0, time.monotonic() + float(seconds)
    while time.monotonic() < until:
        status, text = ask(connect(url), f"/api/v1/models/{(one, two)[n_swaps % 2]}/activate", None)
        if status != 200:
            failed.append((status, text[:200]))
        n_swaps += 1
        time.sleep(0.2)
    stop.set()
    [thread.join() for thread in threads]
    print(f"{n_swaps} swaps, {n_done[0]} requests, {len(failed)} failed {failed[:3]}")
    return not failed and n_swaps > 2


def idle(url, pid):
    """The service looks every 2 s whether it has something to give back."""
    marks = []
    for visit in ((), ("/", "/page.js", "/api/v1/status", "/api/v1/memory", "/api/v1/models", "/metrics", "/openapi.json", "/docs")):
        for path in visit:
            get(url, path)
        time.sleep(7)
        marks.append(resident(pid))
    with open(f"/proc/{pid}/status") as status:
        peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    print(f"without a model: {marks[0]} KiB resident, {marks[1]} KiB after a visit to the page; peak {peak} KiB")
    return max(marks) < 12 * 1024


def drain(url, pid):
    pid, ends = int(pid), []

    def client(number):
        connection = connect(url)
        status, text = ask(connection, "/v1/chat/completions", chat(number, 100_000, logit_bias={"0": -100, "1": -100, "2": -100}))
        ends.append((status, text))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    while json.loads(get(url, "/api/v1/status"))["running"] < 1:
        time.sleep(0.05)
    time.sleep(0.5)
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    # The parent of the server may not have waited for it yet: a zombie has ended.
    def lives():
        try:
            with open(f"/proc/{pid}/stat") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
        except FileNotFoundError:
            return False

    while lives() and time.monotonic() - started < 10:
        time.sleep(0.02)
    seconds = time.monotonic() - started
    [thread.join(5) for thread in threads]
    proper = sum(b"data: [DONE]" in text or b'"code":"shutting_down"' in text for _, text in ends)
    print(f"ended after {seconds:.2f} s; {proper} of 8 streams ended with a proper event")
    return seconds < 5 and proper == 8


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("soak", "leave", "swap", "idle", "drain"):
        sys.exit(__doc__)
    sys.exit(0 if globals()[sys.argv[1]](*sys.argv[2:]) else 1)
