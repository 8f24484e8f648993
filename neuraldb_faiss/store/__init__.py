"""A database on disk: a catalog (SQLite), segments (memory-mapped arrays), one writer, many readers."""

from neuraldb_faiss.store.catalog import FIRING, Catalog
from neuraldb_faiss.store.copy import copy
from neuraldb_faiss.store.fact_filter import WAITING
from neuraldb_faiss.store.maintenance import compact, rollback
from neuraldb_faiss.store.merge import Merged, merge_into, merge_staged
from neuraldb_faiss.store.records import Generation, StoredFact
from neuraldb_faiss.store.repair import Repaired, repair
from neuraldb_faiss.store.schema import FORMAT
from neuraldb_faiss.store.segments import Rows, Segment, SegmentRecord
from neuraldb_faiss.store.snapshot import Snapshot
from neuraldb_faiss.store.staging import Piece, stage_pieces
from neuraldb_faiss.store.store import Store, check_new
from neuraldb_faiss.store.transaction import Transaction
from neuraldb_faiss.store.verify import Problem, verify

__all__ = [
    "FIRING", "FORMAT", "WAITING", "Catalog", "Generation", "Merged", "Piece", "Problem", "Repaired", "Rows", "Segment",
    "SegmentRecord", "Snapshot", "Store", "StoredFact", "Transaction", "check_new", "compact", "copy", "merge_into",
    "merge_staged", "repair", "rollback", "stage_pieces", "verify",
]  # fmt: skip
