"""Controls beside a canvas, and boxes that hold widgets."""
