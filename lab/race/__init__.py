"""The race: runs on one prompt, replayed on one clock."""
