"""Fetching: resume, mirrors, checksums, archives; against a small server on this machine."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tbnn.data import fetch as module
from tbnn.data.fetch import dataset_folder, fetch, unpack
from tbnn.data.recipe import SourceFile

CONTENT = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server serves, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    stop_after: list[int] = field(default_factory=list)  # bytes after which an answer breaks off, one a request
    ranges: bool = True
    status: int = 0
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            start = int(asked.split("=")[1][:-1]) if asked and state.ranges else 0
            if state.status or start >= len(state.content) > 0:
                self.send_error(state.status or 416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.stop_after.pop(0)] if state.stop_after else body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/a.bin"
    yield state
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def wants(recipe, server):
    """The recipe with one file from the server."""

    def make(*urls: str, **facts):
        return replace(recipe, files=(SourceFile("a.bin", urls or (server.url,), **facts),))

    return make


@pytest.mark.parametrize("facts", [{}, {"md5": MD5}, {"sha256": SHA}, {"sha256": SHA, "bytes": len(CONTENT)}])
def test_downloads_whole(wants, tmp_path, facts):
    fetch(wants(**facts), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_goes_on_where_the_connection_broke(wants, server, tmp_path):
    server.stop_after = [20_000, 7_000]
    fetch(wants(md5=MD5), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=20000-", "bytes=27000-"]


def test_a_later_run_goes_on_where_an_earlier_one_was_killed(wants, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:30_000])
    fetch(wants(md5=MD5), tmp_path)
    assert server.asked == ["bytes=30000-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(wants, server, tmp_path):
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 30_000)
    fetch(wants(md5=MD5), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_whole_part_is_not_downloaded_again(wants, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    fetch(wants(md5=MD5), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_what_is_there_is_used(wants, server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fetch(wants(md5=MD5, bytes=len(CONTENT)), tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"md5": MD5}, rf"a\.bin(\.part)?: expected the MD5 {MD5} of the recipe tiny, got [0-9a-f]{{32}}"),
        ({"sha256": SHA, "md5": "0" * 32}, rf"expected the SHA-256 {SHA} of the recipe tiny, got [0-9a-f]{{64}}"),
        ({"bytes": 50_000}, r"expected 50,000 bytes as in the recipe tiny, got 9"),
    ],
)
def test_another_content_is_kept_aside_and_told(wants, server, tmp_path, facts, message):
    server.content = b"not this!"
    with pytest.raises(FileNotFoundError, match=message) as error:
        fetch(wants(**facts), tmp_path)
    assert f"kept aside as {tmp_path / 'a.bin.mismatch'}" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin.mismatch"]
    assert (tmp_path / "a.bin.mismatch").read_bytes() == b"not this!"
    (tmp_path / "a.bin").write_bytes(b"not that!")  # one's own file stays where it is
    with pytest.raises(ValueError, match=message):
        fetch(wants(**facts), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"not that!"


def test_mirrors_are_tried_in_order(wants, server, tmp_path):
    nobody = "http://127.0.0.1:9/a.bin"
    fetch(wants(nobody, server.url, md5=MD5), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_no_network_says_what_to_get_and_where_to_put_it(wants, tmp_path):
    recipe = replace(wants("http://127.0.0.1:9/a.bin"), manual="open example.org/data and take a.bin (5 GB)")
    with pytest.raises(FileNotFoundError) as error:
        fetch(recipe, tmp_path)
    message = str(error.value)
    assert "tiny: expected a.bin, looked in" in message
    assert "By hand:\n\nopen example.org/data and take a.bin (5 GB)\n\nThe dataset's folder is" in message
    assert f"The dataset's folder is {tmp_path}, or another one that you name with --source FOLDER" in message
    assert re.search(r"http://127\.0\.0\.1:9/a\.bin: .*(refused|Errno)", message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (503, 3)])
def test_a_host_that_refuses_is_not_asked_for_ever(wants, server, tmp_path, status, times):
    server.status = status
    with pytest.raises(FileNotFoundError, match=f"HTTP {status}"):
        fetch(wants(), tmp_path)
    assert len(server.asked) == times


def test_folders_without_a_known_archive_say_what_to_do_by_hand(recipe, tmp_path):
    recipe = replace(recipe, files=(), layout=replace(recipe.layout, train="cars/*.dat"), manual="Fill in the form.")
    with pytest.raises(FileNotFoundError, match=r"tiny: expected cars/\*\.dat, looked in .*\n\nFill in the form\.\n\n"):
        fetch(recipe, tmp_path)
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars/1.dat").touch()
    fetch(recipe, tmp_path)


def test_nothing_is_downloaded_when_told_so(wants, server, tmp_path):
    with pytest.raises(FileNotFoundError, match="By hand: get a"):
        fetch(wants(), tmp_path, download=False)
    assert server.asked == []


def test_a_full_disk_is_told_before_the_download(wants, server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match=r"a\.bin\.part: expected 0\.00 GB of free disk space, got 0\.00 GB"):
        fetch(wants(), tmp_path)


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def problem_of(archive: Path, gives: str, folder: Path) -> str:
    """What unpacking complains of; "" when it is done."""
    try:
        unpack(archive, gives, folder)
    except ValueError as error:
        return str(error)
    return ""


MEMBERS = {"Train/0/a.bin": b"one", "Train/1/b.bin": b"two", "Test/0/c.bin": b"three", "readme.txt": b"four"}


@pytest.mark.parametrize("archive", [zipped(MEMBERS), tarred(MEMBERS), tarred(MEMBERS, "w"), tarred(MEMBERS, "w:xz")])
def test_archives_are_downloaded_and_unpacked_once(recipe, server, tmp_path, archive):
    server.content = archive
    recipe = replace(recipe, files=(SourceFile("all.zip", (server.url,), unpacks="Train"),))
    fetch(recipe, tmp_path)
    found = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {**MEMBERS, "all.zip": archive}
    (tmp_path / "all.zip").unlink()  # unpacked, it is not needed
    fetch(recipe, tmp_path)
    assert len(server.asked) == 1


def test_an_archive_on_disk_is_unpacked_beside_what_is_there(recipe, tmp_path):
    (tmp_path / "Test").mkdir()
    (tmp_path / "Test/mine.txt").write_text("mine")
    (tmp_path / "x.zip").write_bytes(zipped(MEMBERS))
    fetch(replace(recipe, files=(SourceFile("x.zip", unpacks="Test/0"),)), tmp_path)
    assert (tmp_path / "Test/mine.txt").read_text() == "mine"
    assert (tmp_path / "Test/0/c.bin").read_bytes() == b"three"


def test_archives_do_not_lead_out_of_the_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    for name, data in (
        ("a.zip", zipped({"../out.txt": b"x", "Train/a": b"y"})),
        ("a.tar", tarred({"../out.txt": b"x"})),
    ):
        (inside / name).write_bytes(data)
        problem_of(inside / name, "Train", inside)
        assert not (tmp_path / "out.txt").exists()


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    (tmp_path / "b.zip").write_bytes(zipped({"Train/zeros": bytes(1_000_000)}))
    monkeypatch.setattr(module, "_DEFLATE_LIMIT", 100)
    with pytest.raises(ValueError, match=r"b\.zip: expected an archive, got one that claims 1,000,000 bytes unpacked"):
        unpack(tmp_path / "b.zip", "Train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b.zip"]


def test_damaged_archives_are_named_and_leave_nothing(tmp_path):
    rng = np.random.default_rng(1)
    for name, whole in (("a.zip", zipped(MEMBERS)), ("a.tar.gz", tarred(MEMBERS)), ("a.tar", tarred(MEMBERS, "w"))):
        path = tmp_path / name
        for k in range(120):
            damaged = bytearray(whole)
            if k % 2:
                damaged = damaged[: rng.integers(0, len(whole))]
            else:
                for place in rng.integers(0, len(whole), 3):
                    damaged[place] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            folder = tmp_path / f"{name}-{k}"
            folder.mkdir()
            problem = problem_of(path, "Train/0/a.bin", folder)
            if problem:
                assert problem.startswith(str(path))
                assert not list(folder.iterdir())
            else:
                assert (folder / "Train/0/a.bin").stat().st_size == 3


def test_other_archives_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"hello world")
    with pytest.raises(ValueError, match=r"a\.zip: expected a zip or tar archive, got b'hello wo'"):
        unpack(tmp_path / "a.zip", "Train", tmp_path)
    (tmp_path / "a.zip").write_bytes(zipped({"Other/x": b"1"}))
    with pytest.raises(ValueError, match=r"a\.zip: expected an archive that holds Train, got one with Other"):
        unpack(tmp_path / "a.zip", "Train", tmp_path)


def test_the_folder_of_its_name_or_the_folder_itself(recipe, tmp_path):
    assert dataset_folder(recipe, tmp_path) == tmp_path
    (tmp_path / "tiny").mkdir()
    assert dataset_folder(recipe, tmp_path) == tmp_path / "tiny"
    assert dataset_folder(recipe, Path("nowhere")) == Path("nowhere")
