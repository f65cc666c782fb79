"""Tars by their headers: what archivers write is found where it lies, all else is refused at once."""

import io
import tarfile
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.archives.tar import BLOCK, LARGEST_EXTENSION, Member, TarFormatError, TarHeaders, member_bytes
from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.shards.index import index_tar
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.verify import verify_set
from tests.common.shard_samples import edit_manifest, write_set

END = bytes(2 * BLOCK)
LONG = "a/" * 60 + "b.jpg"


def tar_of(members: dict[str, bytes], **about: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **about) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a float, as webdataset writes it: pax keeps it in a header of its own
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def headers(data: bytes, *, extended: bool = True) -> list[Member]:
    return list(TarHeaders(io.BytesIO(data), extended=extended))


def header(name: bytes, size: int, kind: bytes, mark: bytes = b"ustar\x0000", field: bytes | None = None) -> bytes:
    """One block whose checksum fits."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136] = b"%011o\0" % size if field is None else field
    block[156:157] = kind
    block[257 : 257 + len(mark)] = mark
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name: bytes, data: bytes, kind: bytes = b"0", mark: bytes = b"ustar\x0000") -> bytes:
    return header(name, len(data), kind, mark) + data + bytes(-len(data) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    for digits in range(1, 6):
        length = digits + len(key) + len(value) + 3
        if len(str(length)) == digits:
            return b"%d %s=%s\n" % (length, key, value)
    raise AssertionError


PLAIN = entry(b"x.jpg", b"data")
LINK = b"././@LongLink"
GNU = b"ustar  \0"


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_what_tarfile_writes_is_found_where_it_lies(format_: int) -> None:
    members = {"a.jpg": b"one", LONG: b"two" * 1000, "\u00e4.cls": b"3", "d/e.cls": b""}
    data = tar_of(members, format=format_)
    entries = headers(data)
    assert {entry.name: data[entry.offset : entry.offset + entry.size] for entry in entries} == members
    assert member_bytes(data, "e.cls", "b.jpg", "absent") == [b"", b"two" * 1000, None]


def test_posix_names_in_two_parts_and_folders() -> None:
    long = "c" * 60 + "/" + "d" * 90 + ".jpg"
    buffer = io.BytesIO(tar_of({long: b"x"}, format=tarfile.USTAR_FORMAT))
    assert [entry.name for entry in headers(buffer.getvalue())] == [long]
    folder = header(b"folder/", 0, b"5")
    assert [(entry.name, entry.plain) for entry in headers(folder + PLAIN + END)] == [("folder/", False), ("x.jpg", True)]


def test_a_comment_for_all_entries_is_passed_over() -> None:
    data = entry(b"pax_global_header", record(b"comment", b"0123"), b"g") + PLAIN + END
    assert [header.name for header in headers(data)] == ["x.jpg"]


@given(st.binary(max_size=3 * BLOCK))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(TarFormatError):
        headers(data)


SPARSE = header(b"x.jpg", 0, b"S", GNU)
PAX = {
    "digits": b"1" * LARGEST_EXTENSION,
    "a size": record(b"size", b"9" * 5000),
    "sparse": record(b"GNU.sparse.map", b"a,b"),
    "no equals sign": b"6 abc\n",
    "no end": b"9 path=ab",
    "longer than the header": b"99 path=a\n",
    "a length of nothing": b"0 path=a\n",
}
ODD = {
    "nothing": b"",
    "no mark of the end": PLAIN,
    "a chain of long names": entry(LINK, b"x\0", b"L", GNU) * 5000 + PLAIN + END,
    "a chain of long links": entry(LINK, b"x\0", b"K", GNU) * 5000 + PLAIN + END,
    "a chain of pax headers": entry(b"p", record(b"comment", b"a"), b"x") * 5000 + PLAIN + END,
    "a sparse file": SPARSE + END,
    "a link": header(b"x.jpg", 0, b"2") + END,
    "a device": header(b"x.jpg", 0, b"3") + END,
    "an unknown kind": entry(b"x.jpg", b"abc", b"Z") + END,
    "a folder with data": entry(b"d/", b"abc", b"5") + END,
    "a long name that is negative": header(LINK, 0, b"L", GNU, b"\xff" * 4 + (2**64 - 1024).to_bytes(8, "big")) + END,
    "a pax header that is negative": header(b"p", 0, b"x", field=b"\xff" * 12) + END,
    "a size that goes beyond the end": header(b"x.jpg", 5000, b"0") + END,
    "no name": entry(b"", b"abc") + END,
    "a checksum that does not fit": PLAIN[:148] + b"0000000\0" + PLAIN[156:] + END,
    "a header of 1979": entry(b"x.jpg", b"abc", mark=b"") + END,
    "one path for all": entry(b"p", record(b"path", b"y.jpg"), b"g") + PLAIN + END,
    **{f"pax: {name}": entry(b"p", data, b"x") + PLAIN + END for name, data in PAX.items()},
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_refused_at_once(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TarFormatError):
        headers(ODD[name])
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_giant_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "giant.tar"
    with path.open("wb") as file:
        file.write(header(LINK, 2 << 30, kind, GNU))
        file.truncate(3 << 30)
    tracemalloc.start()
    try:
        with path.open("rb") as file, pytest.raises(TarFormatError, match="2147483648 bytes, expected at most 65536"):
            list(TarHeaders(file, extended=True))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def spoil(folder: Path, change: object) -> None:
    """Write the first shard anew, with a manifest that agrees."""
    path = folder / "synth-train-000000.tar"
    path.write_bytes(change(path.read_bytes()))
    facts = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    edit_manifest(folder, lambda m: m["splits"]["train"]["shards"][0].update(facts))


@pytest.mark.parametrize(
    "before",
    [
        entry(LINK, b"00000000.png\0", b"L", GNU),
        entry(b"p", record(b"comment", b"a"), b"x"),
        entry(b"p", b"1" * 200_000, b"x"),
        SPARSE,
        header(b"folder/", 0, b"5"),
    ],
)
def test_shards_have_plain_members_alone(tmp_path: Path, before: bytes) -> None:
    write_set(tmp_path, 3)
    spoil(tmp_path, lambda data: before + data)
    with pytest.raises(ClusterqError, match="no member of a clusterq shard"):
        index_tar(tmp_path / "synth-train-000000.tar", read_manifest(tmp_path))
    problems = verify_set(tmp_path, read_manifest(tmp_path))
    assert any("no member of a clusterq shard" in problem.what for problem in problems)


def test_verify_reports_what_lies_behind_the_end(tmp_path: Path) -> None:
    write_set(tmp_path, 3)
    assert not verify_set(tmp_path, read_manifest(tmp_path))
    spoil(tmp_path, lambda data: data + entry(b"00000009.png", b"hidden") + END)
    (problem,) = verify_set(tmp_path, read_manifest(tmp_path))
    assert "goes on behind the mark of its end" in problem.what
