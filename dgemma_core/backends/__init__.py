"""How passes run fast: one protocol, one registry."""
