"""DiffusionGemma in lm-eval: its models, its likelihoods, and the records of a run."""
