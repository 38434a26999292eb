"""Work behind a GPU's: what is drawn is decoded and written while the next batch is drawn."""

from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch


Work = Callable[[], None]


class Background:
    """Does one piece of work at a time, in the order given, while the program goes on.

    So what it holds is bounded: the piece under way, and what the program itself works on.
    """

    def __init__(
        self, executor: Executor | None, prepare: Callable[[Work], Work] = lambda work: work
    ) -> None:
        """Begin.

        Args:
            executor: Where work is done; None does it at once.
            prepare: Is called with each piece in the program's own thread, and returns what to do.
        """
        self._executor = executor
        self._prepare = prepare
        self._under_way: Future[None] | None = None

    def submit(self, work: Work) -> None:
        """Begin a piece of work as soon as the one before is done.

        Raises:
            Exception: whatever the one before (or, without an executor, this one) has raised.
        """
        self.wait()
        if self._executor is None:
            work()
        else:
            self._under_way = self._executor.submit(self._prepare(work))

    def wait(self) -> None:
        """Wait for what is under way.

        Raises:
            Exception: whatever it has raised.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


@contextmanager
def background(device: torch.device) -> Generator[Background]:
    """Yield what does work for a device; all of it is done at the end.

    For a GPU it is a thread with a stream of its own: decoding fills the gaps that the many small
    operations of the denoiser leave, and the copy to the host, the check for nan and the writing of
    files make the next batch wait for nothing. A CPU has no gaps: there, work is done at once.
    """
    if device.type != "cuda":
        yield Background(None)
        return
    stream = torch.cuda.Stream(device)

    def prepare(work: Work) -> Work:
        made = torch.cuda.current_stream(device).record_event()

        def run() -> None:
            with torch.cuda.stream(stream):
                stream.wait_event(made)
                work()
                stream.synchronize()  # then the memory that was read may be used again

        return run

    with ThreadPoolExecutor(1, "decode") as executor:
        behind = Background(executor, prepare)
        yield behind
        behind.wait()
