"""Writes `metaspace_tokenizer.json` and `metaspace.json`: a tokenizer.json of the kind that Llama-2 models have, with
the ids and texts that the tokenizers library in Python gives for whole texts.

    pip install tokenizers
    python make_metaspace_goldens.py
"""

import json
from pathlib import Path

from nasty import NASTY
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).parent
MARK = "\u2581"

pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
pieces += list(MARK + "abcdefghijklmnoprstuvwxyz0123.,!?'<>/|_\u00e9\u4f60")
merges = [(MARK, "t"), ("h", "e"), (MARK + "t", "he"), (MARK, "a"), ("a", "b"), (MARK, MARK), ("l", "l"), ("o", "r")]
merges += [("w", "or"), (MARK, "wor"), ("1", "2"), ("<", "s"), ("!", "!"), (MARK, "\u4f60"), ("'", "s")]
pieces += [left + right for left, right in merges]
vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}

tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=False)
tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ["<unk>", "<s>", "</s>"]])
tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True)])
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
(HERE / "metaspace_tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n")

texts = ["the word", "<s>the", "<tool>the", " <tool>the <tool> the", "the</s> the</s>the", "a<|end|>  \n the", "<|end|>", MARK]
cases = []
for text in dict.fromkeys(texts + NASTY):
    tokenizer.encode_special_tokens = False
    parsed = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    cases.append({"text": text, "ids": ids, "parsed": parsed, "decoded": tokenizer.decode(parsed)})
text = json.dumps(cases, ensure_ascii=True, separators=(",", ":")).replace("},{", "},\n{")
(HERE / "metaspace.json").write_text(text + "\n")
