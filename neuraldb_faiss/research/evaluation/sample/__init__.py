"""Facts about well-known subjects and a page of ordinary text: what `tune-layer` tries where nothing is given."""

from pathlib import Path

FACTS = Path(__file__).with_name("facts.jsonl")
TEXT = Path(__file__).with_name("text.jsonl")
