"""Lists the evaluation tasks; each data source names the one that applies to it."""

from collections.abc import Callable

from omni_jax.data.sources.table import DIRECTIONS, EXAMPLES, LOSS
from omni_jax.evaluate.tasks import directions, examples, loss
from omni_jax.evaluate.tasks.task_result import TaskResult

# task(trained, limits, seed=0, log=print) measures a restored run on its own data.
TASKS: dict[str, Callable[..., TaskResult]] = {
  DIRECTIONS: directions.measure,
  LOSS: loss.measure,
  EXAMPLES: examples.measure,
}
