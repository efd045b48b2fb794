"""Rows of a table reach what lies in its folder and what ``source.allow`` names, and nothing else."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yarl
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.config import SourceConfig
from anonymizer.data.sources.files import Location, locate
from anonymizer.data.sources.row_files import RowFiles
from anonymizer.errors import ConfigError, RecordError
from anonymizer.records import Reason
from anonymizer.storage import filesystem
from tests.support.http_listener import Quiet, listening
from tests.support.sources import open_uri, problems, read_all, source_error, tar, write_files

SECRET = b"secret"
PICTURE = b"picture"
OUTSIDE = Reason.OUTSIDE_SOURCE


def listing(folder: Path, names: list[str]) -> Path:
    path = folder / "l.jsonl"
    path.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    return path


def outcomes(uri: object, **options: Any) -> list[Reason | bytes]:
    return [record.problem or record.data for record in read_all(uri, **options).values()]


class Server(Quiet):
    """Serves ``files`` by path; a text is a redirect to it."""

    files: ClassVar[dict[str, bytes | str]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answer = self.files.get(self.path)
        self.send_response(404 if answer is None else 302 if isinstance(answer, str) else 200)
        if isinstance(answer, str):
            self.send_header("Location", answer)
        body = answer if isinstance(answer, bytes) else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET


@pytest.fixture
def web() -> Iterator[str]:
    Server.files, Server.asked = {"/data/x.png": PICTURE, "/secret.png": SECRET, "/data/a b/y.png": PICTURE}, []
    Server.files["/data/a%20b/y.png"] = PICTURE
    with listening(Server) as url:
        yield url


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a listing, and one beside it."""
    return write_files(tmp_path / "in", a=PICTURE, sub__b=PICTURE), write_files(tmp_path / "out", c=SECRET)


def test_no_form_of_a_row_leads_out_of_the_folder(folders: tuple[Path, Path], web: str) -> None:
    root, outside = folders
    (root / "link").symlink_to(outside / "c")
    (root / "folder").symlink_to(outside)
    secret = str(outside / "c")
    names = [
        *("../out/c", "a/../../out/c", "sub/../../out/c", "./../out/c", "..", "link", "folder/c", ".", "/", "//"),
        *(
            secret,
            f"/{secret}",
            f"file://{secret}",
            f"FILE://{secret}",
            f"local://{secret}",
            f"file://localhost{secret}",
        ),
        *(f"{root}/../out/c", f"file://{root}/../out/c", f"{root}/folder/c", "/etc/passwd", "/proc/self/environ"),
        *(f"{web}/data/x.png", f"HTTP{web[4:]}/data/x.png", f"simplecache::{web}/x", f"filecache::file://{secret}"),
        *("s3://bucket/x.png", "gs://bucket/x.png", "memory://out/c", "github://o:r@/x", f"zip://c::{secret}", "x://y"),
        *(f"a\0{secret}", f"tar://c::file://{secret}", "ftp://127.0.0.1/x", "ssh://h/x"),
    ]
    assert outcomes(listing(root, names)) == [OUTSIDE] * len(names)
    assert Server.asked == []


def test_a_row_may_name_its_own_folder_in_any_way(folders: tuple[Path, Path]) -> None:
    root, _ = folders
    (root / "link").symlink_to(root / "sub")
    names = ["a", "./a", "sub/../a", f"{root}/a", f"file://{root}/a", "link/b", "sub//b", f"{root}/sub/../a"]
    assert outcomes(listing(root, names)) == [PICTURE] * len(names)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "/",
                "..",
                ".",
                "a",
                "sub",
                "out",
                "c",
                "link",
                "file://",
                "local://",
                "ROOT",
                "TOP",
                "\\",
                "%2e",
                "~",
                "::",
            ]
        ),
        max_size=7,
    ),
    st.sampled_from(["", "/"]),
)
def test_no_row_reads_the_file_beside(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], glue: str) -> None:
    top = tmp_path_factory.getbasetemp() / "beside"
    if not top.exists():
        write_files(top / "in", a=PICTURE, sub__b=PICTURE, l=b"")
        write_files(top / "out", c=SECRET)
        (top / "in" / "link").symlink_to(top / "out")
    name = glue.join(pieces).replace("ROOT", str(top / "in")).replace("TOP", str(top))
    files = RowFiles(locate(str(top / "in" / "l")), [])
    with suppress(RecordError, OSError):
        assert files.read(name, 100) != SECRET


def test_a_folder_behind_a_link_is_the_same_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    root, outside = folders
    (tmp_path / "alias").symlink_to(root)
    (tmp_path / "other").symlink_to(outside)
    names = [f"{root}/a", f"{tmp_path}/alias/a", f"{outside}/c", f"{tmp_path}/other/c"]
    listing(root, names)
    for path in (root / "l.jsonl", tmp_path / "alias" / "l.jsonl"):
        assert outcomes(path) == [PICTURE, PICTURE, OUTSIDE, OUTSIDE]
        for allowed in (outside, tmp_path / "other"):
            assert outcomes(path, allow=[str(allowed)]) == [PICTURE, PICTURE, SECRET, SECRET]


