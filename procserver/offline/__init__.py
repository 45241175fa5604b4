"""Feature generation over files and in training, by the service's own generator."""
