"""Architectures that papers bring. No method works yet; see `tunesmith papers list`."""
