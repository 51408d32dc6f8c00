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
        loss_every: Where ``phase`` is ``stopped``: the task's loss counts at every n-th optimizer step; 0: never. No
            effect in the other phases, where every step counts.
        return_below: Default of the setting of that name, a share of the best score; None: never.
    """

    phase: Phase
    records_teacher: bool = False
    rolls_back: bool = False
    loss_every: int = 1
    return_below: float | None = None

    @property
    def needs_snapshot(self) -> bool:
        """Whether the weights of the task's best step must be kept while it learns."""
        return self.records_teacher or self.rolls_back


ACTIONS: dict[str, Action] = {
    # Lu et al., "Asynchronous Convergence in Multi-Task Learning ...", NAACL 2022 Industry Track.
    "distill": Action(phase="distilling", records_teacher=True),
    "stop": Action(phase="stopped", loss_every=0),
    "continue": Action(phase="learning"),
    # mSFT, arXiv 2603.21606: the task that overfits first leaves the mixture, and the run goes on from its best. Steps
    # and the learning-rate schedule go on, where mSFT starts a new search from the weights that it returns to.
    "rollback": Action(phase="stopped", rolls_back=True, loss_every=0),
    # Lu et al., "12-in-1: Multi-Task Vision and Language Representation Learning", CVPR 2020: a stopped task is still
    # trained at every 4th step, and at every step again once it has lost 0.5 % of its best. The criterion decides when
    # it stops.
    "stop_and_go": Action(phase="stopped", loss_every=4, return_below=0.995),
}
