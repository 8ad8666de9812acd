"""What a run shows while it trains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

try:
    from tqdm import tqdm
except ImportError:

    class tqdm:  # on a bare GPU machine: the lines without the bar
        disable = True

        def __init__(self, **_: Any) -> None: ...

        def update(self) -> None: ...

        def close(self) -> None: ...

        def write(self, line: str) -> None:
            print(line, flush=True)


if TYPE_CHECKING:
    from mimetic.training.loop import Result


class Progress:
    """A bar with loss, accuracy and time left, and one line an epoch; silent if not wanted."""

    def __init__(self, label: str, step: int, total: int, shown: bool) -> None:
        # disable=None: no bar where the output is a file, only the lines
        self.shown, self.label, self.read = shown, label, 0.0
        self.bar = tqdm(
            total=total, initial=step, desc=label, unit="step", leave=False, dynamic_ncols=True,
            disable=None if shown else True,
        )  # fmt: skip

    def advance(self, sums: dict[str, Tensor], steps: int) -> None:
        self.bar.update()
        if not self.bar.disable and time.monotonic() - self.read > 0.5:  # reading the sums waits for the device
            means = {name: float(value) / steps for name, value in sums.items()}
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
            self.read = time.monotonic()

    def epoch(self, result: Result, epochs: int, unit: str) -> None:
        if self.shown:
            last = result.curve[-1]
            metrics = "  ".join(f"{k} {v:.4f}" for k, v in last.items() if k.startswith(("train_", "test_")))
            took = sum(result.seconds.values())
            self.bar.write(f"{self.label}  epoch {last['epoch']}/{epochs}  {metrics}  lr {last['lr']:.1e}  "
                           f"{result.units_per_second:.0f} {unit}/s  {took:.0f} s")  # fmt: skip

    def close(self) -> None:
        self.bar.close()
