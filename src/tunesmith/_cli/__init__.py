"""What the command line does behind its verbs; imported by `tunesmith.cli` when a verb runs."""
