"""Corpora: splits, tokens that give the text back, byte counts, caches that are whole, and plain errors."""

import hashlib

import numpy as np
import pytest

from mimetic.data import text
from mimetic.data.fetch import ChecksumError, Unavailable
from mimetic.data.text import articles, check_text, encode_bpe, encode_characters, held_out, load_text, on_device

SENTENCE = "The quick brown fox, naïve — and 12 lazy dogs… \n"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")


@pytest.fixture
def corpus(monkeypatch):
    """A corpus of our own, called toy."""

    def put(train=SENTENCE * 60, test=SENTENCE[5:] * 7):
        monkeypatch.setitem(text.CORPORA, "toy", text.Corpus({}, lambda _: (train, test)))
        return train, test

    return put


def test_held_out_is_the_last_tenth():
    assert held_out("a" * 90 + "b" * 10) == ("a" * 90, "b" * 10)
    train, test = held_out(SENTENCE * 3)
    assert train + test == SENTENCE * 3 and len(train) == int(0.9 * len(SENTENCE * 3))


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("char", 0), ("bpe", 256), ("bpe", 290)])
def test_tokens_give_the_text_and_its_bytes_back(corpus, tokenizer, vocab_size):
    train, test = corpus()
    data = load_text("toy", tokenizer=tokenizer, vocab_size=vocab_size)
    assert data.decode(data.train.tolist()) == train and data.decode(data.test.tolist()) == test
    for ids, part in ((data.train, train), (data.test, test)):
        assert int(data.token_bytes[ids.long()].sum()) == len(part.encode())
    assert data.vocab_size == (vocab_size or len(set(train + test)))
    if vocab_size == 256:  # bytes
        assert len(data.test) == len(test.encode())
    elif vocab_size:
        assert len(data.test) < 0.6 * len(test.encode())


def test_bpe_is_trained_on_the_training_text_only_and_the_same_every_time():
    first = encode_bpe(SENTENCE * 60, "zzzz qqqq " * 50, 290)
    again = encode_bpe(SENTENCE * 60, "zzzz qqqq " * 50, 290)
    assert first[2] == again[2] and np.array_equal(first[1], again[1])
    assert b"zz" not in first[2] and max(map(len, first[2])) > 2


def test_a_corpus_is_tokenised_once_and_again_when_the_text_is_another(corpus, monkeypatch, tmp_path):
    corpus()
    first = load_text("toy", tokenizer="bpe", vocab_size=280)
    calls = []
    monkeypatch.setattr(text, "encode_bpe", lambda *a: calls.append(a) or encode_bpe(*a))
    assert load_text("toy", tokenizer="bpe", vocab_size=280).tokens == first.tokens and not calls
    corpus(train="completely other words here and there " * 60)
    assert load_text("toy", tokenizer="bpe", vocab_size=280).tokens != first.tokens and len(calls) == 1
    (path,) = (tmp_path / "text").glob("*.npz")
    path.with_name("toy-bpe270.npz").write_bytes(path.read_bytes())  # of another size than its name says
    assert load_text("toy", tokenizer="bpe", vocab_size=270).vocab_size == 270 and len(calls) == 2
    path.with_name("toy-bpe270.npz").unlink()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Unavailable, match="toy-bpe280.npz is damaged.*delete it"):
        load_text("toy", tokenizer="bpe", vocab_size=280)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(Unavailable, match="toy-bpe280.npz is damaged.*delete it"):
        load_text("toy", tokenizer="bpe", vocab_size=280)


def test_validation_never_sees_the_evaluation_text(corpus):
    train, test = corpus(train=SENTENCE * 60, test="§" * 50)
    data = load_text("toy", validation=True)
    assert data.decode(data.train.tolist()) + data.decode(data.test.tolist()) == train and len(data.test) > 200


def test_pydoc_needs_nothing(tmp_path):
    data = load_text("pydoc")
    assert len(data.train) > 200_000 and len(data.test) == pytest.approx(len(data.train) / 9, rel=0.001)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pair", [("", "a"), ("a", "")])
@pytest.mark.parametrize("encode", [encode_characters, lambda *pair: encode_bpe(*pair, 256)])
def test_an_empty_corpus_is_refused(encode, pair):
    with pytest.raises(ValueError, match="text is empty"):
        encode(*pair)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shakespeare",), "dataset must be one of tinyshakespeare, wikitext2, pydoc, not 'shakespeare'"),
        (("pydoc", "word"), "tokenizer must be one of char, bpe, not 'word'"),
        (("pydoc", "char", 300), "use 0, or tokenizer='bpe'"),
        (("pydoc", "bpe", 255), "vocab_size must be from 256 .bytes. to 65536"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        check_text(*arguments)


def test_too_large_a_vocabulary_for_the_text(corpus):
    corpus()
    with pytest.raises(ValueError, match="vocab_size=5000: the training text has no more than"):
        load_text("toy", tokenizer="bpe", vocab_size=5000)


def test_what_cannot_be_had_says_what_to_do(tmp_path):
    with pytest.raises(
        Unavailable,
        match=r"input.txt: not in the cache, and MIMETIC_OFFLINE is set .*http.*. Put input.txt into .*tinyshakespeare",
    ):
        load_text("tinyshakespeare")
    folder = tmp_path / "text" / "tinyshakespeare"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text("not the plays")
    with pytest.raises(Unavailable):  # a foreign file is not taken for the corpus
        load_text("tinyshakespeare")


WIKI = (
    " \n = B title = \n \n Words of B . \n \n = = Section = = \n \n More . \n \n = A title = \n \n Key : Pld \n ="
    " Played , W = \n Wins . \n \n"
)


def test_wikitext_is_the_same_whatever_the_order_of_its_articles(tmp_path):
    parts = articles(WIKI)
    assert [part.split("\n")[0].strip() for part in parts] == ["= A title =", "= B title =", "Key : Pld"]
    assert "= = Section = = " in parts[1]
    # the parts in another order make the same file, as far as we are concerned
    other = "".join(f" \n {part} \n" for part in (parts[1], parts[0])) + " Key : Pld \n = Played , W = \n Wins . \n"
    assert articles(other) == parts and other != WIKI
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, content in zip(paths, (WIKI, other, WIKI.replace("Words", "Other words"))):
        path.write_text(content)
    assert len({text._articles_digest(path) for path in paths[:2]}) == 1
    assert text._articles_digest(paths[2]) != text._articles_digest(paths[0])


def test_a_download_is_checked_by_its_digest(tmp_path, monkeypatch):
    from mimetic.data.fetch import download

    monkeypatch.delenv("MIMETIC_OFFLINE")
    source = tmp_path / "there"
    source.write_bytes(b"b\na\n")

    def lines(path):
        return hashlib.sha256(b"".join(sorted(path.read_bytes().splitlines()))).hexdigest()

    expected = hashlib.sha256(b"ab").hexdigest()
    assert download(source.as_uri(), tmp_path / "here", expected, digest=lines).read_bytes() == b"b\na\n"
    with pytest.raises(ChecksumError, match="SHA-256 is"):
        download(source.as_uri(), tmp_path / "other", expected)


def test_on_device_counts_bytes():
    data = on_device("x", np.array([0, 1]), np.array([1, 1]), (b"a", "é".encode()), "cpu")
    assert data.token_bytes.tolist() == [1, 2] and data.decode([1, 0]) == "éa"
