"""Having the files of a dataset: found on disk, or downloaded, resumed, checked and unpacked."""

import hashlib
import logging
import lzma
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tbnn.data.recipe import Recipe, SourceFile

log = logging.getLogger(__name__)

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 3  # per address, each going on where the last one stopped
_BLOCK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, UnicodeError)
_DEFLATE_LIMIT = 1100  # no deflate stream unpacks to more than 1,032 times its size


class Unavailable(OSError):
    """A file could not be had from any of its addresses."""


def dataset_folder(recipe: Recipe, root: Path) -> Path:
    """Where a dataset's files lie below a source folder: in a folder of its name, if there is one, or right there."""
    return root / recipe.name if (root / recipe.name).is_dir() else root


def fetch(recipe: Recipe, folder: Path, *, download: bool = True) -> None:
    """Make sure that all files of a recipe are in ``folder``, whole and unpacked.

    What is there is used: an unpacked folder as it is, a file after its checksum was compared. Else a file is downloaded
    to ``PATH.part``, which a later call goes on with, compared, and renamed; one with another checksum is kept aside as
    ``PATH.mismatch``.

    Raises:
        FileNotFoundError: a file is missing and cannot be downloaded; the message says what to get and where to put it.
        ValueError: a file has another checksum or is no archive; the message shows both values.
        OSError: the disk has no room.
    """
    train = recipe.layout.train if recipe.layout else ""
    if train and not recipe.files and not any(folder.glob(train)):
        raise FileNotFoundError(_by_hand(recipe, train, folder))
    for file in recipe.files:
        if file.unpacks and (folder / file.unpacks).exists():
            continue
        path = folder / file.path
        if path.is_file():
            _compare(path, file, recipe.name)
        else:
            _get(recipe, file, path, download)
        if file.unpacks:
            unpack(path, file.unpacks, folder)


def _get(recipe: Recipe, file: SourceFile, path: Path, download: bool) -> None:
    """Download one file, from the first address that serves it whole."""
    problems: list[str] = []
    for url in file.urls if download else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            _download(url, part, file)
            _compare(part, file, recipe.name)
        except (Unavailable, ValueError) as error:
            problems.append(f"{url}: {error}")
            if isinstance(error, ValueError):
                aside = path.with_name(f"{path.name}.mismatch")
                part.replace(aside)
                problems[-1] += f" (kept aside as {aside})"
            continue
        part.replace(path)
        return
    tried = "".join(f"\n  {problem}" for problem in problems)
    raise FileNotFoundError(_by_hand(recipe, file.path, path.parent) + tried)


def _by_hand(recipe: Recipe, missing: str, folder: Path) -> str:
    """What to say when something is neither there nor to be had."""
    what = f"{recipe.name}: expected {missing}, looked in {folder}, found no such file. By hand:"
    option = "--source FOLDER (of `tbnn train`: --data.source FOLDER, in Python: source=FOLDER)."
    if not recipe.manual:
        name = PurePosixPath(missing).name
        return (
            f"{what} get {name} from {recipe.source}; put it at {folder / name}, or name the folder that holds {missing} "
            f"with {option}"
        )
    return f"{what}\n\n{recipe.manual.strip()}\n\nThe dataset's folder is {folder}, or another one that you name with {option}"


def _download(url: str, part: Path, file: SourceFile) -> None:
    """Fetch ``url`` into ``part``, going on where it ends, in a few attempts. Raises ``Unavailable``."""
    reason = "no answer"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(2**attempt, 10))
        done = part.stat().st_size if part.exists() else 0
        if file.bytes and done == file.bytes:
            return
        request = urllib.request.Request(url, headers={"User-Agent": "tbnn", **_range(done)})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                fresh = done == 0 or answer.status != 206  # 206: the server goes on where we stopped
                left = int(answer.headers.get("Content-Length") or 0)
                _check_room(part, left)
                expected = (0 if fresh else done) + left if left else 0
                with part.open("wb" if fresh else "ab") as out:
                    _copy(answer, out, f"{url}", expected)
            got = part.stat().st_size
            if not expected or got == expected:
                return
            reason = f"the connection ended after {got:,} of {expected:,} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416 and done:  # nothing after what we have: the file is whole, or it is not this file
                return
            reason = f"HTTP {error.code} {error.reason}"
            if error.code in (401, 403, 404, 410):
                break
        except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise Unavailable(reason)


