"""Writes `spm.json`: small SentencePiece-style vocabularies and the ids of a plain implementation.

    python make_spm_goldens.py

The implementation here looks at the whole text again before each merge: slow, and nothing to get wrong.
"""

import json
from pathlib import Path

from nasty import NASTY

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MARK = "\u2581"


def encode_text(vocab, text):
    ids = {token: i for i, (token, _, kind) in enumerate(vocab["tokens"]) if kind in (NORMAL, UNUSED, USER)}
    scores = [score for _, score, _ in vocab["tokens"]]
    byte_ids = {token: i for i, (token, _, kind) in enumerate(vocab["tokens"]) if kind == BYTE}
    symbols = list(text.replace(" ", MARK))
    while True:
        best = None
        for i in range(len(symbols) - 1):
            token = ids.get(symbols[i] + symbols[i + 1])
            if token is not None and (best is None or scores[token] > scores[best[1]]):
                best = (i, token)
        if best is None:
            break
        symbols[best[0] : best[0] + 2] = [symbols[best[0]] + symbols[best[0] + 1]]
    out = []
    for symbol in symbols:
        if symbol in ids:
            out.append(ids[symbol])
            continue
        # A mark without a token is a space that was written as such.
        raw = (" " if symbol == MARK else symbol).encode()
        names = [f"<0x{byte:02X}>" for byte in raw]
        out += [byte_ids[name] for name in names] if all(name in byte_ids for name in names) else [0]
    return out


def encode(vocab, text, parse):
    kinds = (CONTROL, USER, UNKNOWN) if parse else (USER,)
    specials = {token: i for i, (token, _, kind) in enumerate(vocab["tokens"]) if kind in kinds}
    parts, start, pos = [], 0, 0
    while pos < len(text):
        found = [token for token in specials if text.startswith(token, pos)]
        if not found:
            pos += 1
            continue
        longest = max(found, key=len)
        parts += [text[start:pos], specials[longest]]
        pos += len(longest)
        start = pos
    parts.append(text[start:])
    out = []
    for part in parts:
        if isinstance(part, int):
            out.append(part)
        elif part:
            out += encode_text(vocab, (" " if vocab["add_space_prefix"] else "") + part)
    return out


def vocab(pieces, with_bytes=True, add_space_prefix=True):
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    if with_bytes:
        tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    tokens += [("<tool>", 0.0, USER), ("    ", 0.0, USER)]
    # The first of equal texts stays.
    tokens = list({text: (text, score, kind) for text, score, kind in reversed(tokens + pieces)}.values())[::-1]
    return {"tokens": tokens, "add_space_prefix": add_space_prefix}


def grow(words):
    """All prefixes of the words get scores that fall with their place, as a trained vocabulary has them."""
    pieces = {}
    for word in words:
        for end in range(2, len(word) + 1):
            pieces.setdefault(word[:end], None)
    return [(piece, -1.0 - i, NORMAL) for i, piece in enumerate(pieces)]


WORDS = [MARK + w for w in ["the", "then", "there", "other", "quick", "brown", "fox", "hello", "world", "is", "a"]]
WORDS += ["the", "ing", "er", "ll", "don", "123", "20", "\u4f60\u597d", "caf\u00e9", "<s", "</s", MARK * 3, "aa", "!!", "\n\n"]
# Characters that occur in the texts, worst scores of all; some have no token of their own.
LETTERS = [(c, -1000.0 - i, NORMAL) for i, c in enumerate(MARK + "abcdefghijklmnoprstuvwxyzHIT0123.,!?'<>/|_\n\u00e9\u4f60")]
# Equal scores: the leftmost pair goes first.
TIES = [(piece, -50.0, NORMAL) for piece in ["ab", "bc", "cd", "bcd", "abc", "ba", "aba", MARK + "b"]]
TAIL = [("zz", -3.0, UNUSED)]

VOCABS = {
    "plain": vocab(grow(WORDS) + TIES + TAIL + LETTERS),
    "without_prefix": vocab(grow(WORDS) + TIES + TAIL + LETTERS, add_space_prefix=False),
    "without_bytes": vocab(grow(WORDS) + TIES + TAIL + LETTERS, with_bytes=False),
    "spaces_inside": vocab(grow([*WORDS, MARK + "a" + MARK + "b", "x" + MARK]) + TIES + TAIL + LETTERS),
}
EXTRA = [
    "the other then there", "abcabcd abab baba bcd", "a b a b", "x y x  y", "ab" * 9 + "c", "aaaaa", "a<tool>b <tool>",
    "<s>the</s> <s> hello", "x    y     z        ", "zz", "hello\n\nworld!!!", "\u4f60\u597d\u4f60\u597d caf\u00e9",
]

result = {}
for name, made in VOCABS.items():
    texts = list(dict.fromkeys(EXTRA + NASTY))
    made["cases"] = [
        {"text": text, "ids": encode(made, text, parse=False), "parsed": encode(made, text, parse=True)} for text in texts
    ]
    result[name] = made
text = json.dumps(result, ensure_ascii=True, separators=(",", ":")).replace("},{", "},\n{")
(Path(__file__).parent / "spm.json").write_text(text + "\n")
