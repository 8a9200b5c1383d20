"""Prunes models within budgets and compares the peak of the process with the budget and with the prediction."""

import json
import os
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
SECATEUR, XTASK = sys.argv[1], sys.argv[2]
# Rungs that differ only in where the sums lie give the same bytes.
SAME_BYTES = {"in-memory", "sums-in-files"}
# Exit code of a job that does not fit its budget.
REFUSED = 69


def run_prune(model, out, budget, tokens, extra=()):
    """Returns the report (or the error object) and the peak of the process in bytes."""
    command = [SECATEUR, "prune", model, "-o", out, "--ratio", "0.2", "--calibration-tokens", str(tokens), "--json"]
    command += ["--memory-budget", str(budget)] if budget else []
    started = time.time()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command + list(extra), stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        lines = stdout.read().decode().strip().splitlines()
        report = json.loads(lines[-1]) if lines else {}
        if process.returncode != 0:
            report["stderr"] = stderr.read().decode()[-600:]
    report["code"] = process.returncode
    report["wall_s"] = time.time() - started
    return report, usage.ru_maxrss * 1024


def predicted(report):
    memory = report["memory"]
    phases = {phase["name"]: sum(term["bytes"] for term in phase["terms"]) for phase in memory["phases"]}
    largest = max(phases, key=phases.get)
    return memory["runtime_bytes"] + phases[largest], largest, memory["rung"]


def smallest_budget(report):
    return report.get("smallest_budget_bytes") or report.get("error", {}).get("smallest_budget_bytes")


FAULTS = []
ROWS = []


def fault(text):
    FAULTS.append(text)
    print("FAULT:", text, file=sys.stderr)


def case(name, model, budget, tokens, directory, extra=(), digests=None):
    """Prunes and compares; where the budget is refused, with the smallest one that is named and a little for what the
    process holds, which differs by some pages from run to run."""
    out = os.path.join(directory, "pruned.gguf")
    report, peak = run_prune(model, out, budget, tokens, extra)
    label = f"{name}, {budget / MIB:.0f} MiB, {tokens} tokens" if budget else f"{name}, no bound, {tokens} tokens"
    needed = smallest_budget(report)
    if budget and report["code"] == REFUSED and needed and budget < needed:
        print(f"{label}: refused, {needed / MIB:.1f} MiB would do", flush=True)
        return case(name, model, needed + MIB, tokens, directory, extra, digests)
    if report["code"] != 0:
        fault(f"{label}: exit {report['code']}: {report.get('stderr')}")
        return None
    guess, phase, rung = predicted(report)
    off = guess / peak - 1
    stages = {stage: f"{value / MIB:.1f}" for stage, value in report["stage_rss_peak_bytes"].items()}
    row = (name, budget / MIB if budget else None, tokens, rung, phase, guess / MIB, peak / MIB, 100 * off, report["wall_s"])
    ROWS.append(row)
    print(json.dumps({"case": label, "rung": rung, "phase": phase, "predicted_mib": round(guess / MIB, 1),
                      "peak_mib": round(peak / MIB, 1), "off_percent": round(100 * off, 1), "stages_mib": stages,
                      "wall_s": round(report["wall_s"], 1), "loss": [report["held_out_loss_before"], report["held_out_loss_after"]],
                      "rates": report["rates"], "seconds": report["seconds"], "digest": report["output_digest"]}), flush=True)
    if budget and budget < peak:
        fault(f"{label}: the peak of {peak} went over the budget of {budget}")
    if 0.05 < abs(off):
        fault(f"{label}: predicted {guess}, was {peak}: off by {100 * off:.1f} %")
    if digests is not None and rung in SAME_BYTES:
        digests.setdefault(name, report["output_digest"])
        if digests[name] != report["output_digest"]:
            fault(f"{label}: other bytes on rung {rung}")
    os.remove(out)
    return report


def refusal(name, model, tokens, directory):
    """A budget that is too small is refused, and the one that is named instead is enough."""
    if case(name, model, 8 * MIB, tokens, directory) and ROWS[-1][1] == 8:
        fault(f"{name}: 8 MiB was not refused")


def synth(directory, *arguments):
    path = os.path.join(directory, "synthetic.gguf")
    subprocess.run([XTASK, "synth", "-o", path, *arguments], check=True, stdout=sys.stderr)
    return path


def reference(directory):
    model = subprocess.run(["tests/reference-model"], check=True, capture_output=True, text=True).stdout.strip()
    tokens = int(os.environ.get("SECATEUR_BUDGET_TOKENS", "32768"))
    digests = {}
    for budget in (0, 128 * MIB, 64 * MIB):
        case("reference model", model, budget, tokens, directory, ("--dtype", "f16"), digests)
    for budget in (72 * MIB, 62 * MIB, 42 * MIB):
        case("reference model, tables anew", model, budget, 1024, directory, ("--dtype", "q4_0", "--table-dtype", "q4_0"))
    for method in ("comp", "comp-condition", "fasp", "condition", "flap", "wanda-sp", "magnitude", "shortgpt"):
        case(f"reference model, {method}", model, 0, 4096, directory, ("--dtype", "f16", "--method", method))
    refusal("reference model", model, 2048, directory)


SHAPES = {
    "d256 k1024 L4": ("--shape", "custom", "--hidden", "256", "--intermediate", "1024", "--layers", "4"),
    "d512 k2048 L2": ("--shape", "custom", "--hidden", "512", "--heads", "8", "--intermediate", "2048", "--layers", "2"),
    "d512 k2048 L4": ("--shape", "custom", "--hidden", "512", "--heads", "8", "--intermediate", "2048", "--layers", "4"),
    "qwen2.5-0.5b L2": ("--shape", "qwen2.5-0.5b", "--layers", "2"),
}


def shapes(directory):
    for name, arguments in SHAPES.items():
        model = synth(directory, *arguments)
        digests = {}
        first = case(name, model, 0, 2048, directory, (), digests)
        if first is None:
            continue
        guess = predicted(first)[0]
        for share in (0.8, 0.6):
            case(name, model, int(share * guess), 2048, directory, (), digests)
        case(name, model, 0, 8192, directory)
        os.remove(model)


def large(directory):
    tokens = int(os.environ.get("SECATEUR_BUDGET_TOKENS", "16384"))
    model = synth(directory, "--shape", "llama-3.2-1b")
    case("llama-3.2-1b", model, 640 * MIB, tokens, directory)
    os.remove(model)
    model = synth(directory, "--shape", "llama-2-7b", "--dtype", "q4_0")
    case("llama-2-7b", model, int(1.7 * 1024 * MIB), 1024, directory)


def main():
    arguments = sys.argv[3:]
    with tempfile.TemporaryDirectory(prefix="secateur-budget-", dir=os.environ.get("SECATEUR_BUDGET_DIR")) as directory:
        {"--shapes": shapes, "--large": large}.get(arguments[0] if arguments else "", reference)(directory)
    print("| model | budget, MiB | tokens | rung | largest phase | predicted, MiB | peak, MiB | off, % | seconds |")
    print("| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for name, budget, tokens, rung, phase, guess, peak, off, seconds in ROWS:
        bound = f"{budget:.0f}" if budget else "none"
        print(f"| {name} | {bound} | {tokens} | {rung} | {phase} | {guess:.1f} | {peak:.1f} | {off:+.1f} | {seconds:.0f} |")
    sys.exit(1 if FAULTS else 0)


main()
