"""What every package of tunesmith stands on: errors, the method registry, files, seeds and the event log."""
