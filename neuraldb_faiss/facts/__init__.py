"""Facts: what they are, how they are read, how they are folded."""

from neuraldb_faiss.facts.deduplicate import ON_CONFLICT, Folded, fold
from neuraldb_faiss.facts.fact import Fact
from neuraldb_faiss.facts.formats import FORMATS
from neuraldb_faiss.facts.readers import BadRecord, read_facts, read_numbered

__all__ = ["FORMATS", "ON_CONFLICT", "BadRecord", "Fact", "Folded", "fold", "read_facts", "read_numbered"]
