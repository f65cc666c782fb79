"""Addresses: their forms, and what is shown of them."""

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.escape import without_secrets
from clusterq_common.sharing.address import is_address, is_this_machine, parse_address


@pytest.mark.parametrize(
    ("text", "shown", "parts"),
    [
        ("hf://datasets/team/digits", "hf://datasets/team/digits", ("hf", "", "team/digits", None)),
        ("hf://datasets/team/digits@v1.2/", "hf://datasets/team/digits@v1.2", ("hf", "", "team/digits", "v1.2")),
        ("s3://bucket/a/b/", "s3://bucket/a/b", ("s3", "bucket", "a/b", None)),
        ("gs://bucket", "gs://bucket", ("gs", "bucket", "", None)),
        ("https://host:8443/a%20b/set", "https://host:8443/a%20b/set", ("https", "host:8443", "a%20b/set", None)),
        ("http://[::1]:80/set", "http://[::1]:80/set", ("http", "[::1]:80", "set", None)),
        ("http://localhost/set", "http://localhost/set", ("http", "localhost", "set", None)),
    ],
)
def test_forms(text: str, shown: str, parts: tuple[str, str, str, str | None]) -> None:
    address = parse_address(text)
    assert (address.scheme, address.host, address.path, address.revision) == parts
    assert str(address) == shown


def test_credentials_are_known_and_never_shown() -> None:
    address = parse_address("https://me:p%40ss@host/set?sig=abc&se=1")
    assert (address.user, address.query) == ("me:p@ss", "sig=abc&se=1")
    assert str(address) == "https://host/set"
    for secret in ("me:", "p@ss", "p%40ss", "abc"):
        assert secret not in repr(address)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://example.org/set", "allow_http"),
        ("http://127.0.0.1.example.org/set", "allow_http"),
        ("hg://datasets/a/b", "begins with hg://"),
        ("file:///etc", "begins with file://"),
        ("hf://models/a/b", "hf://datasets/TEAM/NAME"),
        ("hf://datasets/a", "hf://datasets/TEAM/NAME"),
        ("hf://datasets/a/b@../../x", "hf://datasets/TEAM/NAME"),
        ("hf://user:token@datasets/a/b", "hf auth login"),
        ("s3://key:secret@bucket/x", "without credentials"),
        ("s3://bucket/x?versionId=1", "without credentials"),
        ("s3:///x", "s3://BUCKET"),
        ("s3://bucket/a/../b", "in its path"),
        ("https://host/a/%2e%2e/b", "in its path"),
        ("https:///set", "names no server"),
        ("https://host:port/set", "cannot be read"),
        ("https://host/set#part", "behind #"),
    ],
)
def test_other_forms_are_refused_without_their_secrets(text: str, why: str) -> None:
    with pytest.raises(ClusterqError) as refused:
        parse_address(text)
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "token" not in str(refused.value).replace("HF_TOKEN", "")


def test_http_to_other_machines_where_it_is_allowed() -> None:
    assert str(parse_address("http://example.org/set", allow_http=True)) == "http://example.org/set"


def test_folders_are_no_addresses() -> None:
    assert [is_address(text) for text in ("out/", "s3:/x", "/a/b", "c:\\x", "s3://b")] == [False, False, False, False, True]


def test_this_machine() -> None:
    names = ["localhost", "127.3.2.1", "::1", "[::1]", "LOCALHOST", "localhost.example.org", "10.0.0.1", "0.0.0.0"]
    assert [is_this_machine(name) for name in names] == [True] * 5 + [False] * 3


def test_command_lines_lose_their_secrets() -> None:
    line = "--shards https://me:pa@host/a?x=1 's3://k:s@b/c' --note 'what? a@b'"
    for word in ("https://me:p'a ss@host/a?x='q'&t=1", 'https://me:p"a@ss@host/a', "https://host/a?t=a b"):
        assert without_secrets(word) == "https://host/a"
        assert without_secrets(f"--shards={word}") == "--shards=https://host/a"
    assert without_secrets(line) == "--shards https://host/a 's3://b/c' --note 'what? a@b'"
