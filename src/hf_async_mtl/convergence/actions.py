"""What happens to a task that has converged: one entry of `ACTIONS` each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["waiting", "learning", "distilling", "stopped"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, kw_only=True)
class Action:
    """What happens to a task at its convergence and afterwards.

    Args:
        phase: The phase afterwards.
        records_teacher: Whether the logits of the task's best weights are recorded.
        rolls_back: Whether all weights return to the task's best, so that the other tasks lose what they have learned
            since.
    """

    phase: Phase
    records_teacher: bool = False
    rolls_back: bool = False

    @property
    def needs_snapshot(self) -> bool:
        """Whether the weights of the task's best step must be kept while it learns."""
        return self.records_teacher or self.rolls_back


ACTIONS: dict[str, Action] = {
    # Lu et al., "Asynchronous Convergence in Multi-Task Learning ...", NAACL 2022 Industry Track.
    "distill": Action(phase="distilling", records_teacher=True),
    "stop": Action(phase="stopped"),
    "continue": Action(phase="learning"),
    # mSFT, arXiv 2603.21606: the task that overfits first leaves the mixture, and the run goes on from its best. Steps
    # and the learning-rate schedule go on, where mSFT starts a new search from the weights that it returns to.
    "rollback": Action(phase="stopped", rolls_back=True),
}
