#!/usr/bin/env python3
"""Prunes the reference model and compares perplexity in stock llama.cpp with `secateur eval`, within 1 %."""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp

SEQ_LEN = 512
TOLERANCE = 0.01


def secateur_json(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(args)}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def stock_perplexity(path, text):
    model = llama_cpp.Llama(str(path), n_ctx=SEQ_LEN, n_batch=SEQ_LEN, logits_all=True, verbose=False)
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    total, count = 0.0, 0
    for at in range(0, len(ids), SEQ_LEN):
        window = ids[at : at + SEQ_LEN]
        if len(window) < 2:
            continue
        model.reset()
        model.eval(window)
        for row, target in enumerate(window[1:]):
            logits = model.scores[row].astype("float64")
            top = logits.max()
            total += top + math.log(float(sum(map(math.exp, (logits - top).tolist())))) - float(logits[target])
            count += 1
    return math.exp(total / count), len(ids)


def main():
    secateur, base, text_path = sys.argv[1:4]
    text = pathlib.Path(text_path).read_text(encoding="utf-8")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, options in [
            ("compatible, dtype kept", ["--policy", "compatible", "--ratio", "0.2"]),
            ("quality, q8_0", ["--policy", "quality", "--ratio", "0.2", "--dtype", "q8_0"]),
        ]:
            out = pathlib.Path(folder) / (name.replace(", ", "-").replace(" ", "-") + ".gguf")
            secateur_json(secateur, "prune", base, "-o", str(out), "--method", "comp",
                          "--calibration-tokens", "2048", "--json", *options)
            ours = secateur_json(secateur, "eval", str(out), "--text", text_path,
                                 "--seq-len", str(SEQ_LEN), "--json")["perplexity"]
            stock, n_tokens = stock_perplexity(out, text)
            gap = abs(stock / ours - 1)
            fine = gap <= TOLERANCE
            failed += not fine
            print(f"{name}: secateur {ours:.4f}, llama.cpp {stock:.4f} over {n_tokens} tokens, "
                  f"apart {gap:.3%}: {'ok' if fine else 'FAILED'}")
    print(f"{2 - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
