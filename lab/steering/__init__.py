"""Steering: pin, replace or blank tokens, and branch from any step."""
