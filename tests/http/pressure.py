"""Memory runs short in a real control group: the service gives up one thing after the other, and takes it back.

    python pressure.py SECATEUR MODEL.gguf

Makes a control group with a limit (v1, or v2 where its memory controller can be had), starts a server in it, and beside
it a process that fills the group. Needs root; says so and ends with 0 where no group can be made.
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
LIMIT = 256 * MIB
NAME = f"secateur-test-{os.getpid()}"


def make_group():
    """The folder of a group with a limit, and where the bytes in use are read."""
    for root, limit, used in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
                              ("/sys/fs/cgroup", "memory.max", "memory.current")):
        folder = os.path.join(root, NAME)
        try:
            os.mkdir(folder)
        except OSError:
            continue
        try:
            with open(os.path.join(folder, limit), "w") as file:
                file.write(str(LIMIT))
            return folder, os.path.join(folder, used)
        except OSError:
            os.rmdir(folder)
    return None, None


def start_in(group, command, **more):
    def enter():
        with open(os.path.join(group, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))

    return subprocess.Popen(command, preexec_fn=enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


HOG = """
import sys
kept = []
with open(sys.argv[1]) as used:
    while True:
        used.seek(0)
        if int(used.read()) + (10 << 20) >= int(sys.argv[2]):
            break
        kept.append(bytearray(b"x" * (1 << 20)))
print("full", flush=True)
sys.stdin.read()
"""


def main():
    secateur, model = sys.argv[1:]
    group, used = make_group()
    if group is None:
        print("skipped: no control group can be made here")
        return 0
    state = tempfile.mkdtemp()
    server = hog = None
    try:
        command = [secateur, "serve", "--port", "0", "--json", "--model", model, "--memory-budget", "64MiB",
                   "--state-dir", state, "--log", "warn"]
        server = start_in(group, command)
        host = json.loads(server.stdout.readline())["url"].removeprefix("http://")

        def get(path, body=None):
            connection = http.client.HTTPConnection(host, timeout=60)
            headers = {"content-type": "application/json"}
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers

        def step():
            page = get("/metrics")[1]
            return next(int(line.split()[1]) for line in page.splitlines() if line.startswith("secateur_memory_pressure_step "))

        def wait_for(what, seconds, holds):
            until = time.monotonic() + seconds
            while not holds():
                assert server.poll() is None, "the server has ended"
                assert time.monotonic() < until, f"{what}: not after {seconds} s, step {step()}"
                time.sleep(0.1)

        ask = {"prompt": "x", "max_tokens": 3}
        wait_for("ready", 60, lambda: get("/readyz")[0] == 200)
        assert step() == 0 and get("/v1/completions", ask)[0] == 200
        hog = start_in(group, [sys.executable, "-c", HOG, used, str(LIMIT)])
        assert hog.stdout.readline() == "full\n"
        started, seen = time.monotonic(), []

        def climbs_to(wanted):
            now = step()
            if not seen or seen[-1] != now:
                seen.append(now)
            return wanted <= now

        wait_for("new work is refused", 60, lambda: climbs_to(4))
        status, _, headers = get("/v1/completions", ask)
        assert status == 503 and headers["retry-after"], status
        wait_for("the model is let go of", 60, lambda: climbs_to(5) and get("/readyz")[0] == 503)
        up = time.monotonic() - started
        hog.stdin.close()
        hog.wait(30)
        started = time.monotonic()
        wait_for("the model comes back", 300, lambda: get("/readyz")[0] == 200)
        assert get("/v1/completions", ask)[0] == 200
        down = time.monotonic() - started
        print(f"the group was full: steps {seen} in {up:.0f} s, 503 with Retry-After, the model gone; answers again {down:.0f} s after")
        return 0
    finally:
        for process in (hog, server):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(state, ignore_errors=True)
        for _ in range(50):
            try:
                os.rmdir(group)
                break
            except OSError:
                time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main() if len(sys.argv) == 3 else __doc__)
