"""Bytes that each token of a vocabulary decodes to.

Vocabularies spell: "Ġtower", "▁tower", "##ower" and "tower</w>" are four ways to write one word. Only the decoder knows
which one is meant, so the bytes of a token are what decoding gives for it between two other tokens. Single bytes, of
which a character may need several, are the exception: decoding them alone gives nothing that could be joined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from neuraldb_faiss.errors import ModelError

BREAK = b"\0"  # special and unknown tokens, and what stands between two texts
_KNOWN = {"ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace", "WordPiece", "BPEDecoder"}
_PIECES = {"ByteFallback", "Fuse", "Strip", "Metaspace"}  # with Replace("▁" -> " "): SentencePiece's
_HARMLESS = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "ByteLevel"}  # normalizers that folding a name does as well
_SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NEIGHBOUR = "a"
_SAMPLE = 64  # tokens that are decoded to check the quick ways


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token id stands for in the middle of a text; BREAK for special and unknown tokens.

    Joined, the bytes of a text's ids are what the decoder gives for them, but for white space at the text's ends.

    Raises:
        ModelError: the tokenizer has no fast (Rust) backend, or a decoder of which this is not known to hold.
    """
    says = _reader(tokenizer, _part(tokenizer, "decoder"))
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    table = [BREAK] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        table[number] = says(text)
    for number, added in tokenizer.added_tokens_decoder.items():
        # Added tokens stand in the text as they are; some tokenizers take a space before them along.
        own = added.content.encode() if says is _of_bytelevel else says(tokenizer.convert_ids_to_tokens(number))
        table[number] = BREAK if added.special else own
    if tokenizer.unk_token_id is not None:  # any name may be behind it
        table[tokenizer.unk_token_id] = BREAK
    return table


def respells(tokenizer: Any) -> bool:
    """Whether a text may come back from its tokens spelled otherwise: in lower case, without accents, with white space
    around every sign. Names must then be read through the tokenizer too, or they are never found."""
    normalizer = _flat(_part(tokenizer, "normalizer"), "normalizers")
    return _separates(_part(tokenizer, "decoder")) or not all(map(_is_harmless, normalizer))


def _part(tokenizer: Any, name: str) -> Mapping[str, Any] | None:
    """One part of a tokenizer as its file has it, without the rest, whose vocabulary is large."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{type(tokenizer).__name__} is a slow tokenizer: load the model's fast one (use_fast=True)")
    part = getattr(backend, name)
    return None if part is None else json.loads(part.__getstate__())


def _flat(part: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a tokenizer's part, sequences taken apart."""
    if part is not None and part["type"] == "Sequence":
        for one in part[inner]:
            yield from _flat(one, inner)
    elif part is not None:
        yield part


def _separates(decoder: Mapping[str, Any] | None) -> bool:
    """Whether the decoder puts white space where the text may have had none."""
    kinds = {step["type"] for step in _flat(decoder, "decoders")}
    return not kinds or bool(kinds & {"WordPiece", "BPEDecoder"})


def _is_harmless(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        return {step["pattern"].get("String"), step["content"]} == {" ", _SPACE}
    return step["type"] in _HARMLESS


def _reader(tokenizer: Any, decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    steps = list(_flat(decoder, "decoders"))
    kinds = {step["type"] for step in steps}
    if unknown := kinds - _KNOWN:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} has a decoder of the kind {', '.join(sorted(unknown))}: what its"
            " tokens say is not known, so no name can be found in them; use the guard none (--guard none)"
        )
    if not steps:  # tokens are joined by one space
        return lambda text: b" " + text.encode()
    own = tokenizer.backend_tokenizer.decoder

    def in_context(text: str) -> bytes:
        whole: str = own.decode([_NEIGHBOUR, text, _NEIGHBOUR])
        tail = own.decode([_NEIGHBOUR, _NEIGHBOUR])[len(_NEIGHBOUR) :]
        return whole[len(_NEIGHBOUR) : len(whole) - len(tail)].encode()

    def single_bytes_apart(text: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(text) if "ByteFallback" in kinds else None
        return bytes([int(byte[1], 16)]) if byte else in_context(text)

    if "ByteLevel" in kinds:
        quick = _of_bytelevel
    elif kinds <= _PIECES | {"Replace"} and all(map(_is_harmless, (s for s in steps if s["type"] == "Replace"))):
        quick = _of_pieces
    else:
        return single_bytes_apart
    return quick if _agree(quick, in_context, list(tokenizer.get_vocab())) else single_bytes_apart


def _agree(quick: Callable[[str], bytes], slow: Callable[[str], bytes], texts: Sequence[str]) -> bool:
    """Whether both read a sample of the tokens alike, single bytes and parts of characters left out."""
    sample = [text for text in texts[:: max(1, len(texts) // _SAMPLE)] if not _BYTE_TOKEN.fullmatch(text)]
    return all(slow(text) == quick(text) for text in sample if quick(text).isascii())


def _of_pieces(text: str) -> bytes:
    """SentencePiece's: a low line for a space, <0x0A> for a byte."""
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


def _bytelevel_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: those that print stand for themselves, the rest follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + n): byte for n, byte in enumerate(rest)}}


_ALPHABET = _bytelevel_alphabet()


def _of_bytelevel(text: str) -> bytes:
    try:
        return bytes(_ALPHABET[char] for char in text)
    except KeyError:  # an added token, written as it is
        return text.encode()
