"""Signals that ask a run to stop: recorded by a handler, synchronized over processes, acted upon between two steps."""

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any

from gfl.common.errors import Interrupted
from gfl.common.output import can_write, stop_waiting_for_readers

# Ctrl-C, a scheduler's end of a job, its warning before, and the end of the terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """Records the first of `signals` instead of ending the process; after that, Ctrl-C ends it at once.

    Create it before the heavy imports, so that no signal is missed. Its own imports are inside methods, so that this
    module is light.
    """

    def __init__(self, signals: Sequence[int] = SIGNALS) -> None:
        self.signum = 0
        self._group, self._pending = None, None
        for signum in signals:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup lets it be ignored
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: Any) -> None:
        if self.signum:
            return
        self.signum = signum
        stop_waiting_for_readers()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # handled by the system: Python may be waiting for another process
        if os.environ.get("RANK", "0") == "0":
            name = signal.Signals(signum).name
            line = f"\n{name}: stopping as soon as possible; Ctrl-C now stops at once\n"
            with contextlib.suppress(OSError):  # the reader of a pipe may be gone, a terminal closed
                if can_write(2):
                    os.write(2, line.encode())  # print is not for signal handlers

    def raise_if_received(self) -> None:
        """Raise `Interrupted` once this process has received a signal; for waiting before the others are involved."""
        if self.signum:
            raise Interrupted(self.signum)

    def synced_signal(self) -> int:
        """The signal that any process received, or 0; all processes call this equally often and get the same answer.

        With several processes it is the result of the previous call, which has arrived, so that none waits for another.
        """
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            return self.signum
        if self._group is None:  # on the host, so that nothing waits for a GPU
            self._group = dist.new_group(backend="gloo")
        received = torch.tensor(self.signum)
        work = dist.all_reduce(received, dist.ReduceOp.MAX, group=self._group, async_op=True)
        previous, self._pending = self._pending, (work, received)
        if previous is None:
            return 0
        previous[0].wait()
        return int(previous[1])
