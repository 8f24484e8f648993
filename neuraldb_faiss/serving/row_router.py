"""Which database answers which row of a forward, and what fired there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.rows import Row
from neuraldb_faiss.serving.tenants import Tenant


class RowRouter:
    """Gives each database the rows that are its own, for one forward after the other."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rows: Sequence[Row] = ()
        self._hits: dict[Tenant, int] = {}  # of the databases that answer, as they were before

    def route(self, rows: Sequence[Row]) -> None:
        """The next forwards are of these rows, in this order; those that have ended fire nothing."""
        self.silence()
        mine: dict[Tenant, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            if row.ask.tenant is not None and row.ask.fires and row.reason is None:
                mine[row.ask.tenant].append(number)
        self._rows = rows
        for tenant, numbers in mine.items():
            self._hits[tenant] = tenant.hits
            tenant.answer(numbers, len(rows))

    def collect(self) -> None:
        """Count what fired since `route`, and hand it to the rows that are to tell it."""
        for tenant, before in self._hits.items():
            if (fired := tenant.hits - before) == 0:
                continue
            self._hits[tenant] += fired
            self._metrics.fired(tenant, fired)
            for fire in tenant.trace():
                row = self._rows[fire.sequence]
                if row.ask.explain:
                    row.fires.append(fire)
            tenant.clear_trace()

    def silence(self) -> None:
        """No database answers anything."""
        for tenant in self._hits:
            tenant.answer((), 0)
            tenant.clear_trace()
        self._hits, self._rows = {}, ()
