"""The embedded small world: a corpus, prompts, facts and simulated labelers, all from one seed."""
