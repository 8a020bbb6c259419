"""Clusterers under scikit-learn's contract: import each like ``sklearn.cluster.KMeans``."""
