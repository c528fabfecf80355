"""Images to classify, as tensors: digits (in this package), CIFAR-10, MNIST and Fashion-MNIST.

Every file is checked: one that is truncated, altered or not what its name says is refused in one line that names it.
Downloads are kept in a cache; `pooch` downloads them and is imported only for that.

Sources:
    digits: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, doi:10.24432/C50P49, CC BY 4.0; `envs/data/README.md` says what was changed.
    cifar10: A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; the binary version.
    mnist: Y. LeCun, C. Cortes and C. Burges, The MNIST Database of Handwritten Digits.
    fashion-mnist: H. Xiao, K. Rasul and R. Vollgraf (2017), arXiv:1708.07747, MIT.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import math
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAMES = ("digits", "cifar10", "mnist", "fashion-mnist")
"""The data sets that `load_images` knows, of ten classes each."""

DIGITS = Path(__file__).with_name("data") / "digits.npz"
DIGITS_SHA256 = "ec59f7c6705cc9271d3c3f1085e50aeb21426eabcb0156c3e4667096dd2afe9e"

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_ROOT = "cifar-10-batches-bin"
CIFAR10_RECORDS = 10_000
"""Images in each file of CIFAR-10."""

# Computed from official files. Those of batches 3-5 are not known here: for these only the size is checked, that every
# label lies in 0 .. 9, and, before a downloaded archive is unpacked, the archive's MD5.
CIFAR10_SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}

MNIST_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# Published checksums of the gzipped files. MD5 detects accidents, not an attack.
MNIST_MD5 = {
    ("mnist", "train-images-idx3-ubyte"): "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ("mnist", "train-labels-idx1-ubyte"): "d53e105ee54ea40749a09fcbcd1e9432",
    ("mnist", "t10k-images-idx3-ubyte"): "9fb629c4189551a2d022fa330f9573f3",
    ("mnist", "t10k-labels-idx1-ubyte"): "ec29112dd5afa0611ce80d1b7f02629c",
    ("fashion-mnist", "train-images-idx3-ubyte"): "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ("fashion-mnist", "train-labels-idx1-ubyte"): "25c81989df183df01b3e8a0aad5dffbe",
    ("fashion-mnist", "t10k-images-idx3-ubyte"): "bef4ecab320f06d8554ea6380940ec79",
    ("fashion-mnist", "t10k-labels-idx1-ubyte"): "bb300cfdad3c16e7a12a480ee83cd310",
}
# Images of each class: they distinguish the unpacked files of the two data sets, which have the same names.
MNIST_COUNTS = {
    ("mnist", "train"): [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    ("mnist", "t10k"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ("fashion-mnist", "train"): [6000] * 10,
    ("fashion-mnist", "t10k"): [1000] * 10,
}

_Bytes: TypeAlias = NDArray[np.uint8]
_Part: TypeAlias = tuple[_Bytes, _Bytes]  # images [N, C, H, W], labels [N]


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory. Pixels are as stored: 0 .. 16 in digits, 0 .. 255 in the others.

    Attributes:
        train_x: uint8 [N, C, H, W]; C, H, W is 1, 8, 8 for digits, 3, 32, 32 for cifar10, 1, 28, 28 for the others.
        train_y: int64 [N], the class of each image, 0 .. classes - 1.
        test_x: uint8 [M, C, H, W].
        test_y: int64 [M].
        classes: number of classes.
        name: the name given to `load_images`.
        source: a sentence that says what was read; without a path, so it is the same on every machine.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    name: str
    source: str


def load_images(
    name: str,
    *,
    folder: str | Path | None = None,
    cache: str | Path | None = None,
    batches: Sequence[int] | None = None,
) -> Images:
    """Read a whole data set, in the order of its files.

    Args:
        name: digits (included in this package, no other argument), cifar10, mnist or fashion-mnist.
        folder: has the official files; nothing is downloaded. cifar10: `cifar-10-batches-bin`, unpacked. The MNISTs:
            the four idx files, gzipped (their MD5 is compared with the published one) or unpacked (only sizes and class
            counts are checked); a gzipped file is preferred.
        cache: without a folder, downloads are kept here, in one folder per data set; by default in `rewarm` below
            $XDG_CACHE_HOME or ~/.cache. cifar10 takes 354 MB, mnist 12 MB, fashion-mnist 31 MB.
        batches: which of the five training batches of cifar10, in this order; all of them by default.
    Raises:
        ValueError: an unknown name, an argument that has no effect, or a file that is missing, unreadable, truncated,
            altered, not the official one or cannot be downloaded. The message is one line.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown data set {name!r}.{hint} There are {', '.join(NAMES)}")
    if batches is not None and name != "cifar10":
        raise ValueError(f"batches has no effect on {name}, only cifar10 comes in batches; drop it")
    if name == "digits" and (folder is not None or cache is not None):
        raise ValueError("folder and cache have no effect on digits, which is included in this package; drop them")
    if folder is not None and cache is not None:
        raise ValueError("cache has no effect with a folder, which is read without a download; drop one of them")
    if name == "digits":
        return _digits()
    place = Path(folder) if folder is not None else _cache_folder(cache, name)
    if name == "cifar10":
        return _cifar10(place, folder is None, batches)
    return _mnist(name, place, folder is None)


