"""Named experiments: configs in, run records out."""
