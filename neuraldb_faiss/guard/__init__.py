"""Names in texts: what tokens say, and whether a fact can be heard in its own prompt."""