def test_allowed_folders_are_read_and_links_out_of_them_are_not(folders: tuple[Path, Path], tmp_path: Path) -> None:
    root, outside = folders
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "d").write_bytes(SECRET)
    (outside / "away").symlink_to(tmp_path / "third" / "d")
    names = [str(outside / "c"), f"file://{outside}/c", f"{outside}/away", f"{outside}/../third/d", "../out/c"]
    path = listing(root, names)
    assert outcomes(path, allow=[str(outside)]) == [SECRET, SECRET, OUTSIDE, OUTSIDE, OUTSIDE]


def test_stores_are_reached_only_where_they_are_allowed(memory: Any, tmp_path: Path) -> None:
    memory.pipe({"/set/x.png": PICTURE, "/elsewhere/y.png": PICTURE, "/secret/z.png": SECRET})
    names = ["x.png", "memory://set/x.png", "memory://elsewhere/y.png", "memory://secret/z.png", "../secret/z.png"]
    memory.pipe_file("/set/l.jsonl", "".join(json.dumps({"image": name}) + "\n" for name in names).encode())
    assert outcomes("memory://set/l.jsonl") == [PICTURE, PICTURE, OUTSIDE, OUTSIDE, OUTSIDE]
    found = outcomes("memory://set/l.jsonl", allow=["memory://elsewhere"])
    assert found == [PICTURE, PICTURE, PICTURE, OUTSIDE, OUTSIDE]


def test_a_listing_on_the_web_reaches_its_own_folder(web: str) -> None:
    names = ["x.png", "./x.png", "a b/y.png", "a%20b/y.png", f"{web}/data/x.png", "none.png"]
    wrong = ["../secret.png", "/secret.png", "%2e%2e/secret.png", f"{web}/secret.png", f"{web}/data/../secret.png"]
    wrong += [f"//{web[7:]}/secret.png", "..\\secret.png", f"{web.replace('127.0.0.1', 'localhost')}/data/x.png"]
    rows = "".join(json.dumps({"image": name}) + "\n" for name in [*names, *wrong])
    Server.files["/data/l.jsonl"] = rows.encode()
    found = outcomes(f"{web}/data/l.jsonl")
    assert found == [PICTURE] * 5 + [Reason.UNREADABLE] + [OUTSIDE] * len(wrong)
    assert not any("secret" in path for path in Server.asked)


WEB_PIECES = [
    "/",
    "..",
    ".",
    "a",
    "x.png",
    "https://",
    "http:",
    "//",
    "images.example",
    "evil.example",
    "/data/",
    "@",
    "?",
]
WEB_PIECES += ["#", "%2e", "%2f", "%5c", "%00", "\\", "\t", " ", "ü", ":", "::", "[::1]", "\u3002", "\u2215", ";", "&"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WEB_PIECES), max_size=8).map("".join))
def test_no_row_of_a_listing_on_the_web_leads_out_of_its_folder(name: str) -> None:
    """As the client reads the address that a row resolves to; nothing is fetched."""
    fs, path = filesystem.open_fs("https://images.example/data/l.jsonl", ())
    files = RowFiles(Location(path, fs, path, is_file=True), [])
    uri, problem = files.resolve(name)
    if problem is None:
        url = yarl.URL(uri)
        assert (url.scheme, url.host, url.port, url.user) == ("https", "images.example", 443, None)
        assert url.raw_path.startswith("/data/") and url.path.startswith("/data/") and ".." not in url.path.split("/")
        assert files.location.contains(uri)
    else:
        assert problem is OUTSIDE
        with pytest.raises(RecordError):
            files.read(name, 100)


