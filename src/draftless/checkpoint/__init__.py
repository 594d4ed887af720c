"""Where a checkpoint is, and how its parts are read."""
