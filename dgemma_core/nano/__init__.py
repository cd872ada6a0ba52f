"""The small trained model: its weights, its tasks, how it was made."""
