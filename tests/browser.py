"""Pages in a real browser, without a window: what they say on its console, and what they want from any network."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

QUIET = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"


class Browser:
    """Chromium or Chrome with an empty profile in `folder`; a test without one is skipped."""

    def __init__(self, folder: Path) -> None:
        programs = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
        if not programs:
            pytest.skip("no chromium or google-chrome on the path")
        own = ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
        self.words = [programs[0], *(f"--{word}" for word in QUIET.split()), *own]
        self.log = folder / "network.json"

    def open(self, page: Path, *flags: str, query: str = "") -> str:
        """Show a page from disk; what the browser prints. A message on its console is a failure."""
        words = [*self.words, f"--log-net-log={self.log}", *flags, page.as_uri() + query]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    def asked(self) -> list[str]:
        """Addresses that the last page, not the browser of its own accord, wanted something from."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if '"initiator":' in line]
        return [
            line for line in lines if '"initiator":"not an origin"' not in line and re.search(r'"url":"(?!file:|data:)', line)
        ]

    def open_something_that_asks(self, folder: Path) -> None:
        """To see that it would be found out."""
        asking = folder / "asking.html"
        asking.write_text('<!doctype html><img src="http://nowhere.invalid/x.png">')
        self.open(asking, "--dump-dom")
