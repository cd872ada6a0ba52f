"""Synthetic English for nano: requests that people type, with replies of our own, each beside its verifier."""
