#!/usr/bin/env python3
"""Runs secateur and llama.cpp in turns on the same files and prints medians of ratios. Called by peer.sh.

A ratio is taken within one turn, so that a machine that slows down slows both sides; the table shows the median of
the turns. --server measures start-up (from exec to ready) and the peak resident memory of serving instead.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

CONTEXT_LEN = 2048
KIB = 1024


def ours(args, model, threads):
    command = [args.secateur, "bench", model, "--threads", str(threads), "--repeats", "1", "--json",
               "--prompt-tokens", str(args.prompt_tokens), "--generate-tokens", str(args.generate_tokens)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report = json.loads(out.splitlines()[-1])
    return {"prefill": report["prefill_tokens_per_s"], "decode": report["decode_tokens_per_s"]}


def theirs(args, model, threads):
    # Answers follow the prompt, as ours do: llama-bench begins them with an empty cache unless it is told a depth.
    result = {}
    for phase, sizes in (("prefill", ["-p", str(args.prompt_tokens), "-n", "0"]),
                         ("decode", ["-p", "0", "-n", str(args.generate_tokens), "-d", str(args.prompt_tokens)])):
        command = [f"{args.peer}/llama-bench", "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *sizes]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[phase] = json.loads(out)[0]["avg_ts"]
    return result


def speeds(args, name, model, threads):
    """Turns of both sides; who goes first changes from turn to turn."""
    runs = {"secateur": [], "llama.cpp": []}
    for turn in range(args.repeats):
        sides = [("secateur", ours), ("llama.cpp", theirs)]
        for side, run in sides if turn % 2 == 0 else sides[::-1]:
            runs[side].append(run(args, model, threads))
    row = {"model": name, "threads": threads, "turns": args.repeats}
    for phase in ("prefill", "decode"):
        mine = [run[phase] for run in runs["secateur"]]
        peer = [run[phase] for run in runs["llama.cpp"]]
        row[phase] = {
            "secateur_tokens_per_s": statistics.median(mine),
            "llama_cpp_tokens_per_s": statistics.median(peer),
            "ratio": statistics.median(a / b for a, b in zip(mine, peer)),
        }
    return row


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(process, url, started):
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return time.monotonic() - started
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        time.sleep(0.001)


def status_kib(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def fill_context(port):
    """Most of the context as a prompt, then an answer: the most that serving needs."""
    prompt = "The quick brown fox jumps over the lazy dog near the river bank. " * 140
    body = {"prompt": prompt[: 4 * 1700], "max_tokens": 64, "temperature": 0}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["usage"]


def serve(command, url_path, port, load):
    with open(os.devnull, "w") as null:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=null, stderr=null)
        try:
            ready_s = wait_ready(process, f"http://127.0.0.1:{port}{url_path}", started)
            usage = fill_context(port) if load else None
            peak_kib = status_kib(process.pid, "VmHWM")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    return ready_s, peak_kib, usage


def kv_bytes(args, model):
    out = subprocess.run([args.secateur, "inspect", model, "--json"], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])["kv_bytes_per_token"] * CONTEXT_LEN


def servers(args, name, model, threads):
    ready = {"secateur": [], "llama.cpp": []}
    peak = {}
    for turn in range(args.repeats):
        for side in ready:
            port = free_port()
            state = f"/tmp/secateur-peer-{os.getpid()}"
            if side == "secateur":
                command = [args.secateur, "serve", "--model", model, "--threads", str(threads), "--port", str(port),
                           "--context-len", str(CONTEXT_LEN), "--state-dir", state]
                path = "/readyz"
            else:
                command = [f"{args.peer}/llama-server", "-m", model, "-t", str(threads), "--port", str(port),
                           "-c", str(CONTEXT_LEN), "-np", "1", "-cram", "0"]
                path = "/health"
            ready_s, peak_kib, usage = serve(command, path, port, load=turn == 0)
            ready[side].append(ready_s)
            if usage:
                peak[side] = (peak_kib, usage)
    file_bytes, cache_bytes = os.path.getsize(model), kv_bytes(args, model)
    extra = {side: (kib * KIB - file_bytes - cache_bytes) / 2**20 for side, (kib, _) in peak.items()}
    return {
        "model": name, "threads": threads, "turns": args.repeats,
        "ready_ms": {side: 1e3 * statistics.median(values) for side, values in ready.items()},
        "ready_ratio": statistics.median(a / b for a, b in zip(ready["secateur"], ready["llama.cpp"])),
        "peak_beyond_file_and_cache_mib": extra,
        "prompt_tokens": {side: usage["prompt_tokens"] for side, (_, usage) in peak.items()},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--secateur", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--dtypes", help="f16,q8_0,q4_0,q4_1 when absent; with --k-quants q4_k_m,q5_k_m,q6_k,q5_0")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--generate-tokens", type=int, default=128)
    parser.add_argument("--pruned", action="store_true", help="measure M pruned by 30 %% instead of M")
    parser.add_argument("--k-quants", action="store_true", help="measure a wide synthetic model in K formats")
    parser.add_argument("--server", action="store_true", help="measure start-up and memory instead of speed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    prefix = "pruned-" if args.pruned else "wide-" if args.k_quants else ""
    dtypes = args.dtypes or ("q4_k_m,q5_k_m,q6_k,q5_0" if args.k_quants else "f16,q8_0,q4_0,q4_1")
    rows = []
    for dtype in dtypes.split(","):
        for threads in map(int, args.threads.split(",")):
            name = prefix + dtype
            measure = servers if args.server else speeds
            rows.append(measure(args, name, f"{args.models}/{name}.gguf", threads))
            if not args.json:
                print_row(rows[-1], first=len(rows) == 1)
    if args.json:
        print(json.dumps({"rows": rows}))


def print_row(row, first):
    if "ready_ms" in row:
        if first:
            print("| model | threads | ready secateur | ready llama.cpp | ratio | beyond file + cache: secateur | llama.cpp |")
            print("| --- | --- | --- | --- | --- | --- | --- |")
        ready, extra = row["ready_ms"], row["peak_beyond_file_and_cache_mib"]
        print(f"| {row['model']} | {row['threads']} | {ready['secateur']:.0f} ms | {ready['llama.cpp']:.0f} ms | "
              f"{row['ready_ratio']:.2f} | {extra['secateur']:.1f} MiB | {extra['llama.cpp']:.1f} MiB |", flush=True)
        return
    if first:
        print("| model | threads | prefill secateur | llama.cpp | ratio | decode secateur | llama.cpp | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cells = []
    for phase in ("prefill", "decode"):
        cell = row[phase]
        cells += [f"{cell['secateur_tokens_per_s']:.0f}", f"{cell['llama_cpp_tokens_per_s']:.0f}", f"{cell['ratio']:.2f}"]
    print(f"| {row['model']} | {row['threads']} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
