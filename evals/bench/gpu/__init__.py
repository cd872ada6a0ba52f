"""The released shape on one GPU: steps and tokens against the card's limits."""
