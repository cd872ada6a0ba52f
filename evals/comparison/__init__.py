"""Compares writers on the same documents: turns, statistics, reports."""