def _digits() -> Images:
    data = _read(DIGITS)
    _check_digest(DIGITS, data, "sha256", DIGITS_SHA256)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        x, y, test = arrays["images"][:, None], arrays["labels"], arrays["test"]  # [1797, 1, 8, 8], [1797], [1797]
    what = f"UCI's Optical Recognition of Handwritten Digits, the {len(y):,} images that were its test set, split again"
    return _images("digits", what, (x[~test], y[~test]), (x[test], y[test]))


def _cifar10(place: Path, download: bool, batches: Sequence[int] | None) -> Images:
    numbers = (1, 2, 3, 4, 5) if batches is None else tuple(batches)
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"batches must be at least one of 1 .. 5, without repetitions, got {numbers}")
    if download:
        place = _unpacked_cifar10(place)
    files = [f"data_batch_{int(number)}.bin" for number in numbers]
    missing = [file for file in (*files, "test_batch.bin") if not os.path.isfile(place / file)]
    if missing:
        present = tuple(i for i in range(1, 6) if os.path.isfile(place / f"data_batch_{i}.bin"))
        remedy = f"give the unpacked folder {CIFAR10_ROOT}, or none to download it"
        if present and "test_batch.bin" not in missing:
            remedy = f"ask for batches {' '.join(map(str, present))}, which are present"
        raise ValueError(f"{place} has no file {', '.join(missing)}; {remedy}")
    parts = [_read_batch(place / file) for file in files]
    train = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    which = f"batch{'es' if len(numbers) > 1 else ''} {', '.join(str(number) for number in numbers)} of 5"
    what = f"CIFAR-10, official training {which} and the test batch"
    return _images("cifar10", what, train, _read_batch(place / "test_batch.bin"))


