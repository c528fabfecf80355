"""envs.images: formats byte by byte, damaged files refused by name, and downloads that are whole or nothing."""

import gzip
import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import images as module
from envs.images import load_images

RECORDS = 20  # of a CIFAR-10 file here; the official ones have 10,000
COUNTS = [3, 1, 2, 1, 4, 1, 1, 1, 1, 1]  # of the classes in an MNIST file here
IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
CIFAR = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
REAL = os.environ.get("REWARM_CIFAR10")


@contextmanager
def refused(*words):
    """One ValueError of one line, with these words in it."""
    with pytest.raises(ValueError) as caught:
        yield
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)
    for word in words:
        assert str(word) in str(caught.value)


def digest(algorithm, data):
    return hashlib.new(algorithm, data).hexdigest()


def records(seed, n=RECORDS):
    """A CIFAR-10 file of noise, uint8 [n, 3073], labels 0 .. 9 in its first column."""
    table = np.random.default_rng(seed).integers(0, 256, (n, 3073), dtype=np.uint8)
    table[:, 0] %= 10
    return table


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same(first, second):
    return all(
        torch.equal(getattr(first, key), getattr(second, key)) for key in ("train_x", "train_y", "test_x", "test_y")
    )


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder as CIFAR-10's, small, with the digests of the files of which the official digests are known too."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for seed, name in enumerate(CIFAR):
        (folder / name).write_bytes(records(seed).tobytes())
    monkeypatch.setattr(module, "CIFAR10_RECORDS", RECORDS)
    known = {name: digest("sha256", (folder / name).read_bytes()) for name in module.CIFAR10_SHA256}
    monkeypatch.setattr(module, "CIFAR10_SHA256", known)
    return folder


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A folder of gzipped idx files as MNIST's, small; Fashion-MNIST is of the same size with other class counts."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in IDX:
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), COUNTS))
        pixels = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        data = gzip.compress(idx(pixels if "images" in name else labels), mtime=0)
        (folder / f"{name}.gz").write_bytes(data)
        monkeypatch.setitem(module.MNIST_MD5, ("mnist", name), digest("md5", data))
    for part in ("train", "t10k"):
        monkeypatch.setitem(module.MNIST_COUNTS, ("mnist", part), COUNTS)
        monkeypatch.setitem(module.MNIST_COUNTS, ("fashion-mnist", part), COUNTS[::-1])
    return folder


