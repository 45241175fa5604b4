"""Feature Generator: raw columns to the tensors that a model was trained on."""

from procserver.fg.generator import FeatureGenerator, SequenceJoin

__all__ = ["FeatureGenerator", "SequenceJoin"]
