"""Writes zig/src/tokenizer/unicode_tables.zig.

What a "letter" or a "space" is must be what the `tokenizers` library believes, whatever Unicode
version its regex engine carries. So the classes are read out of that engine, code point by code
point, and the normalisation data out of its NFD and NFC. Only the values of the combining
classes come from elsewhere (`regex`), for the marks that the library's NFD does reorder.

    python tools/make_unicode_tables.py zig/src/tokenizer/unicode_tables.zig
"""

from __future__ import annotations

import sys
from pathlib import Path

import regex
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CLASSES = ["Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "P", "S"]
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern: str) -> list[int]:
    """Returns the code points that `pattern` (one character wide) matches in their engine."""
    found: list[int] = []
    splitter = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    step = 4096
    for start in range(0, len(POINTS), step):
        block = "".join(map(chr, POINTS[start : start + step]))
        for piece, _ in splitter.pre_tokenize_str(block):
            found.extend(map(ord, piece))
    return found


def class_ranges() -> list[tuple[int, int]]:
    """Returns (first code point, class number) where the class changes; 0 is "other"."""
    of = [0] * 0x110000
    for number, name in enumerate(CLASSES, start=1):
        for c in members(rf"\p{{{name}}}"):
            if of[c]:
                raise SystemExit(f"U+{c:04X} is in two classes")
            of[c] = number
    for c in members(r"\s"):
        if of[c]:
            raise SystemExit(f"U+{c:04X} is a space and a {CLASSES[of[c] - 1]}")
        of[c] = len(CLASSES) + 1
    ranges: list[tuple[int, int]] = []
    for c in range(0x110000):
        if not ranges or ranges[-1][1] != of[c]:
            ranges.append((c, of[c]))
    return ranges


def numeric_differences(letters_n: set[int]) -> list[int]:
    """Returns code points on which the Digits pre-tokenizer and \\p{N} disagree."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    rust: set[int] = set()
    for start in range(0, len(POINTS), 2048):
        block = "a".join(map(chr, POINTS[start : start + 2048])) + "a"
        rust.update(ord(p) for p, _ in digits.pre_tokenize_str(block) if len(p) == 1)
    rust.discard(ord("a"))
    return sorted(rust ^ letters_n)


Normalization = tuple[dict[int, list[int]], dict[tuple[int, int], int], list[tuple[int, int]]]


def normalization() -> Normalization:
    """Returns full canonical decompositions, primary compositions and combining classes."""
    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    decompose: dict[int, list[int]] = {}
    compose: dict[tuple[int, int], int] = {}
    for c in POINTS:
        if 0xAC00 <= c <= 0xD7A3:  # Hangul syllables are arithmetic.
            continue
        text = chr(c)
        full = nfd.normalize_str(text)
        if full == text:
            continue
        decompose[c] = [ord(x) for x in full]
        if nfc.normalize_str(text) == text and len(full) >= 2:
            head = nfc.normalize_str(full[:-1])
            if len(head) != 1:
                raise SystemExit(f"U+{c:04X} has no primary composition")
            compose[(ord(head), ord(full[-1]))] = c
    classes: list[tuple[int, int]] = []
    marks: list[tuple[int, regex.Pattern[str]]] = []
    for number in range(1, 255):
        try:
            marks.append((number, regex.compile(rf"\p{{ccc={number}}}")))
        except regex.error:  # No character has this class.
            continue
    any_mark = regex.compile(r"\P{ccc=0}")
    last = 0
    for c in range(0x110000):
        value = 0
        if 0xD800 <= c < 0xE000:
            continue
        # Their tables are older: a mark counts if it moves before U+0345, of the highest class.
        known = nfd.normalize_str(f"a\u0345{chr(c)}") == f"a{chr(c)}\u0345" or c == 0x345
        if known and any_mark.match(chr(c)):
            value = next(n for n, m in marks if m.match(chr(c)))
        if value != last:
            classes.append((c, value))
            last = value
    return decompose, compose, classes


def word_edges() -> list[int]:
    """Returns where runs of what `single_word` takes for a word's characters begin and end."""
    tok = Tokenizer(models.BPE({"<unk>": 0}, [], unk_token="<unk>"))
    tok.add_tokens([AddedToken("Q", single_word=True, normalized=False)])
    found = tok.token_to_id("Q")
    edges, inside = [], False
    for start in range(0, 0x110000, 0x8000):
        codes = [c for c in range(start, start + 0x8000) if not 0xD800 <= c < 0xE000]
        texts = [f"{chr(c)}Q" for c in codes]
        for c, one in zip(codes, tok.encode_batch_fast(texts), strict=True):
            word = found not in one.ids or c == ord("Q")
            if word != inside:
                edges.append(c)
                inside = word
    return edges


def rows(values: list[str], width: int = 10) -> str:
    lines = [", ".join(values[i : i + width]) for i in range(0, len(values), width)]
    return "".join(f"    {line},\n" for line in lines)


def main() -> None:
    """Reads the classes and writes the Zig file named by the first argument."""
    ranges = class_ranges()
    numeric = set(members(r"\p{N}"))
    differing = numeric_differences(numeric)
    decompose, compose, classes = normalization()
    out = [
        "//! Unicode tables. Written by tools/make_unicode_tables.py; do not edit.\n",
        "//!\n",
        f"//! Read out of tokenizers {tokenizers.__version__}, so that classes agree with it on"
        " every code point.\n\n",
        "/// Where the class changes: first code point << 8 | class (see `unicode.Class`).\n",
        "pub const class_starts = [_]u32{\n",
        rows([hex(start << 8 | number) for start, number in ranges]),
        "};\n\n",
        "/// Code points on which the Digits pre-tokenizer and `\\p{N}` disagree.\n",
        f"pub const digit_differences = [_]u32{{ {', '.join(map(hex, differing))} }};\n\n",
        "/// Where the canonical combining class changes: first code point << 8 | class.\n",
        "pub const combining_starts = [_]u32{\n",
        rows([hex(start << 8 | value) for start, value in classes]),
        "};\n\n",
        "/// Full canonical decompositions: code point, then index << 3 | length.\n",
        "pub const decompositions = [_][2]u32{\n",
    ]
    flat: list[int] = []
    pairs: list[str] = []
    for c, sequence in sorted(decompose.items()):
        pairs.append(f".{{ {hex(c)}, {hex(len(flat) << 3 | len(sequence))} }}")
        flat.extend(sequence)
    out += [rows(pairs, 5), "};\n\n", "pub const decomposed = [_]u32{\n"]
    out += [rows(list(map(hex, flat)))]
    out += ["};\n\n", "/// Primary compositions: first << 32 | second, and what they make.\n"]
    out += ["pub const compositions = [_][2]u64{\n"]
    made = [f".{{ {hex(a << 32 | b)}, {hex(c)} }}" for (a, b), c in sorted(compose.items())]
    out += [rows(made, 4)]
    out += [
        "};\n\n",
        "/// Where runs of a word's characters, `\\w` of added tokens, begin and end, in turn.\n",
    ]
    out += ["pub const word_edges = [_]u32{\n", rows(list(map(hex, word_edges()))), "};\n"]
    Path(sys.argv[1]).write_text("".join(out), encoding="utf-8")


if __name__ == "__main__":
    main()
