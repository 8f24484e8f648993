"""Forward hook on one layer that looks up every token in the database.

A token's way on a CPU: `lookup` gets the layer's input, `forward_context` (with `forward_call` and `kv_history`) says
which tokens these are, and one call, `Gate.fired`, goes down into `guard`: `guard.subject` reads the text
(`guard.texts`, `guard.folding`), finds the names that end in it (`guard.name_index`), and `index` compares the keys of
their entries. What comes back is a `guard.gate.Fired`, whose residuals `lookup` adds. On a GPU `Gate.candidates` takes
the place of `fired`, and `index.device_matcher` decides on the device.
"""

from __future__ import annotations

from neuraldb_faiss.hook.attach import Handle, Shown, Site, attach
from neuraldb_faiss.hook.trace import Fire, Trace

__all__ = ["Fire", "Handle", "Shown", "Site", "Trace", "attach"]
