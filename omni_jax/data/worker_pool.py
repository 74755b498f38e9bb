"""A pool of processes that call one function, for data workers and conversions."""

from collections.abc import Callable
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing
from typing import Any

from omni_jax.errors import UserError


class WorkerPool:
  """Calls a function in other processes.

  Results can be requested early and taken in any order.

  Args:
    function: function to call; it is sent to every process once, so it must pickle.
    count: number of processes.
    timeout: seconds to wait for one result.
    died_message: message for the user when a process ends.
    hang_message: message for the user when no result arrives within `timeout`.
  """

  def __init__(
    self,
    function: Callable[[Any], Any],
    count: int,
    *,
    timeout: float,
    died_message: str,
    hang_message: str,
  ):
    self._timeout = timeout
    self._died_message = died_message
    self._hang_message = hang_message
    # Not a fork, which would copy the locks of jax's threads.
    context = multiprocessing.get_context('spawn')
    self._pool = concurrent.futures.ProcessPoolExecutor(
      count, context, _Process.start, (function,)
    )

  def submit(self, argument: Any) -> concurrent.futures.Future:
    """Requests a call of the function; `result` returns what it returned.

    Raises:
      UserError: if a process has died.
    """
    try:
      return self._pool.submit(_Process.call, argument)
    except BrokenProcessPool as error:
      raise UserError(self._died_message) from error

  def result(self, request: concurrent.futures.Future) -> Any:
    """Returns the result of a requested call; an error of the function is raised here.

    Raises:
      UserError: if a process has died or hangs; a hanging process is killed.
    """
    try:
      return request.result(self._timeout)
    except BrokenProcessPool as error:
      raise UserError(self._died_message) from error
    except TimeoutError as error:
      # A process that hangs would be waited for at exit.
      for process in list(self._pool._processes.values()):
        process.kill()
      raise UserError(self._hang_message) from error

  def close(self) -> None:
    self._pool.shutdown(wait=False, cancel_futures=True)


class _Process:
  """Keeps the function of a worker process."""

  function: Callable[[Any], Any] | None = None

  @classmethod
  def start(cls, function: Callable[[Any], Any]) -> None:
    cls.function = staticmethod(function)

  @classmethod
  def call(cls, argument: Any) -> Any:
    assert cls.function is not None
    return cls.function(argument)
