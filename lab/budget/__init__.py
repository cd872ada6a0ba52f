"""The entropy budget: what the entropy-bound sampler accepts at a step, and why."""
