"""What scores: export directories, TorchScript modules, devices."""
