"""Measures and compares: lm-eval models and tasks, timing, statistics, reports."""
