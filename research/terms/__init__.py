"""Terms that an objective adds to the loss of a task."""
