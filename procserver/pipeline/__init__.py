"""predict(): decode -> gather -> generate -> run -> encode.

The five words name the stages in code, logs, metrics, docs and tests. What joins
the sibling rooms is composed here.
"""

from procserver.pipeline.answer import Pipeline, Reply
from procserver.pipeline.bypass import BypassPipeline
from procserver.pipeline.ranking import RankingPipeline

__all__ = ["BypassPipeline", "Pipeline", "RankingPipeline", "Reply"]
