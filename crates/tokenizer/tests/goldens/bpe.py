"""Byte-level BPE in plain Python: the independent implementation behind the goldens."""

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# Each expression is applied to the pieces of the one before; what it does not match stays a piece of its own.
STAGES = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [LLAMA3], "qwen2": [QWEN2]}


def split(pre, text):
    pieces = [text] if text else []
    for pattern in STAGES[pre]:
        finer = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                if match.start() > end:
                    finer.append(piece[end : match.start()])
                finer.append(match.group())
                end = match.end()
            if end < len(piece):
                finer.append(piece[end:])
        pieces = finer
    assert "".join(pieces) == text
    return pieces


def byte_alphabet():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(plain))
    return alphabet


ALPHABET = byte_alphabet()


def spell(piece):
    return "".join(ALPHABET[byte] for byte in piece.encode())


class Bpe:
    def __init__(self, pre, tokens, merges, ignore_merges=False):
        self.pre = pre
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in reversed(list(enumerate(merges)))}
        self.ignore_merges = ignore_merges

    def encode(self, text):
        return [i for piece in split(self.pre, text) for i in self.encode_piece(piece)]

    def encode_piece(self, piece):
        spelt = spell(piece)
        if self.ignore_merges and spelt in self.ids:
            return [self.ids[spelt]]
        word = [c for c in spelt if c in self.ids]
        while True:
            pairs = {pair: self.ranks[pair] for pair in zip(word, word[1:]) if pair in self.ranks}
            if not pairs:
                return [self.ids[part] for part in word]
            best = min(pairs, key=pairs.get)
            merged, i = [], 0
            while i < len(word):
                if tuple(word[i : i + 2]) == best:
                    merged.append(word[i] + word[i + 1])
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            word = merged

    def encode_parsing(self, text, specials):
        """Encodes with the texts in `specials` cut out first, the longest one at each place."""
        ids, start, pos = [], 0, 0
        while pos < len(text):
            found = [s for s in specials if text.startswith(s, pos)]
            if not found:
                pos += 1
                continue
            longest = max(found, key=len)
            ids += self.encode(text[start:pos]) + [self.ids[longest]]
            pos += len(longest)
            start = pos
        return ids + self.encode(text[start:])


def train(pre, text, n_merges):
    """Learns merges the textbook way; ties go to the pair that compares smaller."""
    words = {}
    for piece in split(pre, text):
        key = tuple(spell(piece))
        words[key] = words.get(key, 0) + 1
    merges = []
    for _ in range(n_merges):
        counts = {}
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + n
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(" ".join(best))
        renewed = {}
        for word, n in words.items():
            merged, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    merged.append(word[i] + word[i + 1])
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            renewed[tuple(merged)] = renewed.get(tuple(merged), 0) + n
        words = renewed
    return merges
