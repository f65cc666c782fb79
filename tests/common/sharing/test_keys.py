"""Keys of makers, and files of trusted ones."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.sharing.keys import fingerprint, generate, load_private, parse_public, public_line, read_trusted

pytest.importorskip("cryptography", reason="signatures need the extra `sign`")


def test_keys_are_their_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public = generate(tmp_path / "key", "team A")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert (tmp_path / "key.pub").read_text() == f"{public_line(public, 'team A')}\n"
    content = (tmp_path / "key").read_bytes()
    with pytest.raises(ClusterqError, match="never replaced"):
        generate(tmp_path / "key", "x")
    (tmp_path / "other.pub").write_text("")
    with pytest.raises(ClusterqError, match=r"other\.pub is there already"):
        generate(tmp_path / "other", "x")
    assert not (tmp_path / "other").exists()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ClusterqError, match="is there already"):
        generate(tmp_path / "link", "x")
    assert (tmp_path / "key").read_bytes() == content


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_openssh_reads_our_keys_and_we_read_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = generate(tmp_path / "ours", "us")
    told = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "ours"], capture_output=True, text=True, check=True).stdout
    assert fingerprint(public) in told
    again = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "ours"], capture_output=True, text=True, check=True).stdout
    assert again.split()[:2] == public_line(public).split()
    quiet = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "them", "-f"]
    subprocess.run([*quiet, tmp_path / "theirs"], check=True)
    key = load_private(tmp_path / "theirs")
    assert read_trusted(tmp_path / "theirs.pub") == {key.public_key().public_bytes_raw(): "them"}
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "ecdsa"], check=True)
    with pytest.raises(ClusterqError, match="another kind, expected Ed25519"):
        load_private(tmp_path / "ecdsa")
    with pytest.raises(ClusterqError, match=r"line 1 of .* is no key"):
        read_trusted(tmp_path / "ecdsa.pub")


def test_a_key_with_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    made = Ed25519PrivateKey.generate()
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open"))
    (tmp_path / "key").write_bytes(pem)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ClusterqError, match="CLUSTERQ_KEY_PASSPHRASE"):
        load_private(tmp_path / "key", lambda: "wrong")

    def nobody() -> str:
        raise ClusterqError("there is no terminal")

    with pytest.raises(ClusterqError, match="there is no terminal"):
        load_private(tmp_path / "key", nobody)
    monkeypatch.setenv("CLUSTERQ_KEY_PASSPHRASE", "open")
    assert load_private(tmp_path / "key").public_key() == made.public_key()
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ClusterqError, match="chmod 600"):
        load_private(tmp_path / "key")


def test_files_of_trusted_keys(tmp_path: Path, keys: dict[str, Path]) -> None:
    lines = [path.with_name(f"{path.name}.pub").read_text() for path in keys.values()]
    kind, text, *_ = lines[1].split()
    (tmp_path / "trust").write_text(f"# makers\n\n{lines[0]}b@example.org {kind} {text} comment\n")
    assert sorted(read_trusted(tmp_path / "trust").values()) == ["b@example.org", "team A"]
    for broken in (
        "",
        "# nobody",
        f"{kind} {text[:-4]}",
        f"ssh-rsa {text}",
        "x",
        f"{kind}",
        f"{kind} ???",
        f"a b {kind} {text}",
    ):
        (tmp_path / "trust").write_text(broken)
        with pytest.raises(ClusterqError, match="trust: "):
            read_trusted(tmp_path / "trust")
    with pytest.raises(ValueError, match="no key"):
        parse_public("ssh-ed25519", text.replace("AAAAC3", "AAAAC4"))


@pytest.mark.parametrize(
    "first", ["@revoked", "@cert-authority", "cert-authority", "no-pty,restrict", 'expiry-time="20200101"']
)
def test_a_key_with_a_restriction_is_not_trusted(first: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{first} {public_line(bytes(32))}\n")
    with pytest.raises(ClusterqError, match=r"line 1 of .* restricts it"):
        read_trusted(tmp_path / "keys")


@pytest.mark.parametrize("end", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028"])
def test_no_key_hides_in_a_name(end: str, tmp_path: Path) -> None:
    text = f"{public_line(bytes(32))} Team{end}{public_line(b'x' * 32)} B\r\n"
    (tmp_path / "keys").write_bytes(text.encode())
    assert list(read_trusted(tmp_path / "keys")) == [bytes(32)]
