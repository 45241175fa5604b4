"""procserver: serving of recommendation models with feature generation."""

__version__ = "0.1.0"