def _read_batch(path: Path) -> _Part:
    """Read records of 3,073 bytes: a label, then the red, the green and the blue plane, row by row."""
    data = _read(path)
    if len(data) != CIFAR10_RECORDS * 3073:
        raise _refusal(path, f"has {len(data):,} bytes instead of {CIFAR10_RECORDS * 3073:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    _check_labels(path, records[:, 0])
    if path.name in CIFAR10_SHA256:
        _check_digest(path, data, "sha256", CIFAR10_SHA256[path.name])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _unpacked_cifar10(cache: Path) -> Path:
    """Download and unpack the archive, unless its files exist; return their folder.

    Only the six files are written, under their known names: an archive cannot choose a path.
    """
    files = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
    missing = {f"{CIFAR10_ROOT}/{file}" for file in files if not os.path.isfile(cache / CIFAR10_ROOT / file)}
    if not missing:
        return cache / CIFAR10_ROOT
    archive = _download(CIFAR10_URL, CIFAR10_MD5, cache)
    try:
        (cache / CIFAR10_ROOT).mkdir(exist_ok=True)
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.name in missing and (stream := tar.extractfile(member)) is not None:
                    _write_whole(cache / member.name, stream.read())
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(
            f"{archive} cannot be unpacked ({_reason(error)}); free some disk space, or delete it to download it again"
        ) from error
    return cache / CIFAR10_ROOT


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that has its name only when it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _mnist(name: str, place: Path, download: bool) -> Images:
    parts = []
    for part in ("train", "t10k"):
        counts = MNIST_COUNTS[name, part]
        _, x = _read_idx(name, f"{part}-images-idx3-ubyte", (sum(counts), 28, 28), place, download)
        path, y = _read_idx(name, f"{part}-labels-idx1-ubyte", (sum(counts),), place, download)
        _check_labels(path, y)
        if np.bincount(y, minlength=10).tolist() != counts:
            raise _refusal(path, f"is not of {name}: its classes have other counts")
        parts.append((x[:, None], y))
    return _images(name, f"{name}, the four idx files", *parts)


def _read_idx(name: str, file: str, shape: tuple[int, ...], place: Path, download: bool) -> tuple[Path, _Bytes]:
    """Read an idx file, gzipped or not, that must hold bytes of this shape; return its path and content."""
    path = place / f"{file}.gz"
    if download:
        _download(f"{MNIST_URLS[name]}{file}.gz", MNIST_MD5[name, file], place)
    elif not os.path.isfile(path):
        path = place / file
    if not os.path.isfile(path):
        raise ValueError(f"{place} has neither {file}.gz nor {file}; give the folder of {name}, or none to download it")
    data = _read(path)
    if path.suffix != ".gz":
        return path, _parse_idx(path, data, shape)
    try:
        unpacked = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise _refusal(path, f"is not a whole gzip file ({_reason(error)})") from error
    _check_digest(path, data, "md5", MNIST_MD5[name, file])
    return path, _parse_idx(path, unpacked, shape)


def _parse_idx(path: Path, data: bytes, shape: tuple[int, ...]) -> _Bytes:
    """Parse an idx file: 0, 0, 8 (bytes), number of dimensions, each as a big-endian uint32, then the bytes."""
    if data[:4] != bytes((0, 0, 8, len(shape))):
        raise _refusal(path, f"begins with {data[:4].hex(' ')}, not with the magic number 00 00 08 {len(shape):02x}")
    start = 4 + 4 * len(shape)
    dimensions = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if dimensions != shape:
        raise _refusal(path, f"announces bytes of shape {dimensions} instead of {shape}")
    if len(data) != start + math.prod(shape):
        raise _refusal(path, f"has {len(data):,} bytes instead of {start + math.prod(shape):,} (unpacked)")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _images(name: str, what: str, train: _Part, test: _Part) -> Images:
    """Make tensors of images and labels; views of a file's bytes are copied."""
    train_x, test_x = (torch.from_numpy(np.require(x, requirements=["C", "W"])) for x, _ in (train, test))
    train_y, test_y = (torch.from_numpy(y.astype(np.int64)) for _, y in (train, test))
    source = f"{what}: {len(train_y):,} images for training and {len(test_y):,} for testing"
    return Images(train_x, train_y, test_x, test_y, classes=10, name=name, source=source)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refusal(path, f"cannot be read ({_reason(error)})") from error


def _check_labels(path: Path, labels: _Bytes) -> None:
    wrong = np.flatnonzero(labels > 9)
    if len(wrong):
        raise _refusal(path, f"gives image {wrong[0]} the label {labels[wrong[0]]}, outside 0 .. 9")


def _check_digest(path: Path, data: bytes, algorithm: str, expected: str) -> None:
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise _refusal(path, f"has been altered: its {algorithm} is {found} instead of {expected}")


def _refusal(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}; replace it by the official file, or delete it if it is in the cache")


def _cache_folder(cache: str | Path | None, name: str) -> Path:
    if cache is not None:
        return Path(cache, name)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rewarm", name)
    except RuntimeError as error:
        raise ValueError("there is no home directory for downloads; give cache") from error


def _download(url: str, md5: str, folder: Path) -> Path:
    """Download a file into a folder unless it exists with the right checksum; show a progress bar on a terminal.

    pooch writes under another name, and renames the file when the checksum is right.
    """
    path = folder / url.rsplit("/", 1)[1]
    try:
        if path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5:
            return path
        import pooch  # type: ignore[import-untyped]

        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:

            def receive(response: Any, **_: object) -> None:
                # Some servers declare .gz as an encoding, which requests would decode: take the bytes as they are.
                response.raw.headers.discard("content-encoding")
                stack.callback(response.close)  # pooch does not close it when the download fails

            fetch = pooch.HTTPDownloader(
                progressbar=sys.stderr.isatty(),  # with tqdm
                chunk_size=2**16,
                headers={"Accept-Encoding": "identity"},
                hooks={"response": receive},
            )
            pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=folder, downloader=fetch)
    except (OSError, ValueError) as error:  # from the system, from requests, and from pooch (wrong checksum)
        raise ValueError(
            f"{url} cannot be downloaded to {path} ({_reason(error)}); try again, or get the official files in "
            "another way and give their folder"
        ) from error
    return path


def _reason(error: BaseException) -> str:
    """The innermost message of an error in one line: requests wraps system errors three times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__
