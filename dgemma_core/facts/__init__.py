"""Facts that several rooms need: this machine, published shapes, what a model costs and holds."""