def unpack(folder):
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes, headers) on this machine and counts the requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.url = {}, Counter(), f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked[self.path[1:]] += 1
        self.server.accepted = self.headers["Accept-Encoding"]
        body, headers = self.server.files.get(self.path[1:], (None, {}))
        self.send_response(404 if body is None else 200)
        for key, value in {"Content-Length": str(len(body or b"")), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def online_mnist(server, mnist, monkeypatch):
    server.files = {path.name: (path.read_bytes(), {}) for path in mnist.iterdir()}
    monkeypatch.setitem(module.MNIST_URLS, "mnist", server.url)
    return server


def archive(members):
    """A .tar.gz of (name, bytes) pairs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def publish(server, monkeypatch, data):
    """Put an archive where CIFAR-10's is looked for."""
    server.files["cifar-10-binary.tar.gz"] = (data, {})
    monkeypatch.setattr(module, "CIFAR10_URL", f"{server.url}cifar-10-binary.tar.gz")
    monkeypatch.setattr(module, "CIFAR10_MD5", digest("md5", data))


@pytest.fixture
def online_cifar(server, cifar, monkeypatch):
    publish(server, monkeypatch, archive([(f"{cifar.name}/{name}", (cifar / name).read_bytes()) for name in CIFAR]))
    return server


@pytest.fixture
def no_download(monkeypatch):
    """Importing what downloads is an error."""
    for name in ("pooch", "tqdm"):
        monkeypatch.setitem(sys.modules, name, None)


# digits


def test_importing_the_module_imports_nothing_that_downloads(no_download, monkeypatch):
    spec = importlib.util.spec_from_file_location("images_again", module.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "images_again", again)
    spec.loader.exec_module(again)
    assert again.NAMES == module.NAMES


def test_digits_are_what_their_readme_says(no_download):
    data = load_images("digits")
    assert data.train_x.shape == (1438, 1, 8, 8) and data.test_x.shape == (359, 1, 8, 8)
    assert data.train_x.dtype == data.test_x.dtype == torch.uint8
    assert data.train_y.dtype == data.test_y.dtype == torch.int64
    assert (data.train_x.min(), data.train_x.max(), data.test_x.max()) == (0, 16, 16)
    assert torch.bincount(data.train_y).tolist() == [151, 147, 141, 154, 151, 142, 137, 140, 136, 139]
    assert torch.bincount(data.test_y).tolist() == [27, 35, 36, 29, 30, 40, 44, 39, 38, 41]
    assert (data.name, data.classes) == ("digits", 10)
    assert "1,438 images for training and 359 for testing" in data.source
    assert module.DIGITS.stat().st_size < 60_000


def test_the_split_of_digits_is_the_documented_draw():
    with np.load(module.DIGITS) as arrays:
        images, labels, test = (arrays[key] for key in ("images", "labels", "test"))
    assert np.array_equal(np.flatnonzero(test), np.sort(np.random.RandomState(0).permutation(1797)[:359]))
    assert images[0, :2].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]  # the UCI file's first
    assert labels[:10].tolist() == list(range(10))
    data = load_images("digits")
    assert np.array_equal(data.test_x[:, 0], images[test]) and np.array_equal(data.train_x[:, 0], images[~test])
    assert np.array_equal(data.test_y, labels[test]) and np.array_equal(data.train_y, labels[~test])


def test_tensors_can_be_changed_by_the_caller():
    first = load_images("digits")
    first.train_x.zero_()
    assert load_images("digits").train_x.max() == 16


def test_an_altered_file_of_digits_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "digits.npz"
    path.write_bytes(module.DIGITS.read_bytes()[:-1])
    monkeypatch.setattr(module, "DIGITS", path)
    with refused(path, "altered"):
        load_images("digits")


# arguments


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("cifar-10", {}, ["'cifar-10'", "Did you mean 'cifar10'?", "fashion-mnist"]),
        ("MNIST", {}, ["Did you mean 'mnist'?"]),
        ("imagenet", {}, ["imagenet", "digits, cifar10"]),
        ("mnist", {"batches": (1,)}, ["batches", "mnist", "drop it"]),
        ("digits", {"batches": ()}, ["batches", "digits"]),
        ("digits", {"folder": "x"}, ["digits", "drop"]),
        ("digits", {"cache": "x"}, ["digits", "drop"]),
        ("mnist", {"folder": "x", "cache": "y"}, ["cache", "folder", "drop"]),
        ("cifar10", {"batches": ()}, ["batches", "()"]),
        ("cifar10", {"batches": (1, 1)}, ["batches", "(1, 1)"]),
        ("cifar10", {"batches": (0, 1)}, ["batches", "1 .. 5"]),
        ("cifar10", {"batches": (6,)}, ["batches", "(6,)"]),
        ("cifar10", {"batches": "12"}, ["batches"]),
    ],
)
def test_contradictory_arguments_raise(no_download, name, arguments, words):
    with refused(*words):
        load_images(name, **arguments)


def test_pinned_checksums_and_counts_fit_the_published_facts():
    assert module.CIFAR10_RECORDS * 3073 == 30_730_000
    assert set(module.MNIST_MD5) == {(name, file) for name in ("mnist", "fashion-mnist") for file in IDX}
    assert len(set(module.MNIST_MD5.values())) == 8 and {len(md5) for md5 in module.MNIST_MD5.values()} == {32}
    for (_, part), counts in module.MNIST_COUNTS.items():
        assert len(counts) == 10 and sum(counts) == {"train": 60_000, "t10k": 10_000}[part]