def _range(done: int) -> dict[str, str]:
    return {"Range": f"bytes={done}-"} if done else {}


def _copy(answer: BinaryIO, out: BinaryIO, url: str, expected: int) -> None:
    told = time.monotonic()
    while block := answer.read(_BLOCK):
        out.write(block)
        if time.monotonic() - told > 5:
            told = time.monotonic()
            log.info("%s: %.0f MB%s", url, out.tell() / 1e6, f" of {expected / 1e6:.0f}" if expected else "")


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{path}: expected {needed / 1e9:.2f} GB of free disk space, got {free / 1e9:.2f} GB")


def _compare(path: Path, file: SourceFile, name: str) -> None:
    """Raise ``ValueError`` unless ``path`` has the size and checksum that the recipe gives."""
    size = path.stat().st_size
    if file.bytes and size != file.bytes:
        raise ValueError(f"{path}: expected {file.bytes:,} bytes as in the recipe {name}, got {size:,}")
    kind, expected = ("sha256", file.sha256) if file.sha256 else ("md5", file.md5)
    if not expected:
        return
    with path.open("rb") as opened:
        got = hashlib.file_digest(opened, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if got != expected:
        shown = {"sha256": "SHA-256", "md5": "MD5"}[kind]
        raise ValueError(f"{path}: expected the {shown} {expected} of the recipe {name}, got {got}")


def unpack(archive: Path, gives: str, folder: Path) -> None:
    """Unpack a zip or tar archive into ``folder``: into another folder first, so that ``gives`` is never half there.

    Raises ``ValueError`` when it is neither, is damaged, has members that lead elsewhere, unpacks to more than a
    thousand times its size, or does not hold ``gives``.
    """
    temporary = folder / f".unpacking.{uuid.uuid4().hex}.tmp"
    log.info("%s: unpacking", archive)
    try:
        temporary.mkdir()
        _extract(archive, temporary)
        if not (temporary / gives).exists():
            found = ", ".join(sorted(path.name for path in temporary.iterdir())[:10]) or "nothing"
            raise ValueError(f"{archive}: expected an archive that holds {gives}, got one with {found}")
        _move(temporary, folder, gives)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check_size(archive, folder, sum(member.file_size for member in opened.infolist()))
                opened.extractall(folder)  # drops drives, leading slashes and ".."
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                _check_size(archive, folder, sum(member.size for member in opened.getmembers()))
                opened.extractall(folder, filter="data")
        else:
            raise ValueError(f"{archive}: expected a zip or tar archive, got {archive.read_bytes()[:8]!r}...")
    except _DAMAGE as error:
        raise ValueError(f"{archive}: expected a whole archive, got one that cannot be read ({error})") from error
    except OSError as error:
        if error.errno is None:  # zlib and gzip tell damage this way
            raise ValueError(f"{archive}: expected a whole archive, got one that cannot be read ({error})") from error
        raise


def _check_size(archive: Path, folder: Path, unpacked: int) -> None:
    if unpacked > _DEFLATE_LIMIT * archive.stat().st_size:
        raise ValueError(f"{archive}: expected an archive, got one that claims {unpacked:,} bytes unpacked")
    _check_room(folder, unpacked)


def _move(temporary: Path, folder: Path, gives: str) -> None:
    """Everything unpacked to its place, ``gives`` last: where it stands, all of it stands."""
    first = PurePosixPath(gives).parts[0]
    names: list[str] = sorted((path.name for path in temporary.iterdir()), key=lambda name: name == first)
    for name in names:
        target = folder / name
        if target.is_dir() and (temporary / name).is_dir():
            shutil.copytree(temporary / name, target, dirs_exist_ok=True)
        else:
            (temporary / name).replace(target)
