"""Which names a server answers to, and which pages may ask it.

A page in a browser can have its own name resolved to this machine (DNS rebinding) and then reads what it likes; but its
requests still carry that name as their Host. And it can send requests without reading the answers; but these carry the
page's Origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from neuraldb_faiss.errors import ServeError

ANY = "*"
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/@?#]+)(?::[0-9]*)?")
_NAME = re.compile(r"[^\s\[\]:/@?#*]+")
_PAGE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@*]+")
_ORIGIN = re.compile(r"https?://(.+)", flags=re.IGNORECASE)


@dataclass(frozen=True)
class Hosts:
    """Names and addresses by which a server may be asked; those of loopback always.

    Attributes:
        own: of the address it is bound to. given: what was allowed besides. every_address: any address (not any name)
            will do, for it is bound to all of them. everything: nothing is checked. origins: of pages that may ask, as
            in "https://app.example.org".
    """

    own: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    every_address: bool = False
    everything: bool = False
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, host: str, bound: str, given: Iterable[str] = (), origins: Iterable[str] = ()) -> Hosts:
        """host: what the server was told to serve on. bound: the address that is. given: names, or "*". origins: of
        pages on other sites that may ask, or "*".

        Raises ServeError: one is no name and no address, or no origin.
        """
        for one in origins:
            if one != ANY and not _PAGE.fullmatch(one):
                raise ServeError(
                    f"--cors {one}: give an origin, scheme://host or scheme://host:port, or {ANY!r} for all"
                )
        for one in given:
            if one != ANY and _address(one) is None and not _NAME.fullmatch(one):
                raise ServeError(
                    f"--allowed-host {one}: give a name or an address as it stands in a URL, without scheme and port,"
                    f" or {ANY!r} for all"
                )
        names = {_bare(one) for one in given}
        own = frozenset(_bare(one) for one in (host, bound))
        address = _address(bound)
        wildcard = address is not None and address.is_unspecified
        asking = frozenset(one.lower() for one in origins)
        return cls(own, frozenset(names - {ANY}), wildcard, ANY in names, asking)

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server. An address cannot be rebound, so that any loopback one will do."""
        name = _normal(host)
        if self.everything or name in self.own or name in self.given:
            return True
        if name is None:
            return False
        address = _address(name)
        return name == "localhost" if address is None else self.every_address or address.is_loopback

    def trusts(self, origin: str, host: str | None) -> bool:
        """Whether an Origin header is that of a page of this server (asked as `host`), or of a name that was given."""
        found = _ORIGIN.fullmatch(origin)
        if self.everything or not self.origins.isdisjoint((ANY, origin.lower())):
            return True
        if found is None:
            return False
        return (host is not None and found[1].lower() == host.lower()) or _normal(found[1]) in self.given


def _normal(authority: str) -> str | None:
    """The host of "host:port" in one spelling; None where there is none."""
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else _bare(found[1])


def _bare(host: str) -> str:
    address = _address(host)
    return str(address) if address is not None else host.lower().removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
