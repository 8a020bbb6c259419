"""Clustering as scikit-learn estimators. No method works yet; see `tunesmith papers list`."""
