"""Measures speed and memory, beside public implementations and against a card's limits."""
