"""Loading, subsets and augmentation: what comes out is what was asked for, batch or not."""

import functools
import hashlib
import http.server
import io
import pickle
import sys
import tarfile
import threading

import numpy as np
import pytest
import torch

from mimetic.commands import main
from mimetic.data import augment, images
from mimetic.data.augment import RANDAUGMENT_OPS, Augmentation, apply_ops, magnitudes, random_crop_flip
from mimetic.data.fetch import Unavailable
from mimetic.data.images import balanced_subset, fetch_images, load_images


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n, channels=3, size=32, seed=0):
    """Smooth images with noise: pure noise would hide a wrong interpolation of flat regions."""
    noise = torch.rand(n, channels, 5, 5, generator=generator(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear") * 200 + 20
    return (smooth + 20 * torch.rand(n, channels, size, size, generator=generator(seed + 1))).to(torch.uint8)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A made-up cifar10.npz in an empty cache folder: 100 + 20 images."""
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    monkeypatch.setattr(images, "_COUNTS", {"train": 100, "test": 20})
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array([f"class {c}" for c in range(10)])}
    for split, count in (("train", 100), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count, dtype=np.int64) % 10
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return arrays


def test_digits():
    data = load_images("digits")
    assert data.x_train.shape[1:] == (1, 8, 8) and len(data.classes) == 10 and data.classes[3] == "3"
    assert len(data.x_train) == 1437 and len(data.x_test) == 360
    assert data.x_train.dtype == torch.uint8 and data.x_train.max() == 255
    assert torch.bincount(data.y_test).min() >= 34
    z = data.normalise(data.x_train)
    assert abs(float(z.mean())) < 1e-4 and abs(float(z.std(correction=0)) - 1) < 1e-4
    every = torch.cat([data.x_train, data.x_test]).flatten(1).unique(dim=0)
    assert len(every) > 1790  # no image in both halves
    torch.testing.assert_close(load_images("digits").x_test, data.x_test)


def test_npz_is_read_as_written(small_cifar):
    data = load_images("cifar10")
    assert data.x_train.shape[1:] == (3, 32, 32) and data.classes[2] == "class 2"
    assert (data.x_train.permute(0, 2, 3, 1).numpy() == small_cifar["x_train"]).all()
    assert (data.y_test.numpy() == small_cifar["y_test"]).all()
    pixels = small_cifar["x_train"].reshape(-1, 3).astype(float)
    np.testing.assert_allclose(data.mean.flatten(), pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.sd.flatten(), pixels.std(0), rtol=1e-5)


def test_subset_is_balanced_fixed_and_nested(small_cifar):
    data = load_images("cifar10", train_size=30)
    assert (torch.bincount(data.y_train) == 3).all() and len(data.x_test) == 20
    labels = np.arange(1000) % 10
    small, large = balanced_subset(labels, 50), balanced_subset(labels, 200)
    assert set(small) < set(large) and len(set(large)) == 200
    assert (np.bincount(labels[large]) == 20).all()
    np.random.seed(1), torch.manual_seed(1)
    assert (balanced_subset(labels, 50) == small).all()
    # golden: another choice would silently make the stored records incomparable with new ones
    assert balanced_subset(np.arange(40) % 4, 8).tolist() == [2, 5, 6, 8, 11, 12, 13, 23]


@pytest.mark.parametrize(
    "name, size, words",
    [
        ("cifar", None, "one of cifar10, cifar100, digits"),
        ("cifar10", 15, "not the same number of each of the 10 classes"),
        ("cifar100", 99, "from 100 to 50000"),
        ("digits", 2000, "from 10 to 1437"),
    ],
)
def test_bad_requests(name, size, words):
    with pytest.raises(ValueError, match=words):
        load_images(name, train_size=size)


def test_without_data_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    with pytest.raises(Unavailable, match="MIMETIC_OFFLINE is set.*or choose digits"):
        load_images("cifar10")
    monkeypatch.delenv("MIMETIC_OFFLINE")
    monkeypatch.setitem(sys.modules, "torchvision", _broken_torchvision(OSError("no\nroute")))
    with pytest.raises(Unavailable, match=r"could not fetch cifar100 \(no route\).*or choose digits") as caught:
        load_images("cifar100")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def _broken_torchvision(error):
    class Raises:
        def __init__(self, *args, **kwargs):
            raise error

    class Fake:
        class datasets:
            CIFAR10 = CIFAR100 = Raises

    return Fake


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that serves tmp_path/www; gives its address."""
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    ) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_fetch_goes_through_torchvision_with_its_checksum(tmp_path, monkeypatch, server, name):
    """torchvision's own code on a made-up archive: with the right MD5 it is unpacked, with the wrong one refused."""
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMETIC_OFFLINE", raising=False)
    cifar = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    labels, classes = {"cifar10": ("labels", 10), "cifar100": ("fine_labels", 100)}[name]
    rng = np.random.default_rng(0)
    blobs, archive = {}, tmp_path / "www" / cifar.filename
    for member, _ in cifar.train_list + cifar.test_list:
        entry = {"data": rng.integers(0, 256, (2 * classes, 3072), dtype=np.uint8), labels: list(range(classes)) * 2}
        if name == "cifar100":
            entry["coarse_labels"] = [0] * 2 * classes  # which nobody must take for the labels
        blobs[member] = pickle.dumps(entry)
    blobs[cifar.meta["filename"]] = pickle.dumps({cifar.meta["key"]: [f"c{i}" for i in range(classes)]})
    with tarfile.open(archive, "w:gz") as tar:
        for member, blob in blobs.items():
            info = tarfile.TarInfo(f"{cifar.base_folder}/{member}")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    md5 = {member: hashlib.md5(blob).hexdigest() for member, blob in blobs.items()}
    monkeypatch.setattr(cifar, "url", f"{server}/{cifar.filename}")
    with pytest.raises(Unavailable, match=f"torchvision could not fetch {name}"):
        fetch_images(name)
    assert not list((tmp_path / "cache").glob("*"))  # nothing half-done is left
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar, "train_list", [[member, md5[member]] for member, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [[member, md5[member]] for member, _ in cifar.test_list])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5[cifar.meta["filename"]]})
    path = fetch_images(name)
    monkeypatch.setattr(images, "_COUNTS", {"train": 2 * classes * len(cifar.train_list), "test": 2 * classes})
    data = load_images(name)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [path.name] == [f"{name}.npz"]
    first = pickle.loads(blobs[cifar.train_list[0][0]])["data"][0].reshape(3, 32, 32)
    assert (data.x_train[0].numpy() == first).all() and data.classes[0] == "c0"
    assert data.y_test.tolist() == list(range(classes)) * 2
    # an archive that is given is unpacked without a network, a wrong one refused
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "given"))
    (tmp_path / "given").mkdir()
    given = tmp_path / "given" / cifar.filename
    given.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(Unavailable, match=f"is not the archive of {name}'s host"):
        fetch_images(name)
    given.write_bytes(archive.read_bytes())
    assert torch.equal(load_images(name).x_train, data.x_train) and given.is_file()


