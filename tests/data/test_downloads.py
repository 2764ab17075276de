"""Data sets of a hub on this machine, read as ``hub://`` names them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoft.data.sources import hub_commit, load_source
from autoft.errors import DataError

COMMIT = "c" * 40
ROWS = b"text,label\ngood film,1\nbad film,0\n"


class Requests(BaseHTTPRequestHandler):
    """Gives the files of one data set, me/films."""

    def log_message(self, format, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self.answer(json.dumps([entry for entry in self.entries() if entry["path"] in asked]).encode())

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        if path.startswith("/api/datasets/me/films/tree/"):
            self.answer(json.dumps(self.entries()).encode())
        elif path.startswith("/api/datasets/me/films"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer(json.dumps({"id": "me/films", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            name = path.rpartition(f"/resolve/{COMMIT}/")[2]
            self.answer(self.server.files.get(name), name)

    def entries(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.server.files.items()
        ]

    def answer(self, content: bytes | None, name: str = "") -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is not None and content is not None:
            content = content[int(part[1]) : int(part[2] or len(content)) + 1]
        self.send_response(404 if content is None else 200 if part is None else 206)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Type", "application/octet-stream" if name else "application/json")
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content or b"")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[dict[str, bytes]]:
    """The files of ``hub://me/films``, which a test puts in."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.hf_file_system import HfFileSystem

    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    server.files = {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    # What variables of the environment become when the libraries are imported, which they are already here.
    for place, name, value in (
        (constants, "HF_HUB_OFFLINE", False),
        (constants, "ENDPOINT", address),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
        (constants, "HF_HUB_CACHE", str(tmp_path / "hub")),
        (datasets.config, "HF_HUB_OFFLINE", False),
        (datasets.config, "HF_ENDPOINT", address),
        (datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets"),
        (datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads")),
        (datasets.config, "EXTRACTED_DATASETS_PATH", str(tmp_path / "extracted")),
    ):
        monkeypatch.setattr(place, name, value)
    monkeypatch.setenv("HF_ENDPOINT", address)
    HfFileSystem.clear_instance_cache()
    yield server.files
    HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def load(source: str = "hub://me/films") -> pa.Table:
    return load_source(source, base=Path("/nonexistent"), where="data.train")


def fault(source: str = "hub://me/films") -> str:
    with pytest.raises(DataError) as caught:
        load(source)
    message = str(caught.value)
    assert message.startswith(f"data.train: {source}: ")
    return message


def zipped(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return made.getvalue()


def with_a_hole(size: int) -> bytes:
    """Return a tar archive with a member of this size that takes no room in it (PAX sparse format 1.0)."""
    map_block = b"1\n%d\n0\n" % size
    entry = tarfile.TarInfo("0.json")
    entry.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "0.json",
        "GNU.sparse.realsize": str(size),
    }
    entry.size = 512
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(map_block.ljust(512, b"\0")))
    return made.getvalue()


def parquet(table: pa.Table) -> bytes:
    made = io.BytesIO()
    pq.write_table(table, made)
    return made.getvalue()


@pytest.fixture
def little_memory(monkeypatch):
    """Rows may take 4 MB."""
    monkeypatch.setattr("autoft.data.encodings.memory_left", lambda: (8_000_000, 0))


PACKED = {
    "train.csv": ROWS,
    "train.csv.gz": gzip.compress(ROWS),
    "train.csv.bz2": bz2.compress(ROWS),
    "train.csv.xz": lzma.compress(ROWS),
    "train.zip": zipped("train.csv", ROWS),
    "train.parquet": parquet(pa.table({"text": ["good film", "bad film"], "label": [1, 0]})),
}


@pytest.mark.parametrize("name", PACKED)
def test_rows_are_read_in_whatever_they_are_packed(hub, little_memory, name):
    hub[name] = PACKED[name]
    assert load().to_pylist() == [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("train.csv.gz", lambda: gzip.compress(b"text,label\n" + b"a" * 10**7)),
        ("train.zip", lambda: zipped("train.csv", b"text,label\n" + b"a" * 10**7)),
        ("train.zip", lambda: zipped("train.csv.gz", gzip.compress(b"text,label\n" + b"a" * 10**7))),
        ("train.tar", lambda: with_a_hole(10**12)),
        ("train.parquet", lambda: parquet(pa.table({"text": pa.array(["a" * 10**4] * 10**3)}))),
        ("train.parquet", lambda: parquet(pa.table({"text": pa.array([[1] * 10**6], pa.list_(pa.int64()))}))),
    ],
)
def test_what_unpacks_to_more_than_there_is_memory_for_is_not_unpacked(hub, little_memory, name, made, tmp_path):
    hub[name] = made()
    assert "takes more than the 4 MB" in fault()
    assert not list((tmp_path / "datasets").rglob("*.arrow"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train.csv.gz", gzip.compress(ROWS)[:-12], "train.csv.gz: is damaged (Compressed file ended before"),
        ("train.parquet", parquet(pa.table({"text": ["a"]}))[:-9] + b"PAR1", "train.parquet: is damaged ("),
        ("train.arrow", b"ARROW1\0\0" + b"x" * 99, "train.arrow: is damaged ("),
        ("train.zip", b"PK\x03\x04" + b"x" * 99, "the hub did not give it (File is not a zip file)"),
        ("train.txt", b"7z\xbc\xaf\x27\x1c" + b"x" * 99, "holds a 7z archive, which is not read; unpack it"),
        ("train.jsonl", b"[" * 10**5, "cannot be read ("),
        ("README.md", b"---\nconfigs: 7\n---\n", "the hub did not give it ("),
        ("README.md", b"---\nconfigs: [\n---\n", "the hub did not give it ("),
        (
            "README.md",
            b"---\ndataset_info: {features: [{name: text, dtype: none}]}\n---\n",
            "the hub did not give it (",
        ),
    ],
    # By their contents no process would know them again: gzip writes the time.
    ids=["gzip", "parquet", "arrow", "zip", "7z", "deep", "no configs", "no yaml", "no type"],
)
def test_what_is_damaged_is_told_in_one_message(hub, name, content, expected):
    hub["train.csv" if name == "README.md" else name] = ROWS
    hub[name] = content
    assert expected in fault()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("{}/secret.csv", "Data files don't belong to me/films"),
        ("file://{}/secret.csv", "Data files don't belong to me/films"),
        ("zip://train.csv::{}/secret.zip", "Data files don't belong to me/films"),
        ("hf://datasets/me/films@other/train.csv", "which is no file of the data set; name a local file to read that"),
    ],
)
def test_a_card_names_no_files_of_elsewhere(hub, tmp_path, place, expected):
    hub["train.csv"] = ROWS
    (tmp_path / "secret.csv").write_bytes(ROWS)
    (tmp_path / "secret.zip").write_bytes(zipped("train.csv", ROWS))
    hub["README.md"] = (
        f"---\nconfigs: [{{config_name: default, data_files: '{place.format(tmp_path)}'}}]\n---\n".encode()
    )
    assert expected in fault()


