"""An OpenAI-compatible server for a model with databases of facts attached. Needs the extra `serve`."""

from __future__ import annotations
