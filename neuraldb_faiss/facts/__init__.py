"""Facts: what they are, how they are read, how they are folded."""

from .fact import Fact
from .fold import ON_CONFLICT, Folded, fold
from .readers import FORMATS, BadRecord, read_facts

__all__ = ["FORMATS", "ON_CONFLICT", "BadRecord", "Fact", "Folded", "fold", "read_facts"]
