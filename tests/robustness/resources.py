"""What a call costs: processor time and memory."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextlib.contextmanager
def limited(*, seconds: float, megabytes: float) -> Iterator[None]:
    """Fails if the block takes more processor time, or more memory at any moment beyond what was in use before.

    Memory is measured on Linux only.
    """
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")  # the peak becomes what is in use now
    before, start = _kilobytes("VmRSS"), time.process_time()
    yield
    took, used = time.process_time() - start, (_kilobytes("VmHWM") - before) / 1024
    assert took <= seconds, f"{took:.1f} s"
    assert used <= megabytes, f"{used:.0f} MB"


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) if found else 0
