"""Bytes of a request to typed columns and tensors, and scores to bytes."""
