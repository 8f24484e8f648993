"""A page to look at a database with: prompts token by token, facts, generations, the gate. Needs the extra `serve`; a
page that is written to a file (`rendering.page_of`) does not."""

from __future__ import annotations
