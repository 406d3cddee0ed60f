"""A stage that is stopped between a step and its checkpoint."""

from instructgpt.run import directory as run_module
from instructgpt.run.directory import RunDirectory


def stop_at(monkeypatch, steps):
    """Ctrl-C just after step number `steps` was logged, before its checkpoint; every earlier step has one."""
    log = RunDirectory.log

    def logged(self, step, *rest, **options):
        log(self, step, *rest, **options)
        if step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(RunDirectory, "log", logged)
