"""The embedded small world: a corpus, prompts, facts and simulated labelers, all from one seed."""

from instructgpt.world.labelers import SimulatedLabelers
from instructgpt.world.utility import MAX_UTILITY, Judgement
from instructgpt.world.world import Question, World

__all__ = ["MAX_UTILITY", "Judgement", "Question", "SimulatedLabelers", "World"]
