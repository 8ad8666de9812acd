"""Text as token ids on the device: tiny Shakespeare, WikiText-2, and Python's own help texts, by character or by BPE.

tinyshakespeare  1.1 MB of plays, in the file and with the split of char-rnn and nanoGPT: the last tenth is held out
wikitext2        Wikipedia articles, 10.8 MB and 1.1 MB, word-tokenised (<unk>, @-@), as pytorch/examples has them;
                 evaluated on the validation split. Bytes are counted of the file as it is
pydoc            the help topics that come with Python (``pydoc_data.topics``), about half a megabyte: no download. It
                 differs from one Python version to the next, so it is for trying things out, not for evidence

WikiText-2's training articles are put into the order of their titles: batches are windows from anywhere, so the order
of the articles matters little, and a copy of the file with its articles in another order gives the same numbers.

Encoded text is kept in the cache folder, so that a corpus is tokenised once, and read on a machine without the
tokenizers library.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimetic.data.fetch import Unavailable, atomic_path, cache_dir, download, sha256_of
from mimetic.messages import check_choice, one_line

TOKENIZERS = ("char", "bpe")
BYTES = 256  # the smallest byte-level vocabulary: no merges
LARGEST_VOCABULARY = 65_536  # ids are kept as uint16
HELD_OUT = 0.1  # share of a text at its end that is held out

_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
_TITLE = re.compile(r"^ = [^=]+ = $")  # a title's line; those of sections have more equals signs


@dataclass(frozen=True)
class Corpus:
    """Where a corpus comes from and how large it is."""

    files: dict[str, tuple[str, str, Callable[[Path], str]]]  # file name -> URL, SHA-256, of what
    read: Callable[[dict[str, Path]], tuple[str, str]]  # training and evaluation text
    train_characters: int | None = None  # None: not known before it is read
    test_bytes: int | None = None


@dataclass(frozen=True)
class TextData:
    """An encoded corpus on a device."""

    name: str
    train: Tensor  # (n,) int32 token ids
    test: Tensor
    tokens: tuple[bytes, ...]  # the bytes of each id

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @cached_property
    def token_bytes(self) -> Tensor:
        """(V,) int64: how many bytes of text each id stands for."""
        return torch.tensor([len(t) for t in self.tokens], device=self.train.device)

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; bytes that are no whole character become a replacement mark."""
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


def load_text(
    name: str,
    *,
    tokenizer: str = "char",
    vocab_size: int = 0,
    validation: bool = False,
    device: str | torch.device = "cpu",
) -> TextData:
    """A corpus as token ids on ``device``; fetched and tokenised first if it is not in the cache.

    Args:
        name: tinyshakespeare, wikitext2 or pydoc.
        tokenizer: "char", every character of the corpus; or "bpe", byte-level byte-pair encoding, trained on the
            training text.
        vocab_size: of the BPE, from 256 (bytes); 0 for "char".
        validation: hold the last tenth of the *training* text out and evaluate on it, so that a recipe can be chosen
            without the evaluation text.
        device: where the tensors live.

    Raises:
        ValueError: an argument that makes no sense; the message names the choices.
        Unavailable: the corpus cannot be had, or a file in the cache is damaged; the message says what to do.
    """
    check_text(name, tokenizer, vocab_size)
    train, test = read_text(name)
    if validation:
        train, test = held_out(train)
    if tokenizer == "char":
        return on_device(name, *encode_characters(train, test), device)
    path = cache_dir() / "text" / f"{name}-bpe{vocab_size}{'-validation' * validation}.npz"
    digest = hashlib.sha256(f"{train}\0{test}".encode()).hexdigest()
    arrays = _read_encoded(path, digest)
    if arrays is None or len(arrays["lengths"]) != vocab_size:
        ids_train, ids_test, tokens = encode_bpe(train, test, vocab_size)
        joined = np.frombuffer(b"".join(tokens), dtype=np.uint8)
        arrays = {"train": ids_train, "test": ids_test, "bytes": joined, "lengths": np.array([len(t) for t in tokens])}
        with suppress(OSError), atomic_path(path) as temporary:  # to have them again; a folder may be read-only
            np.savez(temporary, digest=digest, **arrays)
    ends = np.cumsum(arrays["lengths"])
    tokens = tuple(arrays["bytes"][end - n : end].tobytes() for end, n in zip(ends, arrays["lengths"]))
    return on_device(name, arrays["train"], arrays["test"], tokens, device)


def check_text(name: str, tokenizer: str = "char", vocab_size: int = 0) -> None:
    """Raise ValueError unless ``load_text`` with these arguments makes sense; reads no data."""
    check_choice("dataset", name, CORPORA)
    check_choice("tokenizer", tokenizer, TOKENIZERS)
    if tokenizer == "char" and vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the vocabulary of 'char' is the characters of the corpus; use 0, or"
            " tokenizer='bpe'"
        )
    if tokenizer == "bpe" and not BYTES <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(
            f"vocab_size must be from {BYTES} (bytes) to {LARGEST_VOCABULARY} for 'bpe', not {vocab_size!r}"
        )


def fetch_text(name: str) -> list[Path]:
    """Make sure that a corpus is in the cache; returns its files (none for pydoc).

    Raises:
        ValueError: unknown name.
        Unavailable: it cannot be fetched; the message says what was tried and what to do.
        ChecksumError: what came is not what was meant.
    """
    check_text(name)
    paths, folder = [], cache_dir() / "text" / name
    for file, (url, sha256, digest) in CORPORA[name].files.items():
        try:
            paths.append(download(url, folder / file, sha256, digest))
        except Unavailable as error:
            remedy = f"Put {file} into {folder} (MIMETIC_DATA names another folder), or choose pydoc: no download"
            raise Unavailable(f"{error}. {remedy}") from None
    return paths


