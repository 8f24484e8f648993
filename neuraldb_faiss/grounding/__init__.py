"""Facts that a text names, said in the text."""

from neuraldb_faiss.grounding.ground import Grounded, Grounder
from neuraldb_faiss.grounding.wording import Wording

__all__ = ["Grounded", "Grounder", "Wording"]
