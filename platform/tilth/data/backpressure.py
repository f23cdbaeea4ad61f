"""How far one pool of workers may run ahead of the next. Imports Ray Data's inner parts."""

from __future__ import annotations

from typing import Any

from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data.context import DataContext

AHEAD = "tilth.units_ahead"


class FewUnits(BackpressurePolicy):  # type: ignore[misc]
    """No unit is begun by a pool before which so many wait at the next: Ray Data itself counts bytes, of which our
    units have few, so that a fast pool would have done all before the next has looked at much. A budget would be
    spent before the first unit is committed."""

    def can_add_input(self, op: Any) -> bool:
        """Whether the pool may begin another."""
        ahead = self._data_context.get_config(AHEAD, None)
        later = [after for after in op.output_dependencies if isinstance(after, ActorPoolMapOperator)]
        if ahead is None or not isinstance(op, ActorPoolMapOperator):
            return True
        waiting = (self._topology[after].total_enqueued_input_blocks() for after in later)
        # what is done and was not yet taken on, as where units before it are still in work
        begun = op.num_active_tasks() + op.internal_output_queue_num_blocks()
        return all(begun + count < ahead for count in waiting)


def let_few_wait(context: DataContext, ahead: int | None) -> None:
    """Units that a pool may have in work and before the next one together; None: as Ray Data has it."""
    context.set_config(AHEAD, ahead)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, FewUnits])