def test_hosts_are_reached_where_allowed_and_redirects_are_not_followed_elsewhere(
    folders: tuple[Path, Path], web: str
) -> None:
    with listening(Server) as other:
        Server.files |= {"/data/away": f"{other}/secret.png", "/data/here": "/data/x.png"}
        Server.files["/data/name"] = f"{web.replace('127.0.0.1', 'localhost')}/secret.png"
        names = [f"{web}/data/{name}" for name in ("x.png", "here", "away", "name")]
        names += [f"{web}/secret.png", f"{other}/data/x.png", f"{web[:7]}user@{web[7:]}/data/x.png"]
        path = listing(folders[0], names)
        assert outcomes(path, allow=[f"{web}/data/"]) == [PICTURE, PICTURE, OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE]
    assert "/secret.png" not in Server.asked


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_an_allowed_name_that_leads_to_this_machine_is_not_reached(
    folders: tuple[Path, Path], web: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        if ":" in address:
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    host = f"http://images.example:{web.rpartition(':')[2]}"
    path = listing(folders[0], [f"{host}/data/x.png"])
    assert outcomes(path, allow=[host]) == [OUTSIDE]
    message = source_error(f"{host}/data/l.jsonl")
    assert "leads to an address that is not public: name that in source.allow" in message
    assert Server.asked == []
    if address == "127.0.0.1":
        assert outcomes(path, allow=[host, "127.0.0.0/8"]) == [PICTURE]


def test_what_a_web_server_sends_is_bounded_whatever_it_announces(folders: tuple[Path, Path]) -> None:
    sent = 0

    class Endless(Quiet):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            try:
                while self.command == "GET" and sent < 2**26:
                    self.wfile.write(bytes(2**16))
                    sent += 2**16
            except OSError:
                pass

        do_HEAD = do_GET

    with listening(Endless) as url:
        path = listing(folders[0], [f"{url}/x.png"])
        assert outcomes(path, allow=[url], limits={"max_bytes": 10_000}) == [Reason.TOO_MANY_BYTES]
    assert sent < 2**25


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet", "listing"])
def test_a_plan_that_names_another_file_is_not_followed(tmp_path: Path, form: str) -> None:
    """Someone who can write the plan, or swap a file for a link, does not reach beyond the source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def fill(folder: Path, data: bytes) -> Path:
        write_files(folder, **{"x.png": data} if form in ("folder", "listing") else {})
        if form == "webdataset":
            (folder / "x.tar").parent.mkdir(exist_ok=True)
            (folder / "x.tar").write_bytes(tar(("x.png", data)))
        elif form == "parquet":
            folder.mkdir(exist_ok=True)
            pq.write_table(pa.table({"image": [data]}), folder / "x.parquet")
            os.utime(folder / "x.parquet", (1, 1))
        elif form == "listing":
            listing(folder, ["x.png"])
        return folder

    root, outside = fill(tmp_path / "in", PICTURE), fill(tmp_path / "out", SECRET)
    uri = root / "l.jsonl" if form == "listing" else root
    (entry,) = open_uri(uri).entries()
    name = Path(entry.uri).name
    for forged in (str(outside / name), f"{root}/../out/{name}"):
        (record,) = open_uri(uri).read([replace(entry, uri=forged)])
        assert record.data != SECRET and (form == "listing" or record.problem is OUTSIDE)
    (root / name).unlink()
    (root / name).symlink_to(outside / name)
    (record,) = open_uri(uri).read([entry])
    assert record.problem is OUTSIDE


def test_a_file_that_is_swapped_for_a_link_just_before_it_is_opened_is_not_read(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = folders
    path = listing(root, ["a", f"{outside}/c"])
    (entry, other) = open_uri(path, allow=[str(outside)]).entries()
    (root / "a").unlink()
    (root / "a").symlink_to(outside / "c")
    (outside / "c").unlink()
    (outside / "c").symlink_to("/etc/hostname")
    monkeypatch.setattr(Location, "contains", lambda *args: True)  # as it was a moment before
    found = open_uri(path, allow=[str(outside)]).read([entry, other])
    assert [record.problem for record in found] == [OUTSIDE, OUTSIDE]
    with pytest.raises(RecordError, match="outside_source"):
        locate(str(root)).open(str(root / "a"))


def test_a_pipe_in_place_of_an_archive_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("x.png", PICTURE)))
    entries = list(open_uri(tmp_path).entries())
    (tmp_path / "s.tar").unlink()
    os.mkfifo(tmp_path / "s.tar")
    assert [record.problem for record in open_uri(tmp_path).read(entries)] == [Reason.UNREADABLE]


def test_plan_shows_each_place_that_rows_name(folders: tuple[Path, Path]) -> None:
    root, outside = folders
    names = ["a", "https://one.example/x", "https://one.example/y", "s3://bucket/x", str(outside / "c"), "../out/c"]
    fields = open_uri(listing(root, names), allow=["https://one.example"]).fields()
    found = {field.name: (field.treatment.split(" ")[0], field.location) for field in fields[2:]}
    assert found == {
        "https://one.example": ("read", "2 rows"),
        "s3://bucket": ("refused", "1 row"),
        "other folders of this machine": ("refused", "1 row"),
        "relative paths out of the folder": ("refused", "1 row"),
    }
    many = [f"https://{n}.example/x" for n in range(1000)]
    assert len(open_uri(listing(root, many)).fields()) < 30


@pytest.mark.parametrize("entry", ["pictures", "../x", "https://user:word@host", "https://a b", "s3://", "x::y", ""])
def test_an_allowed_place_must_be_clear(entry: str) -> None:
    from pydantic import ValidationError

    with pytest.raises((ValidationError, ConfigError)):
        SourceConfig.model_validate({"uri": "x", "allow": [entry]})


def test_a_row_that_was_refused_is_a_failed_record_with_its_reason(folders: tuple[Path, Path]) -> None:
    records = read_all(listing(folders[0], ["a", "../out/c"]))
    assert problems(records) == {"l.jsonl/1": OUTSIDE}
