"""Writes the goldens of byte-level BPE.

    pip install regex gguf tokenizers
    python make_bpe_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf

`smollm.json`: ids of the reference vocabulary. `splits.json`: pieces of every pre-tokenizer. `synthetic.json`: a small
vocabulary trained here for each pre-tokenizer, and its ids. `tokenizer.json`: one of them for the tokenizers library,
whose ids are checked here to be the same.
"""

import json
import sys
from pathlib import Path

from bpe import ALPHABET, LLAMA3, STAGES, Bpe, split, train
from gguf import GGUFReader
from nasty import NASTY
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).parent
CONTROL = 3


def save(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("},{", "},\n{") + "\n")


def library_smollm(tokens, merges):
    """The same vocabulary on the tokenizers library, a second opinion."""
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges], fuse_unk=False
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def smollm(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    specials = [token for token, kind in zip(tokens, types) if kind == CONTROL]
    bpe = Bpe("smollm", tokens, merges)
    library = library_smollm(tokens, merges)
    cases = []
    for text in NASTY:
        ids = bpe.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == ids, text
        case = {"text": text, "ids": ids}
        parsed = bpe.encode_parsing(text, specials)
        if parsed != ids:
            case["parsed"] = parsed
        cases.append(case)
    save("smollm.json", cases)


def synthetic():
    text = "\n".join(NASTY) + " the then there other father mother 100 200 2024 don't can't I'LL we'RE   \n\n" * 5
    result = {}
    for pre in STAGES:
        merges = train(pre, text, 220)
        specials = ["<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
        # A token that no merge leads to is found only where merges are ignored.
        tokens = [*ALPHABET.values(), *("".join(m.split(" ")) for m in merges), "\u0120zebra", *specials]
        tokens = list(dict.fromkeys(tokens))
        bpe = Bpe(pre, tokens, merges, ignore_merges=pre == "llama-bpe")
        texts = [*NASTY, "a zebra zebras", " zebra"]
        cases = [
            {"text": text, "ids": bpe.encode(text), "parsed": bpe.encode_parsing(text, specials)} for text in texts
        ]
        result[pre] = {"tokens": tokens, "merges": merges, "specials": specials, "cases": cases}
    save("synthetic.json", result)
    return result["llama-bpe"]


def library_json(vocab):
    ids = {token: i for i, token in enumerate(vocab["tokens"])}
    plain = {token: i for token, i in ids.items() if token not in vocab["specials"]}
    merges = [tuple(merge.split(" ")) for merge in vocab["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=plain, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in vocab["specials"]])
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    for case in vocab["cases"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False).ids == case["parsed"], case["text"]
        assert tokenizer.encode(case["text"]).ids == [ids[bos], *case["parsed"]], case["text"]
    (HERE / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n")


def splits():
    save("splits.json", [{"text": text, "pieces": {pre: split(pre, text) for pre in STAGES}} for text in NASTY])


smollm(sys.argv[1])
splits()
library_json(synthetic())
