"""Datasets of the Hugging Face Hub, or of a server that speaks like it (HF_ENDPOINT)."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import shows_progress
from clusterq_common.run.extras import need
from clusterq_common.sharing.address import Address, parse_address
from clusterq_common.sharing.http import HttpRemote
from clusterq_common.sharing.remote import NotThereError

KIND = "dataset"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def hub_remote(address: Address, *, allow_http: bool) -> tuple[HttpRemote, str | None]:
    """Return a dataset at the commit of its branch or tag, and the date of that commit if known.

    The bytes are fetched over https by `HttpRemote`; the Hub's client gives the commit and the user's token.

    Raises:
        NotThereError: there is no such dataset or revision, or it is not for this user.
        ClusterqError: the client is not installed, or the Hub does not answer.
    """
    api, endpoint = _client(address, allow_http=allow_http)
    with _errors(address):
        about = api.dataset_info(address.path, revision=address.revision)
    commit = str(about.sha)
    if not _COMMIT.fullmatch(commit):  # it becomes part of addresses, and of records
        raise ClusterqError(f"{address}: the Hub names no commit ({commit[:60]!r}), expected one; check HF_ENDPOINT.")
    changed = getattr(about, "last_modified", None)
    token = import_module("huggingface_hub.utils").build_hf_headers().get("authorization")
    shown = f"hf://datasets/{address.path}@{commit}"
    remote = HttpRemote(
        f"{endpoint}/datasets/{address.path}/resolve/{commit}",
        shown,
        revision=commit,
        headers={"Authorization": token} if token else {},
        allow_http=allow_http,
    )
    return remote, changed.isoformat() if changed is not None else None


class HubFolder:
    """Dataset to which sets are sent."""

    def __init__(self, address: Address, *, allow_http: bool, public: bool, before: str | None) -> None:
        """Name the dataset, and `before`, the commit that was inspected. A later commit of someone else is not overwritten."""
        self.shown = str(address)
        self._address, self._public, self._before = address, public, before
        self._api, _ = _client(address, allow_http=allow_http)

    def send(self, files: list[Path], last: list[Path], gone: list[str], parallel: int) -> None:
        """See `Writable.send`. All files of a set appear in one commit, so no reader sees part of it.

        A new dataset is private unless this was made `public`; an existing one stays as it is.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if not shows_progress():
            import_module("huggingface_hub.utils").disable_progress_bars()
        repo, revision = self._address.path, self._address.revision
        with _errors(self._address):
            if self._before is None:
                self._api.create_repo(repo, repo_type=KIND, private=not self._public, exist_ok=True)
            added = [CommitOperationAdd(path.name, path) for path in [*files, *last]]
            self._api.create_commit(
                repo,
                [*added, *(CommitOperationDelete(name) for name in gone)],
                commit_message="Shards of clusterq",
                repo_type=KIND,
                revision=revision,
                parent_commit=self._before,
                num_threads=parallel,
            )


def _client(address: Address, *, allow_http: bool) -> tuple[Any, str]:
    need("huggingface_hub", str(address), "hub")
    from huggingface_hub import HfApi, constants

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parse_address(endpoint, allow_http=allow_http, setting=None)
    except ClusterqError as error:
        raise ClusterqError(f"HF_ENDPOINT: {error}") from error
    return HfApi(endpoint=endpoint, library_name="clusterq"), endpoint


@contextmanager
def _errors(address: Address) -> Iterator[None]:
    """Turn errors into one sentence. The client's own texts quote addresses and are pages long."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise NotThereError(
            f"{address}: the Hub shows you no such dataset or revision; check the address, and `hf auth login` (or HF_TOKEN) where it is private."
        ) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no code")
        advice = "log in with `hf auth login` or set HF_TOKEN" if status in {401, 403} else "try again later"
        raise ClusterqError(f"{address}: the Hub refuses ({status}); {advice}.") from None
    except ClusterqError:
        raise
    except Exception as error:  # of the client's transports: none of them is a defect of clusterq's
        raise ClusterqError(
            f"{address}: the Hub, or its client, failed ({type(error).__name__}); check the connection (and HF_ENDPOINT), then try again."
        ) from None
