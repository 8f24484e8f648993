"""Index kinds: name, one line of help, options, and where each is opened.

Options of the command line, help texts and errors read this table. Another package adds a kind by an entry point in the
group `neuraldb_faiss.index_kinds`, whose object is an `IndexKind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from neuraldb_faiss.config import IndexConfig
from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.registry import Registry, load

if TYPE_CHECKING:
    from neuraldb_faiss.index.base import Searcher

AUTO = "auto"
DEFAULT = "flat"  # exact


@dataclass(frozen=True, slots=True)
class IndexKind:
    """One way to search keys.

    Attributes:
        name: as in `--index NAME`, and in a database's settings.
        help: in one line.
        target: "module:attribute", called as `attribute(source, place, **options)` with a `base.KeySource` and a
            `base.Place`. It returns a `base.Searcher` that holds the first keys of the source, or none; whoever asked
            adds the others.
        options: name -> help; each is a whole number of at least 1, and may be left out.
    """

    name: str
    help: str
    target: str
    options: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Callable[..., Searcher]:
        """What opens it."""
        opener: Callable[..., Searcher] = load(self.target)
        return opener


REGISTRY = Registry(
    "index kind",
    "neuraldb_faiss.index_kinds",
    (
        IndexKind("flat", "every key, exactly", "neuraldb_faiss.index.flat:open_flat"),
        IndexKind(
            "ivf",
            "keys in lists around centroids, of which the nearest are searched",
            "neuraldb_faiss.index.ivf:open_ivf",
            {
                "nlist": "number of lists. [default: by the number of keys]",
                "nprobe": "lists searched. [default: by the number of lists]",
            },
        ),
        IndexKind(
            "sketch",
            "a short projection of every key picks candidates, the stored keys decide",
            "neuraldb_faiss.index.sketch:open_sketch",
        ),
    ),
    SearchError,
)


def names() -> tuple[str, ...]:
    """What a user may ask for: "auto", which is the default kind, and every kind."""
    return (AUTO, *REGISTRY.kinds)


def checked(index: IndexConfig) -> IndexConfig:
    """`index` under the kind's own name. Raises SearchError as `check_kind`."""
    return replace(index, kind=check_kind(index.kind, index.options))


def check_kind(kind: str, options: Mapping[str, int] | None = None) -> str:
    """The kind's own name: that of the default for "auto".

    Args:
        kind: one of `names()`.
        options: for the kind, by name.

    Raises:
        SearchError: an unknown kind, an option that the kind does not have, or a value below 1.
    """
    row = REGISTRY[DEFAULT if kind == AUTO else kind]
    for name, value in (options or {}).items():
        if name not in row.options:
            owners = [other for other in REGISTRY.kinds.values() if name in other.options]
            if not owners:
                raise SearchError(f"no index kind has an option {name!r}: leave it out")
            raise SearchError(
                f"{' and '.join(owners[0].options)} belong to the index kind {owners[0].name!r}: ask for it, or leave"
                " them out"
            )
        if type(value) is not int or value < 1:
            raise SearchError(f"{name} is {value!r}: it must be a whole number of at least 1")
    return row.name
