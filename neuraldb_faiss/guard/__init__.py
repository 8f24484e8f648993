"""Names in text: which tokens may fire, and which facts their own prompt cannot reach."""
