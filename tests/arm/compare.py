"""Compares the results of one prune on two processors: folders with report.json and pruned.gguf of the tiny F32 model.

Sums are taken in another order and with other vector widths, so the files need not be equal byte by byte. What must be
equal is what was decided: layers, widths, heads, sizes. What may differ is the last digits of refitted weights and of
the losses; the bounds below are what the documentation promises."""
import array
import json
import math
import pathlib
import sys

MAX_WEIGHT_ERROR = 1e-3  # of the root mean square of all weights
MAX_LOSS_ERROR = 1e-4  # relative

DECISIONS = ["params_before", "params_after", "layers_removed", "widths", "kv_heads", "bytes_after", "ratio_reached"]


def load(folder: pathlib.Path):
    report = json.loads((folder / "report.json").read_text())
    return report, (folder / "pruned.gguf").read_bytes()


def main(one: str, other: str) -> int:
    (report, file), (report2, file2) = load(pathlib.Path(one)), load(pathlib.Path(other))
    faults = [f"{key}: {report[key]} / {report2[key]}" for key in DECISIONS if report[key] != report2[key]]
    for key in ("held_out_loss_before", "held_out_loss_after"):
        off = abs(report[key] - report2[key]) / report[key]
        print(f"{key}: {report[key]:.6f} / {report2[key]:.6f} (relative {off:.1e})")
        if not off <= MAX_LOSS_ERROR:
            faults.append(f"{key} differs by {off:.1e}, at most {MAX_LOSS_ERROR:.0e}")
    if len(file) != len(file2):
        faults.append(f"files of {len(file)} and {len(file2)} bytes")
    elif file == file2:
        print("the files are equal")
    else:
        # Every value is an f32 at a multiple of four; the head of the file holds no floats that could differ.
        whole = len(file) // 4 * 4
        words, words2 = array.array("f", file[:whole]), array.array("f", file2[:whole])
        pairs = [(a, b) for a, b in zip(words, words2) if a != b and not (a != a and b != b)]
        data = [a for a in words[len(words) // 2 :] if math.isfinite(a)]
        scale = math.sqrt(sum(a * a for a in data) / len(data))
        worst = max((abs(a - b) for a, b in pairs), default=0.0) / scale
        print(f"{len(pairs)} of {len(words)} words differ, by at most {worst:.1e} of the root mean square")
        if not worst <= MAX_WEIGHT_ERROR:
            faults.append(f"weights differ by {worst:.1e}, at most {MAX_WEIGHT_ERROR:.0e}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


sys.exit(main(*sys.argv[1:]))
