"""Look inside models and data: novelty, backdoors, drift. No method works yet; see `tunesmith papers list`."""