# CIFAR-10


def test_cifar_records_become_planes_in_the_requested_order(no_download, cifar):
    data = load_images("cifar10", folder=cifar, batches=(3, 1))
    expected = np.concatenate([records(2), records(0)])
    assert np.array_equal(data.train_x, expected[:, 1:].reshape(-1, 3, 32, 32))
    assert np.array_equal(data.train_y, expected[:, 0]) and data.train_y.dtype == torch.int64
    assert data.train_x[5, 2, 30, 7] == expected[5, 1 + 2 * 1024 + 30 * 32 + 7]  # blue is the third plane
    assert np.array_equal(data.test_y, records(5)[:, 0]) and data.test_x.shape == (RECORDS, 3, 32, 32)
    assert data.source == (
        "CIFAR-10, official training batches 3, 1 of 5 and the test batch: 40 images for training and 20 for testing"
    )


def test_all_five_batches_by_default(cifar):
    data = load_images("cifar10", folder=str(cifar))
    assert np.array_equal(data.train_y, np.concatenate([records(seed)[:, 0] for seed in range(5)]))
    assert "batches 1, 2, 3, 4, 5 of 5" in data.source
    assert "training batch 2 of 5 and" in load_images("cifar10", folder=cifar, batches=[2]).source


def replace_byte(position, value):
    return lambda data: data[:position] + bytes([value]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("data_batch_2.bin", lambda data: data[:-1], ["61,459 bytes instead of 61,460"]),
        ("data_batch_4.bin", lambda data: data[:3073], ["3,073 bytes instead"]),
        ("data_batch_3.bin", lambda data: data + b"x", ["61,461 bytes instead"]),
        ("test_batch.bin", lambda data: b"", ["0 bytes instead"]),
        ("data_batch_5.bin", replace_byte(3073 * 7, 10), ["image 7", "label 10"]),
        ("data_batch_1.bin", replace_byte(0, 255), ["image 0", "label 255"]),
        ("data_batch_1.bin", lambda data: data[:-1] + bytes([data[-1] ^ 1]), ["altered", "sha256"]),
        ("test_batch.bin", lambda data: data[3073:] + data[:3073], ["altered", "sha256"]),
    ],
)
def test_a_damaged_cifar_file_is_refused_by_name(cifar, file, damage, words):
    path = cifar / file
    path.write_bytes(damage(path.read_bytes()))
    with refused(path, *words, "replace it by the official file"):
        load_images("cifar10", folder=cifar)


def test_only_batches_without_a_known_digest_may_differ(cifar):
    assert set(module.CIFAR10_SHA256) == {"data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"}
    (cifar / "data_batch_3.bin").write_bytes(records(99).tobytes())
    assert np.array_equal(load_images("cifar10", folder=cifar, batches=[3]).train_y, records(99)[:, 0])


def test_missing_and_present_batches_are_named(cifar):
    for i in (2, 4):
        (cifar / f"data_batch_{i}.bin").unlink()
    with refused(cifar, "no file data_batch_2.bin, data_batch_4.bin;", "batches 1 3 5"):
        load_images("cifar10", folder=cifar)
    assert len(load_images("cifar10", folder=cifar, batches=(1, 3, 5)).train_y) == 3 * RECORDS
    (cifar / "test_batch.bin").unlink()
    with refused("no file test_batch.bin;", "give the unpacked folder cifar-10-batches-bin"):
        load_images("cifar10", folder=cifar, batches=(1,))


@pytest.mark.parametrize("folder", ["", "nowhere", "cifar-10-batches-bin/test_batch.bin"])
def test_a_wrong_folder_is_refused(cifar, folder):
    with refused(cifar.parent / folder, "data_batch_1.bin", "give the unpacked folder cifar-10-batches-bin"):
        load_images("cifar10", folder=cifar.parent / folder)


