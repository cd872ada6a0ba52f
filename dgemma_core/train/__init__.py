"""Training: loss, batches, optimiser, distillation."""
