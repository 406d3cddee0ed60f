"""Interrupt a stage between a step and its checkpoint."""

from instructgpt.run import directory as run_module
from instructgpt.run.directory import RunDirectory


def stop_at(monkeypatch, steps):
    """Raise KeyboardInterrupt after step `steps` is logged and before its checkpoint; earlier steps have one."""
    log = RunDirectory.log

    def logged(self, step, *rest, **options):
        log(self, step, *rest, **options)
        if step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(RunDirectory, "log", logged)
