"""The embedded default service: a synthetic shop, its features and its model."""
