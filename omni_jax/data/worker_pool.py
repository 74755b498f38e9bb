"""Processes that hold one function and call it: what data workers and conversions share."""

from collections.abc import Callable
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing
from typing import Any

from omni_jax.errors import UserError


class Pool:
  """Calls a function in processes of their own; results are asked for early and taken in any order.

  Args:
    function: sent to every process once, so it must pickle.
    timeout: seconds to wait for one result.
    died, hangs: what to tell the user when a process ends, or makes nothing for so long.
  """

  def __init__(
    self,
    function: Callable[[Any], Any],
    count: int,
    *,
    timeout: float,
    died: str,
    hangs: str,
  ):
    self._timeout, self._died, self._hangs = timeout, died, hangs
    context = multiprocessing.get_context(
      'spawn'
    )  # a fork would copy the locks of jax's threads
    self._pool = concurrent.futures.ProcessPoolExecutor(
      count, context, _Process.start, (function,)
    )

  def ask(self, argument: Any) -> concurrent.futures.Future:
    try:
      return self._pool.submit(_Process.call, argument)
    except BrokenProcessPool as error:
      raise UserError(self._died) from error

  def get(self, asked: concurrent.futures.Future) -> Any:
    """The result; an error of the function is raised here.

    Raises:
      UserError: if a process has died or hangs; it is not waited for.
    """
    try:
      return asked.result(self._timeout)
    except BrokenProcessPool as error:
      raise UserError(self._died) from error
    except TimeoutError as error:
      for process in list(
        self._pool._processes.values()
      ):  # a hanging one would be waited for at exit
        process.kill()
      raise UserError(self._hangs) from error

  def close(self) -> None:
    self._pool.shutdown(wait=False, cancel_futures=True)


class _Process:
  """What one of the processes knows."""

  function: Callable[[Any], Any] | None = None

  @classmethod
  def start(cls, function: Callable[[Any], Any]) -> None:
    cls.function = staticmethod(function)

  @classmethod
  def call(cls, argument: Any) -> Any:
    return cls.function(argument)
