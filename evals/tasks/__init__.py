"""lm-eval tasks: their definitions, their data, and how answers are scored."""
