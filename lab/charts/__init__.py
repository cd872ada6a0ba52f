"""Charts of a trace, and of the machine: plotly figures."""
