"""Web servers on this machine that behave well or badly, as told."""

import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Behaviour:
    """Behaviour of a server.

    Attributes:
        ranges: whether it sends parts.
        cut: path ending -> bytes of the whole file after which the connection ends, counted per connection.
        cuts_left: how many connections are cut.
        replaced: path ending -> bytes that are sent instead of the file's.
        declared: path ending -> a false Content-Length.
        redirect: path ending -> address.
        redirect_length: bytes that a redirect says to bring along, and never brings.
        headers: headers of files, such as dates.
        status: path ending -> status code.
        delay: seconds before each piece of a slow file.
        password: `NAME:PASSWORD` in base64 that is asked for.
        asked: requests: path, Range, Authorization.
    """

    ranges: bool = True
    cut: dict[str, int] = field(default_factory=dict)
    cuts_left: int = 1_000
    replaced: dict[str, bytes] = field(default_factory=dict)
    declared: dict[str, int] = field(default_factory=dict)
    redirect: dict[str, str] = field(default_factory=dict)
    redirect_length: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    delay: float = 0.0
    password: str | None = None
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def shards_asked(self) -> list[str]:
        """Names of the tars that were asked for, in order."""
        return [path.rpartition("/")[2].partition("?")[0] for path, _, _ in self.asked if ".tar" in path]


@contextmanager
def serving(folder: Path, behaviour: Behaviour | None = None) -> Iterator[tuple[str, Behaviour]]:
    """Serve a folder's files; gives the address of the server and what it does."""
    told = behaviour or Behaviour()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            told.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))

            def of(values: dict[str, object]) -> object:
                return next((value for end, value in values.items() if path.endswith(end)), None)

            if told.password is not None and self.headers.get("Authorization") != f"Basic {told.password}":
                self.answer(401, b"")
            elif (code := of(dict(told.status))) is not None:
                self.answer(int(str(code)), b"")
            elif (to := of(dict(told.redirect))) is not None:
                self.send_response(302)
                self.send_header("Location", str(to))
                self.send_header("Content-Length", str(told.redirect_length))
                self.end_headers()
            elif not (file := folder / path.lstrip("/")).is_file():
                self.answer(404, b"")
            else:
                data = of(dict(told.replaced))
                self.file(path, data if isinstance(data, bytes) else file.read_bytes())

        def file(self, path: str, data: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked and told.ranges else 0
            if start >= len(data) > 0 and start:
                self.answer(416, b"")
                return
            length = next((size for end, size in told.declared.items() if path.endswith(end)), len(data) - start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(length))
            for name, value in told.headers.items():
                self.send_header(name, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            most = next((size for end, size in told.cut.items() if path.endswith(end)), None)
            if most is not None and told.cuts_left > 0:
                told.cuts_left -= 1
                self.wfile.write(data[start : start + most])
                self.close_connection = True
                return
            for begin in range(start, len(data), 4096):
                if told.delay:
                    time.sleep(told.delay)
                self.wfile.write(data[begin : begin + 4096])
            if length != len(data) - start:
                self.close_connection = True

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
