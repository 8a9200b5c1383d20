"""Sends a running server what it must survive, and counts.

    python abuse.py http://127.0.0.1:8712 PID

More than 500 requests: every field of every route with values of wrong type, range, size and depth; broken JSON and
UTF-8; slow and endless heads and bodies; foreign hosts and origins; paths that lead out of the store. No answer may be
5xx but 503, the process must live, and its memory must not grow. Only the standard library is needed.
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
import urllib.parse

HOST, PORT = "127.0.0.1", 0
COUNT = itertools.count()
FAULTS = []


def raw(data, timeout=20, host_header=True):
    """Sends bytes and returns the status, or None when the server hung up without a word."""
    next(COUNT)
    try:
        with socket.create_connection((HOST, PORT), timeout=timeout) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR) if data.endswith(b"\0EOF") else None
            answer = connection.recv(65536)
    except (ConnectionError, socket.timeout):
        return None
    if not answer.startswith(b"HTTP/1.1 "):
        return None
    return int(answer[9:12])


def request(method, path, body=b"", headers=(), host=None):
    head = [f"{method} {path} HTTP/1.1", f"Host: {host or f'{HOST}:{PORT}'}", "Connection: close"]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in headers]
    return raw("\r\n".join(head).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body)


def expect(what, status, allowed=None):
    is_bad = status is not None and status >= 500 and status != 503
    if is_bad or (allowed is not None and status not in allowed):
        FAULTS.append(f"{what}: {status}")


def deep(depth):
    return "[" * depth + "]" * depth


WRONG = [
    "null", "true", "0", "-1", "1e400", "-1e400", "1e-400", "18446744073709551616", "-9223372036854775809", "0.5", '""',
    '"x"', '"\\u0000"', '"\\ud800"', "[]", "{}", "[null]", '{"":{}}', "NaN", "Infinity", deep(50), deep(20000),
    '"' + "x" * 100_000 + '"', "[" + ",".join(["1"] * 20_000) + "]",
]
CHAT_FIELDS = """audio cache_prompt frequency_penalty function_call functions grammar logit_bias logprobs
    max_completion_tokens max_tokens messages metadata min_p modalities model moderation n parallel_tool_calls prediction
    presence_penalty prompt_cache_key prompt_cache_retention reasoning_effort repetition_penalty response_format
    safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools top_k top_logprobs
    top_p user verbosity web_search_options""".split()
ROUTES = {
    "/v1/chat/completions": ('"messages":[{"role":"user","content":"hi"}],"max_tokens":1', CHAT_FIELDS),
    "/v1/completions": ('"prompt":"hi","max_tokens":1', ["prompt", "echo", "best_of", "suffix", "logprobs", "n", "stop", "seed"]),
    "/v1/embeddings": ('"input":"hi"', ["input", "encoding_format", "dimensions", "model"]),
    "/tokenize": ('"content":"hi"', ["content", "add_special", "parse_special"]),
    "/detokenize": ('"tokens":[1]', ["tokens"]),
    "/apply-template": ('"messages":[{"role":"user","content":"hi"}]', ["messages", "tools"]),
    "/api/v1/plan": ('"ratio":0.1', ["model", "memory_budget", "ratio", "context_len", "policy", "dtype"]),
}


def every_field_with_every_wrong_value():
    for path, (base, fields) in ROUTES.items():
        for field in fields:
            for wrong in WRONG:
                rest = ",".join(part for part in base.split(",\"") if f'{field}"' not in part[: len(field) + 2])
                rest = rest if rest.startswith('"') or not rest else '"' + rest
                body = f'{{{rest}{"," if rest else ""}"{field}":{wrong}}}'.encode("utf-8", "surrogatepass")
                expect(f"{path} {field}={wrong[:40]}", request("POST", path, body))


def hostile_grammars():
    schemas = [
        {"$ref": "#"}, {"$ref": "https://example.org/x"}, {"allOf": [{"$ref": "#/definitions/a"}], "definitions": {"a": {"$ref": "#"}}},
        {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "((((a{1,99}){1,99}){1,99}){1,99})"},
        {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 2**40}, {"type": "integer", "multipleOf": 1e-300},
        {"enum": [str(i) for i in range(5000)]}, {"type": "object", "properties": {str(i): {"type": "object"} for i in range(500)}},
        {"x-guidance": {"lenient": True}}, {"type": ["nonsense"]}, {"anyOf": []}, {"not": {}},
    ]
    for schema in schemas:
        named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "response_format": named}
        expect(f"schema {str(schema)[:50]}", request("POST", "/v1/chat/completions", json.dumps(body).encode()))
    for grammar in ["start: start", "start: a\na: b\nb: a", "start: /(/", "start: " + "(" * 5000, "%import nonsense", "start: \"\"",
                    "start: \"a\"~1..1000000", "start: <[1-99999999]>", "\0"]:
        body = {"prompt": "x", "max_tokens": 3, "grammar": grammar}
        expect(f"grammar {grammar[:40]!r}", request("POST", "/v1/completions", json.dumps(body).encode()))


def bodies_that_are_none():
    for body in [b"{", b"[]", b"\xff\xfe{}", b'{"a":"\xc3\x28"}', b"\xed\xa0\x80", b'{"messages":', b"null", b"\x00", b'{"a":1,"a":2}',
                 b'{"n":1,"n":2,"messages":[]}', b"{}" * 2, b"\xef\xbb\xbf{}"]:
        for path in ROUTES:
            expect(f"{path} {body[:20]!r}", request("POST", path, body), range(200, 500))
    expect("huge body", request("POST", "/tokenize", b'{"content":"' + b"x" * (3 << 20) + b'"}'), [413, None])
    expect("wrong type", request("POST", "/tokenize", b"", [("Content-Type", "text/plain"), ("Content-Length", "0")]), [415])
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for framing in [b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 5\r\nContent-Length: 6",
                    b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Transfer-Encoding: nonsense"]:
        expect(f"framing {framing[:40]!r}", raw(head + framing + b"\r\n\r\n{}", timeout=40))
    expect("bad chunk", raw(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"))


def heads_that_are_too_much():
    base = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    expect("10k headers", raw(base + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n"), [431, 400, None])
    expect("long header", raw(base + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n"), [431, 400, None])
    expect("long path", request("GET", "/" + "a" * 100_000), [414, 431, 404, 400, None])
    for line in [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                 b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]:
        expect(f"line {line[:20]!r}", raw(line, timeout=5), [400, 403, 505, 404, None])


def hosts_and_origins_that_are_not_ours():
    for path in ["/v1/models", "/api/v1/status", "/", "/metrics", "/livez", "/v1/chat/completions", "/nothing", "/docs"]:
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "0.0.0.0", "169.254.169.254", "", "localhost:x",
                     "a@localhost", "2130706433"]:
            expect(f"host {host} {path}", request("GET", path, host=host or " "), [403, 400])
        for origin in ["http://evil.example", "null", "file://", "http://localhost.evil.example", "https://127.0.0.1.evil.example"]:
            expect(f"origin {origin} {path}", request("GET", path, headers=[("Origin", origin)]), [403])


def paths_that_lead_elsewhere():
    for name in ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..\\..\\x", "%00", "a%00b", "/etc/passwd", "%ff%fe",
                 "." * 1000, "%2e", "con", "~root", "$(id)", "a" * 5000]:
        for method, path in [("GET", f"/v1/models/{name}"), ("GET", f"/api/v1/models/{name}"), ("DELETE", f"/api/v1/models/{name}"),
                             ("POST", f"/api/v1/models/{name}/activate"), ("GET", f"/api/v1/jobs/{name}"), ("GET", f"/api/v1/jobs/{name}/events")]:
            expect(f"{method} {path[:60]}", request(method, path), [404, 400, 405, 414, 431, None])
    for method in ["PUT", "PATCH", "TRACE", "CONNECT", "OPTIONS", "LOCK", "G\x7fT"]:
        expect(method, request(method, "/v1/models"), [405, 400, 404, 403, None])


def slow_clients():
    """Connections that never finish must not keep others from being answered."""
    half = []
    for _ in range(40):
        connection = socket.create_connection((HOST, PORT), timeout=5)
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        half.append(connection)
        next(COUNT)
    started = time.monotonic()
    expect("beside slow clients", request("GET", "/livez"), [200])
    if time.monotonic() - started > 5:
        FAULTS.append("slow clients held others up")
    for connection in half:
        connection.close()


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0])


def main():
    global HOST, PORT
    url = urllib.parse.urlsplit(sys.argv[1])
    HOST, PORT = url.hostname, url.port
    pid = int(sys.argv[2])
    rounds = [every_field_with_every_wrong_value, hostile_grammars, bodies_that_are_none, heads_that_are_too_much,
              hosts_and_origins_that_are_not_ours, paths_that_lead_elsewhere, slow_clients]
    before = None
    for number in (1, 2):
        for function in rounds:
            function()
            if not os.path.exists(f"/proc/{pid}"):
                sys.exit(f"the process died in {function.__name__}: {FAULTS[-3:]}")
        # The service looks every 2 s whether it has something to give back.
        time.sleep(5)
        after = resident(pid)
        print(f"round {number}: {next(COUNT)} requests, {after} KiB resident")
        # What a first round leaves (grammar tables, caches) is there to stay; a second one must not add to it.
        if before is not None and after > 1.03 * before + 1024:
            FAULTS.append(f"memory grew from {before} to {after} KiB")
        before = after
    for fault in FAULTS[:40]:
        print("FAULT", fault)
    print(f"{len(FAULTS)} faults")
    sys.exit(1 if FAULTS else 0)


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
