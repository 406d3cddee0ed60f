"""The embedded small world: corpus, prompts, facts and simulated labelers, all from one seed."""

from instructgpt.world.labelers import SimulatedLabelers
from instructgpt.world.utility import MAX_UTILITY, CompletionJudgment
from instructgpt.world.world import FactQuestion, World

__all__ = ["MAX_UTILITY", "CompletionJudgment", "FactQuestion", "SimulatedLabelers", "World"]