def test_an_unreadable_file_is_refused(cifar, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    with refused(cifar / "data_batch_1.bin", "(Permission denied)"):
        load_images("cifar10", folder=cifar)


@pytest.mark.skipif(not REAL, reason="REWARM_CIFAR10 names no folder with the official batches 1, 2 and test_batch")
def test_the_official_cifar_files_are_as_published():
    data = load_images("cifar10", folder=REAL, batches=(1, 2))
    assert data.train_x.shape == (20_000, 3, 32, 32) and data.test_x.shape == (10_000, 3, 32, 32)
    assert torch.bincount(data.test_y).tolist() == [1000] * 10
    assert data.train_y[:5].tolist() == [6, 9, 9, 4, 1] and data.test_y[:5].tolist() == [3, 8, 8, 0, 6]
    assert data.train_x[0, :, 0, 0].tolist() == [59, 62, 63]  # the well-known frog
    # Published means of all 50,000 images; 20,000 of them come this near.
    assert (data.train_x.double().mean((0, 2, 3)) / 255).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.002)


# MNIST and Fashion-MNIST


def test_idx_files_are_read_gzipped_or_unpacked(no_download, mnist):
    raw = {name: gzip.decompress((mnist / f"{name}.gz").read_bytes()) for name in IDX}
    first = load_images("mnist", folder=mnist)
    n = sum(COUNTS)
    assert first.train_x.shape == first.test_x.shape == (n, 1, 28, 28) and first.train_x.dtype == torch.uint8
    assert first.train_x.numpy().tobytes() == raw["train-images-idx3-ubyte"][16:]
    assert first.train_y.tolist() == list(raw["train-labels-idx1-ubyte"][8:])
    assert first.test_x.numpy().tobytes() == raw["t10k-images-idx3-ubyte"][16:]
    assert first.test_y.tolist() == list(raw["t10k-labels-idx1-ubyte"][8:])
    assert first.source == f"mnist, the four idx files: {n} images for training and {n} for testing"
    unpack(mnist)
    assert same(first, load_images("mnist", folder=str(mnist)))


def test_the_gzipped_file_is_preferred_to_the_unpacked_one(mnist):
    (mnist / IDX[0]).write_bytes(b"nothing of the kind")
    load_images("mnist", folder=mnist)
    (mnist / f"{IDX[0]}.gz").unlink()
    with refused(mnist / IDX[0], "magic"):
        load_images("mnist", folder=mnist)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (IDX[0], replace_byte(3, 1), ["begins with 00 00 08 01", "00 00 08 03"]),
        (IDX[1], replace_byte(2, 9), ["begins with 00 00 09 01"]),
        (IDX[2], lambda data: b"", ["magic number"]),
        (IDX[0], replace_byte(11, 27), ["shape (16, 27, 28) instead of (16, 28, 28)"]),
        (IDX[1], lambda data: data[:6], ["shape"]),
        (IDX[0], lambda data: data[:-1], ["12,559 bytes instead of 12,560"]),
        (IDX[3], lambda data: data + b"\0", ["25 bytes instead of 24"]),
        (IDX[3], replace_byte(8, 10), ["image 0", "label 10"]),
        (IDX[1], lambda data: data[:8] + bytes(16), ["not of mnist", "counts"]),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(mnist, file, damage, words):
    unpack(mnist)
    path = mnist / file
    path.write_bytes(damage(path.read_bytes()))
    with refused(path, *words, "replace it by the official file"):
        load_images("mnist", folder=mnist)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-9], ["not a whole gzip file", "end-of-stream"]),
        (lambda data: b"<html>" + data, ["not a whole gzip file", "Not a gzipped file"]),
        (lambda data: data[:12] + bytes(8) + data[20:], ["not a whole gzip file"]),
        (lambda data: replace_byte(4, 1)(data), ["altered", "md5"]),  # another time stamp: the same content
        (lambda data: gzip.compress(replace_byte(100, 0)(gzip.decompress(data))), ["altered", "md5"]),
    ],
)
def test_a_damaged_gzip_file_is_refused_by_name(mnist, damage, words):
    path = mnist / f"{IDX[2]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with refused(path, *words):
        load_images("mnist", folder=mnist)


