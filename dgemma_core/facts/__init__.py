"""Facts that several rooms need: this machine, released shapes."""