def test_damaged_file_is_refused_by_name(small_cifar, tmp_path):
    path = tmp_path / "cifar10.npz"
    whole = path.read_bytes()
    flag = whole.rindex(b"PK\x01\x02") + 10  # how a member of the archive is packed
    for damaged in (whole[:5000], whole[:flag] + b"\x63" + whole[flag + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(Unavailable, match="cifar10.npz is not a whole cifar10 file"):
            load_images("cifar10")
        assert main(["data", "fetch", "cifar10"]) == 2  # `data fetch` verifies what is there
    np.savez(path, **{**small_cifar, "y_train": np.zeros(100, dtype=np.int64)})
    with pytest.raises(Unavailable, match="cifar10.npz does not hold the train images"):
        load_images("cifar10")
    np.savez(path, **{**small_cifar, "y_train": small_cifar["y_train"] - 5})
    with pytest.raises(Unavailable, match="cifar10.npz does not hold the train images"):
        load_images("cifar10")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(Unavailable, match="cifar10.npz is not a whole cifar10 file"):
        load_images("cifar10")


# ----------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_crop_is_a_window_of_the_padded_image(mode):
    x = random_images(64)
    out = random_crop_flip(x, 4, mode, True, generator())
    seen = set()
    for before, after in zip(x, out, strict=True):
        pad_mode = {"reflect": "reflect", "zero": "constant"}[mode]
        padded = torch.nn.functional.pad(before[None].float(), [4] * 4, mode=pad_mode)
        windows = padded[0].unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).to(torch.uint8)  # 9 x 9 windows
        hits = [(int(dy), int(dx), m) for m in (0, 1)
                for dy, dx in ((windows.flip(-1) if m else windows) == after).flatten(2).all(2).nonzero()]  # fmt: skip
        assert len(hits) == 1
        seen |= set(hits)
    assert len(seen) > 40  # every image has its own shift and mirror
    assert {m for *_, m in seen} == {0, 1}
    assert {dy for dy, *_ in seen} == set(range(9)) == {dx for _, dx, _ in seen}


def test_augmentation_is_a_function_of_the_generator():
    policy = Augmentation(crop_padding=4, flip=True, randaugment_ops=2)
    x = random_images(16)
    torch.manual_seed(0)
    first = policy(x, generator(5))
    torch.manual_seed(1)
    assert torch.equal(first, policy(x, generator(5)))
    assert not torch.equal(first, policy(x, generator(6)))
    assert first.dtype == torch.uint8 and first.shape == x.shape
    assert torch.equal(Augmentation()(x, generator()), x)


def test_every_image_has_operations_of_its_own(monkeypatch):
    drawn = []

    def keep(x, op, sign, magnitude):
        drawn.append((op.tolist(), magnitude))
        return apply_ops(x, op, sign, magnitude)

    monkeypatch.setattr(augment, "apply_ops", keep)
    Augmentation(randaugment_ops=2, randaugment_magnitude=5)(random_images(400), generator())
    assert [magnitude for _, magnitude in drawn] == [5, 5] and drawn[0] != drawn[1]
    for ops, _ in drawn:
        counts = np.bincount(ops, minlength=len(RANDAUGMENT_OPS))
        assert len(counts) == len(RANDAUGMENT_OPS) and counts.min() > 10  # 29 are expected of each


def test_pixels_are_normalised_by_the_images_that_are_trained_on(small_cifar):
    part = load_images("cifar10", train_size=20)
    x = part.x_train.double()
    assert part.mean.flatten().tolist() == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-6)
    assert part.sd.flatten().tolist() == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), rel=1e-6)
    assert not torch.equal(part.mean, load_images("cifar10").mean)


