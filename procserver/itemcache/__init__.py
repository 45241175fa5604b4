"""Item features, built once per machine and read by every worker."""
