"""Folders on web servers, with Python's own client: ranges, and redirects under rules."""

import base64
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import quote, urlsplit

from clusterq_common.errors import ClusterqError
from clusterq_common.sharing.address import Address, is_this_machine, may_be_this_machine
from clusterq_common.sharing.remote import CHUNK, CutOffError, NotThereError, Stream

# A connection without a byte for so many seconds counts as broken.
PATIENCE_SECONDS = 30.0
# Status codes of failures that may pass: another try is worth it.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# At most 18 digits: no file is larger, and Python refuses to parse numbers of thousands of digits.
_LENGTH = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
# Characters of an address that are not quoted: they have a meaning, or begin a quoted one.
_WRITTEN = "/%:@!$&'()*+,;=~[]"


class HttpRemote:
    """Folder on a web server. Each file has its own address below it."""

    def __init__(
        self,
        base: str,
        shown: str,
        *,
        revision: str | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        allow_http: bool = False,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Name the folder.

        Args:
            base: its address, without a slash at the end.
            shown: what errors and records call it: no credentials in it.
            revision: of the set that lies there, if known.
            query: sent with every request to this server.
            headers: sent with every request to this server, and to no other one that it redirects to.
            allow_http: whether a redirect may lead to another machine without encryption.
            patience: seconds without a byte after which a connection counts as broken.
        """
        self.shown, self.revision = shown, revision
        self._base, self._query, self._headers, self._patience = base, query, dict(headers or {}), patience
        self._opener = _opener(base, self._headers, allow_http=allow_http)

    @classmethod
    def at(cls, address: Address, *, allow_http: bool, patience: float = PATIENCE_SECONDS) -> "HttpRemote":
        """The folder at an https:// or http:// address."""
        headers = {}
        if address.user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(address.user.encode()).decode()
        shown = str(address)
        base = f"{address.scheme}://{address.host}/{quote(address.path, safe=_WRITTEN)}".rstrip("/")
        query = quote(address.query, safe=f"{_WRITTEN}?")
        return cls(base, shown, query=query, headers=headers, allow_http=allow_http, patience=patience)

    @contextmanager
    def open(self, name: str, start: int = 0) -> Iterator[Stream]:
        """See `Remote.open`."""
        url = f"{self._base}/{quote(name)}" + (f"?{self._query}" if self._query else "")
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "clusterq"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        for header, value in self._headers.items():
            request.add_unredirected_header(header, value)
        with self._errors(name):
            try:
                answer = self._opener.open(request, timeout=self._patience)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416 and start:  # nothing lies behind `start`: the file there is another one
                    answer = None
                else:
                    raise
        if answer is None:
            with self.open(name) as stream:
                yield stream
            return
        with answer:
            begin, size = self._extent(answer, start)
            yield Stream(begin, size, answer.headers.get("Last-Modified"), self._chunks(answer, name))

    def _extent(self, answer: Any, asked: int) -> tuple[int, int | None]:
        """Return the first byte of an answer and the size of the whole file."""
        if answer.status == 206:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if match is not None and int(match[1]) == asked:
                return asked, None if match[2] == "*" else int(match[2])
            raise ClusterqError(
                f"{self.shown}: the server sent another part of a file than byte {asked} and on; try another address."
            )
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if _LENGTH.fullmatch(length) else None

    def _chunks(self, answer: Any, name: str) -> Iterator[bytes]:
        while True:
            with self._errors(name):
                chunk = answer.read1(CHUNK)  # what has arrived, so that a connection that fails next loses none of it
            if not chunk:
                return
            yield chunk

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn errors into one sentence without the requested address, which may hold credentials."""
        try:
            yield
        except urllib.error.HTTPError as error:
            if error.code in {404, 410}:
                raise NotThereError(
                    f"{self.shown}: the server has no {name} there ({error.code}), expected a finished set; check the address."
                ) from None
            if error.code in _PASSING:
                raise CutOffError(f"{self.shown}: the server cannot send {name} now ({error.code}); try again later.") from None
            advice = "check the address and your credentials for it" if error.code in {401, 403} else "check the address"
            raise ClusterqError(f"{self.shown}: the server refuses {name} ({error.code}); {advice}.") from None
        except _RedirectError as error:
            raise ClusterqError(f"{self.shown}: {name} is redirected {error}; ask who gave you the address.") from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ClusterqError(
                    f"{self.shown}: the server's certificate does not hold ({reason.verify_message}); check the address."
                ) from None
            raise CutOffError(
                f"{self.shown}: the connection failed while {name} was fetched ({_reason(reason)}); try again."
            ) from None
        except (ValueError, OverflowError) as error:  # of Python's client, for addresses that it cannot take apart or encode
            raise ClusterqError(
                f"{self.shown}: {name} cannot be asked for ({type(error).__name__}), expected an address of plain letters, or a redirect to one; "
                "check the address."
            ) from None


class _RedirectError(Exception):
    """Redirect that is refused; its text names the target."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, except to less safe places; credentials stay with the server that they are for."""

    max_redirections = 5

    def __init__(self, base: str, headers: Mapping[str, str], *, allow_http: bool) -> None:
        first = urlsplit(base)
        self._server, self._headers, self._allow_http = (first.scheme, first.netloc), headers, allow_http
        self._begins_here = is_this_machine(first.hostname or "")

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        to = urlsplit(newurl)
        host = to.hostname or ""
        if to.username is not None or not host or to.scheme not in {"https", "http"}:
            raise _RedirectError("to what is no address of a web server, or holds credentials")
        if may_be_this_machine(host) and not self._begins_here:
            raise _RedirectError("to this machine itself")
        if to.scheme != "https" and not (self._allow_http or is_this_machine(host)):
            raise _RedirectError(f"to {host} without encryption")
        further = super().redirect_request(req, fp, code, msg, headers, newurl)
        if further is not None and (to.scheme, to.netloc) == self._server:
            for header, value in self._headers.items():
                further.add_unredirected_header(header, value)
        fp.close()  # urllib would read all of what comes with the redirect, however much that is
        return further


def _opener(base: str, headers: Mapping[str, str], *, allow_http: bool) -> urllib.request.OpenerDirector:
    """Return a client for http and https alone. urllib's default one also reads files and FTP servers."""
    opener = urllib.request.OpenerDirector()
    # Requests to this machine bypass the proxy.
    proxy = urllib.request.ProxyHandler({} if is_this_machine(urlsplit(base).hostname or "") else None)
    for handler in (
        proxy,
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(base, headers, allow_http=allow_http),
    ):
        opener.add_handler(handler)
    return opener


def _reason(reason: object) -> str:
    """Return the system's message; of any other error the type alone, because its text may quote the address."""
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return "no answer in time" if isinstance(reason, TimeoutError) else type(reason).__name__