@pytest.mark.parametrize("op", range(len(RANDAUGMENT_OPS)), ids=RANDAUGMENT_OPS)
@pytest.mark.parametrize("magnitude", [3, 9, 30])
def test_randaugment_op_equals_torchvision(op, magnitude):
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    from torchvision.transforms import InterpolationMode

    name, x = RANDAUGMENT_OPS[op], random_images(6, seed=op)
    x[0] = 77  # a flat image: nothing to stretch or equalise
    space = autoaugment.RandAugment()._augmentation_space(31, (32, 32))
    sizes, signed = space[name]
    for sign in (1.0, -1.0) if signed else (1.0,):
        size = float(sizes[magnitude]) * sign if sizes.ndim else 0.0
        want = torch.stack([autoaugment._apply_op(i, name, size, InterpolationMode.NEAREST, None) for i in x])
        got = apply_ops(x, torch.full((6,), op), torch.full((6,), sign), magnitude)
        wrong = (got != want).float().mean()
        assert wrong <= 0.002, f"{name}: {wrong:.1%} of the pixels differ"  # ties of rounding only
        assert (got.int() - want.int()).abs().median() == 0
    assert name == "Identity" or magnitude == 3 or not torch.equal(got[1:], x[1:])  # at 3 Posterize keeps all 8 bits