def test_the_files_of_the_other_mnist_are_refused(mnist):
    with refused(mnist, "altered"):
        load_images("fashion-mnist", folder=mnist)
    unpack(mnist)
    with refused(mnist / IDX[1], "not of fashion-mnist"):
        load_images("fashion-mnist", folder=mnist)


def test_a_missing_idx_file_is_named(mnist):
    (mnist / f"{IDX[3]}.gz").unlink()
    with refused(mnist, f"neither {IDX[3]}.gz nor {IDX[3]}"):
        load_images("mnist", folder=mnist)


# downloads


def test_a_file_is_downloaded_once_and_cached(online_mnist, mnist, tmp_path, monkeypatch):
    first = load_images("mnist", cache=tmp_path / "cache")
    assert same(first, load_images("mnist", folder=mnist))
    assert files_of(tmp_path / "cache") == sorted(f"mnist/{name}.gz" for name in IDX)
    assert online_mnist.asked == {f"{name}.gz": 1 for name in IDX}
    monkeypatch.setitem(sys.modules, "pooch", None)  # nothing to download: it is not even imported
    again = load_images("mnist", cache=str(tmp_path / "cache"))
    assert same(first, again) and again.source == first.source
    assert online_mnist.asked.total() == 4


def test_the_default_cache_is_in_the_user_s_home(online_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_images("mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_images("mnist")
    assert files_of(tmp_path / "xdg" / "rewarm") == files_of(tmp_path / "home" / ".cache" / "rewarm")
    assert online_mnist.asked.total() == 8


def test_without_a_home_directory_the_cache_must_be_given(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with refused("home directory", "cache"):
        load_images("mnist")


def test_a_wrong_checksum_is_refused_and_leaves_no_file(online_mnist, tmp_path):
    online_mnist.files[f"{IDX[0]}.gz"] = (b"<html>please log in</html>", {})
    with refused(online_mnist.url, IDX[0], "does not match", "give their folder"):
        load_images("mnist", cache=tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_an_interrupted_download_is_not_used(online_mnist, tmp_path):
    name = f"{IDX[0]}.gz"
    whole, _ = online_mnist.files[name]
    online_mnist.files[name] = (whole[:100], {"Content-Length": str(len(whole))})
    with refused(online_mnist.url, name, "100 bytes read"):
        load_images("mnist", cache=tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []
    online_mnist.files[name] = (whole, {})
    load_images("mnist", cache=tmp_path / "cache")
    assert online_mnist.asked[name] == 2


def test_a_damaged_file_in_the_cache_is_downloaded_again(online_mnist, tmp_path):
    load_images("mnist", cache=tmp_path)
    path = tmp_path / "mnist" / f"{IDX[1]}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    load_images("mnist", cache=tmp_path)
    assert path.read_bytes() == whole and online_mnist.asked.total() == 5


def test_bytes_are_stored_as_they_are_on_the_server(online_mnist, tmp_path):
    """A server may call a gzipped file an encoding of the unpacked one, which requests would then decode."""
    for name, (body, _) in list(online_mnist.files.items()):
        online_mnist.files[name] = (body, {"Content-Encoding": "gzip"})
    load_images("mnist", cache=tmp_path)
    assert online_mnist.accepted == "identity"  # no encoding is requested


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_is_shown_only_on_a_terminal(online_cifar, tmp_path, monkeypatch, terminal):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    load_images("cifar10", cache=tmp_path / "cache")
    assert ("100%|" in screen.getvalue()) == terminal


def test_the_innermost_error_message_is_given_in_one_line():
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        assert module._reason(error) == "No space left on device"
    assert module._reason(ValueError("two\n  lines")) == "two lines"
    assert module._reason(EOFError()) == "EOFError"


def test_a_server_that_refuses_or_does_not_answer_gives_one_line(online_mnist, tmp_path, monkeypatch):
    online_mnist.files.clear()
    with refused(online_mnist.url, "404", "give their folder"):
        load_images("mnist", cache=tmp_path)
    monkeypatch.setitem(module.MNIST_URLS, "mnist", "http://127.0.0.1:1/")  # where nobody listens
    with refused("http://127.0.0.1:1/", "(Connection refused)"):
        load_images("mnist", cache=tmp_path)
    with refused("(Not a directory)"):
        load_images("mnist", cache=__file__)
    assert files_of(tmp_path / "mnist") == []


def test_the_cifar_archive_is_downloaded_and_unpacked_once(online_cifar, cifar, tmp_path):
    cache = tmp_path / "cache"
    first = load_images("cifar10", cache=cache)
    assert same(first, load_images("cifar10", folder=cifar))
    assert {path.name: path.read_bytes() for path in (cache / "cifar10" / cifar.name).iterdir()} == {
        name: (cifar / name).read_bytes() for name in CIFAR
    }
    (cache / "cifar10" / "cifar-10-binary.tar.gz").unlink()  # not needed any more
    assert same(first, load_images("cifar10", cache=cache))
    assert online_cifar.asked == {"cifar-10-binary.tar.gz": 1}


def test_a_damaged_unpacked_file_is_refused_and_unpacked_again_when_deleted(online_cifar, cifar, tmp_path):
    cache = tmp_path / "cache"
    first = load_images("cifar10", cache=cache, batches=(4,))
    path = cache / "cifar10" / cifar.name / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with refused(path, "61,459 bytes", "delete it if it is in the cache"):
        load_images("cifar10", cache=cache, batches=(4,))
    path.unlink()
    assert same(first, load_images("cifar10", cache=cache, batches=(4,)))
    assert online_cifar.asked.total() == 1  # out of the archive that was kept


def test_an_archive_cannot_choose_where_its_files_are_written(server, cifar, tmp_path, monkeypatch):
    evil = [("../evil", b"x"), ("/evil", b"x"), (f"{cifar.name}/../../evil", b"x"), (f"{cifar.name}/readme.html", b"x")]
    good = [(f"{cifar.name}/{name}", (cifar / name).read_bytes()) for name in CIFAR]
    publish(server, monkeypatch, archive(evil + good))
    cache = tmp_path / "deep" / "cache"
    load_images("cifar10", cache=cache)
    unpacked = [f"cache/cifar10/{cifar.name}/{name}" for name in CIFAR]
    assert files_of(tmp_path / "deep") == sorted(["cache/cifar10/cifar-10-binary.tar.gz", *unpacked])


@pytest.mark.parametrize(
    "data",
    [b"not an archive", archive([("cifar-10-batches-bin/test_batch.bin", bytes(99))])[:-30]],
    ids=["not an archive", "cut off"],  # the archive holds the time, and every process must give its test one name
)
def test_an_archive_that_cannot_be_read_is_refused(server, cifar, tmp_path, monkeypatch, data):
    publish(server, monkeypatch, data)
    with refused("cifar-10-binary.tar.gz cannot be unpacked"):
        load_images("cifar10", cache=tmp_path / "cache")
    assert files_of(tmp_path / "cache") == ["cifar10/cifar-10-binary.tar.gz"]


def test_an_archive_without_a_file_is_refused(server, cifar, tmp_path, monkeypatch):
    publish(server, monkeypatch, archive([("cifar-10-batches-py/data_batch_1", b"x")]))
    with refused("no file data_batch_1.bin"):
        load_images("cifar10", cache=tmp_path / "cache")


def test_a_full_disk_leaves_no_partial_file(online_cifar, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith("data_batch_3.bin"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", full)
    with refused("cannot be unpacked (No space left on device)"):
        load_images("cifar10", cache=tmp_path / "cache")
    there = files_of(tmp_path / "cache" / "cifar10" / "cifar-10-batches-bin")
    assert there == ["data_batch_1.bin", "data_batch_2.bin"]
    monkeypatch.undo()
