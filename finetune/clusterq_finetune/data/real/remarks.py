"""Remarks of a reader of images: things skipped, reordered or guessed, counted, the first few named."""

from collections.abc import Iterable

from clusterq_common.settings import Settings

NAMES_SHOWN = 10


class Remark(Settings):
    """One kind of thing that a reader skipped, reordered or guessed.

    Attributes:
        what: in words, as "no known image file, skipped".
        count: how many it is about.
        names: the first of them, at most ten.
    """

    what: str
    count: int
    names: list[str]

    @classmethod
    def of(cls, what: str, names: Iterable[str]) -> "Remark":
        """Return a remark on everything in `names`, in their order."""
        listed = list(names)
        return cls(what=what, count=len(listed), names=listed[:NAMES_SHOWN])

    def line(self) -> str:
        """Return the remark as one line."""
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.what}: {self.count} ({', '.join(self.names)}{more})"
