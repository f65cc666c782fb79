"""Folders in buckets (s3://, gs://), through fsspec."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import progress
from clusterq_common.run.extras import need
from clusterq_common.sharing.address import Address
from clusterq_common.sharing.remote import CutOffError, NotThereError, Stream

DRIVERS = {"s3": "s3fs", "gs": "gcsfs"}
# Bytes of one request: so many that the time between two requests hardly counts.
PART = 8 << 20


class ObjectRemote:
    """Folder in a bucket. Credentials and a custom server come from the environment, as for the service's own tools."""

    revision: str | None = None

    def __init__(self, address: Address) -> None:
        need("fsspec", str(address), "remote")
        need(DRIVERS[address.scheme], str(address), "remote")
        import fsspec

        self.shown = str(address)
        self._folder = f"{address.host}/{address.path}".rstrip("/")
        with self._errors("the bucket"):
            # Listings are not cached, so that files sent by another program are seen.
            self._files: Any = fsspec.filesystem(address.scheme, use_listings_cache=False)

    @contextmanager
    def open(self, name: str, start: int = 0) -> Iterator[Stream]:
        """See `Remote.open`."""
        path = f"{self._folder}/{name}"
        with self._errors(name):
            about = self._files.info(path)
        size = int(about["size"])
        begin = start if start <= size else 0
        changed = about.get("LastModified") or about.get("updated")
        yield Stream(begin, size, str(changed) if changed else None, self._parts(path, name, begin, size))

    def _parts(self, path: str, name: str, start: int, size: int) -> Iterator[bytes]:
        for begin in range(start, size, PART):
            with self._errors(name):
                part = self._files.cat_file(path, start=begin, end=min(begin + PART, size))
            yield part

    def send(self, files: list[Path], last: list[Path], gone: list[str], parallel: int) -> None:
        """See `Writable.send`."""

        def put(path: Path) -> None:
            with self._errors(path.name):
                self._files.put_file(str(path), f"{self._folder}/{path.name}")

        sizes = [path.stat().st_size // 1000 for path in files]
        with progress("sending (kB)", sum(sizes)) as ticker, ThreadPoolExecutor(parallel) as pool:
            for size, _ in zip(sizes, pool.map(put, files), strict=True):
                ticker.advance(size)
        for path in last:
            put(path)
        for name in gone:
            with self._errors(name):
                self._files.rm_file(f"{self._folder}/{name}")

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn errors into one sentence. Drivers' texts may quote addresses, so the type of the error is named alone."""
        try:
            yield
        except FileNotFoundError:
            raise NotThereError(f"{self.shown}: there is no {what}, expected a finished set; check the address.") from None
        except PermissionError:
            raise ClusterqError(
                f"{self.shown}: the service refuses {what}; check the address and your credentials for it (environment)."
            ) from None
        except ClusterqError:
            raise
        except Exception as error:  # of botocore, aiohttp, google-auth ...: none of them is a defect of clusterq's
            raise CutOffError(
                f"{self.shown}: {what} could not be reached ({type(error).__name__}); check credentials and connection, then try again."
            ) from None
