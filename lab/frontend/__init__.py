"""What the front ends of all widgets share: scripts put together, pages, visible text."""
