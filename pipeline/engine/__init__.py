"""Ways to run tasks: the same tasks, the same bytes."""