def test_mixed_batch_equals_one_by_one():
    n = len(RANDAUGMENT_OPS)
    x, ops, sign = random_images(n), torch.arange(n), torch.ones(n)
    together = apply_ops(x, ops, sign, 12)
    alone = torch.cat([apply_ops(x[i : i + 1], ops[i : i + 1], sign[:1], 12) for i in range(n)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)],
)
def test_compiled_randaugment_is_the_same(device, monkeypatch):
    """On a CPU without the compiler of its last step, which takes half a minute. On a GPU all of it: there a product
    and a sum are rounded once instead of twice, which moves a pixel at the edge of two grey values by one; farther, a
    pixel at the edge of two pixels."""
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    augment._compiled_ops.cache_clear()
    x, draw = random_images(256).to(device), (lambda: torch.Generator(device).manual_seed(5))
    plain, compiled = (
        Augmentation(crop_padding=4, flip=True, randaugment_ops=1, compiled=c)(x, draw()).int() for c in (False, True)
    )
    apart = (plain - compiled).abs()
    most, far = (0, 0) if device == "cpu" else (0.03, 0.002)
    assert (apart > 0).float().mean() <= most and (apart > 1).float().mean() <= far, torch.bincount(apart.flatten())[
        :9
    ].tolist()
    augment._compiled_ops.cache_clear()


def test_randaugment_that_cannot_be_compiled_is_said_and_done_without(monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    augment._compiled_ops.cache_clear()
    x = random_images(8)
    for seed in (5, 6):
        plain, compiled = (Augmentation(randaugment_ops=2, compiled=c)(x, generator(seed)) for c in (False, True))
        assert torch.equal(plain, compiled)
    augment._compiled_ops.cache_clear()
    assert capsys.readouterr().out == "RandAugment is not compiled (RuntimeError: no compiler here)\n"


def test_grey_images_and_magnitude_zero():
    x = random_images(14, channels=1, size=8)
    out = apply_ops(x, torch.arange(14), torch.ones(14), 9)
    assert out.shape == x.shape and torch.equal(out[7], x[7])  # grey has no colour to change
    assert magnitudes(0, 32, 32)["Rotate"] == 0
    harmless = [i for i, name in enumerate(RANDAUGMENT_OPS) if name not in ("Solarize", "AutoContrast", "Equalize")]
    still = apply_ops(x[harmless], torch.tensor(harmless), torch.ones(len(harmless)), 0)
    assert torch.equal(still, x[harmless])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(padding_mode="wrap"), "one of reflect, zero"),
        (dict(crop_padding=-1), "must not be negative"),
        (dict(randaugment_magnitude=31), "from 0 to 30"),
    ],
)
def test_bad_augmentation(change, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**change)


def test_validation_images_are_other_training_images():
    whole = load_images("digits")
    data = load_images("digits", train_size=400, validation=200)
    again = load_images("digits", train_size=400)
    assert torch.equal(data.x_train, again.x_train) and len(data.x_test) == 200
    assert data.y_test.bincount().tolist() == [20] * 10

    def images(x):
        return {bytes(i.numpy().tobytes()) for i in x}

    assert not images(data.x_test) & images(data.x_train)
    assert images(data.x_test) <= images(whole.x_train) and not images(data.x_test) & images(whole.x_test)
    for sizes in ((None, 10), (400, 15), (1400, 200)):
        with pytest.raises(ValueError, match="validation="):
            load_images("digits", train_size=sizes[0], validation=sizes[1])
