"""The command line and the terminal's view."""