def test_a_folder_that_is_called_as_the_data_set_is_not_read(hub, tmp_path, monkeypatch):
    hub["train.csv"] = ROWS
    (tmp_path / "me" / "films").mkdir(parents=True)
    (tmp_path / "me" / "films" / "train.csv").write_text("text,label\nof here,1\n")
    monkeypatch.chdir(tmp_path)
    assert load().num_rows == 2


def test_what_is_kept_is_read_without_the_hub_and_only_of_its_commit(hub, monkeypatch, tmp_path):
    hub["train.csv"] = ROWS
    rows = load()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load() == load(f"hub://me/films@{COMMIT}#train") == rows
    assert f"is of another commit ({COMMIT})" in fault(f"hub://me/films@{'d' * 40}")
    (kept,) = (tmp_path / "datasets").rglob("*.arrow")
    whole = kept.read_bytes()
    for content in (whole[:-300], whole.replace(b"good film", b"\xff\xfe\xff film")):
        kept.write_bytes(content)
        assert "what the datasets library keeps of it is damaged (" in fault()


def test_what_another_program_had_prepared_says_its_commit_without_the_hub(hub, monkeypatch):
    import datasets

    hub["train.csv"] = ROWS
    datasets.load_dataset("me/films")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_commit("hub://me/films") == COMMIT
    assert hub_commit("hub://me/others") is None
    assert load(f"hub://me/films@{COMMIT}").num_rows == 2
    assert f"is of another commit ({COMMIT})" in fault(f"hub://me/films@{'d' * 40}")


def test_what_says_no_commit_is_not_taken_for_one(hub, monkeypatch, tmp_path):
    hub["train.csv"] = ROWS
    rows = load()
    (folder,) = (tmp_path / "datasets").rglob(COMMIT)
    folder.rename(folder.with_name("3f2a"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_commit("hub://me/films") is None
    assert load() == rows
    assert "is of a commit that nothing says" in fault(f"hub://me/films@{COMMIT}")