def read_text(name: str) -> tuple[str, str]:
    """The training and the evaluation text of a corpus; raises what fetch_text raises."""
    return CORPORA[name].read({path.name: path for path in fetch_text(name)})


def held_out(text: str) -> tuple[str, str]:
    """The text without its last tenth of characters (HELD_OUT), and those."""
    cut = int(len(text) * (1 - HELD_OUT))
    return text[:cut], text[cut:]


# --- tokens ----------------------------------------------------------------------------------------------------------


def encode_characters(train: str, test: str) -> tuple[np.ndarray, np.ndarray, tuple[bytes, ...]]:
    """Ids of both texts and the bytes of each id: the characters that occur in either, in order of their code points.

    Raises:
        ValueError: a text is empty.
    """
    _refuse_empty(train, test)
    points = [np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32) for text in (train, test)]
    characters = np.unique(np.concatenate(points))
    ids = [np.searchsorted(characters, p).astype(np.uint16) for p in points]
    return *ids, tuple(chr(c).encode() for c in characters)


def encode_bpe(train: str, test: str, vocab_size: int) -> tuple[np.ndarray, np.ndarray, tuple[bytes, ...]]:
    """Ids of both texts and the bytes of each id: byte-level BPE as GPT-2's
    (Radford et al. 2019), trained on ``train``.

    Any text can be encoded, since all 256 bytes are in the vocabulary.

    Raises:
        ValueError: a text is empty, or too short for so large a vocabulary.
        Unavailable: the tokenizers library is not installed.
    """
    _refuse_empty(train, test)
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise Unavailable(
            "a BPE vocabulary needs the tokenizers library: pip install tokenizers (or tokenizer='char')"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(train.splitlines(keepends=True), trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if len(vocabulary) < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the training text has no more than {len(vocabulary)} byte pairs worth merging"
        )
    table = _byte_of_character()
    tokens = tuple(bytes(table[c] for c in token) for token, _ in vocabulary)
    ids = []
    for text in (train, test):
        lines = tokenizer.encode_batch(text.splitlines(keepends=True), add_special_tokens=False)
        ids.append(np.fromiter((i for line in lines for i in line.ids), dtype=np.uint16))
    return *ids, tokens


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: bytes that are one stand for themselves, the others
    follow from code point 256 on (GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def on_device(name: str, train: np.ndarray, test: np.ndarray, tokens: tuple[bytes, ...], device) -> TextData:
    """Encoded texts as TextData."""
    ids = [torch.from_numpy(part.astype(np.int32)).to(device) for part in (train, test)]
    return TextData(name, *ids, tokens)


def _refuse_empty(train: str, test: str) -> None:
    for what, text in (("training", train), ("evaluation", test)):
        if not text:
            raise ValueError(f"the {what} text is empty")


def _read_encoded(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cached file; None if there is none, or if it was made from another text."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["digest"]) != digest:
                return None
            return {key: file[key] for key in ("train", "test", "bytes", "lengths")}
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # noqa: BLE001  a damaged file makes zipfile and NumPy raise many kinds
        raise Unavailable(f"{path} is damaged ({one_line(error)}): delete it, and it is made again") from None


# --- corpora ---------------------------------------------------------------------------------------------------------


def articles(text: str) -> list[str]:
    """WikiText's articles in the order of their titles, without blank lines at their ends.

    It is cut before the line in front of every line that has the form of a title. A few lines in tables have it too, so
    a few articles are cut in two; but the parts are the same in whatever order a copy has them.
    """
    lines, parts = text.split("\n"), [[]]
    for line, following in zip(lines, [*lines[1:], ""]):
        if _TITLE.match(following):
            parts.append([])
        parts[-1].append(line)
    return sorted(stripped for part in parts if (stripped := "\n".join(part).strip("\n ")))


def _articles_digest(path: Path) -> str:
    """SHA-256 of a WikiText file's articles in the order of ``articles``."""
    return hashlib.sha256("\0".join(articles(path.read_text(encoding="utf-8"))).encode()).hexdigest()


def _read_shakespeare(paths: dict[str, Path]) -> tuple[str, str]:
    return held_out(paths["input.txt"].read_bytes().decode())


def _read_wikitext(paths: dict[str, Path]) -> tuple[str, str]:
    train = "".join(f" \n {article} \n" for article in articles(paths["train.txt"].read_text(encoding="utf-8")))
    return train, paths["valid.txt"].read_bytes().decode()


def _read_pydoc(paths: dict[str, Path]) -> tuple[str, str]:
    from pydoc_data.topics import topics

    return held_out("\n\n".join(topics[name] for name in sorted(topics)))


CORPORA: dict[str, Corpus] = {
    "tinyshakespeare": Corpus(
        {"input.txt": (_SHAKESPEARE, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", sha256_of)},
        _read_shakespeare,
        train_characters=1_003_854,
        test_bytes=111_540,
    ),
    "wikitext2": Corpus(
        {
            # the articles' digest, not the file's: it is the same whatever order a copy has them in
            "train.txt": (
                f"{_WIKITEXT}train.txt", "d7148c9e38faf085145fd89bce39c11044b0be0355bfd3aab9af7f0634c7cbd9",
                _articles_digest,
            ),
            "valid.txt": (
                f"{_WIKITEXT}valid.txt", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", sha256_of,
            ),
        },
        _read_wikitext,
        train_characters=10_779_113,
        test_bytes=1_121_681,
    ),
    "pydoc": Corpus({}, _read_pydoc),
}  # fmt: skip
