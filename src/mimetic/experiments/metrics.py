"""What a run is judged by: the column of its curve, how it is shown, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """A last-epoch metric of the curve."""

    column: str  # of the curve and of load_runs
    name: str  # as on an axis
    unit: str = ""  # of the shown value, as on an axis
    difference: str = ""  # what a difference of shown values is counted in
    scale: float = 1.0  # shown value = scale * stored value
    digits: int = 3  # of the shown value
    lower_is_better: bool = False

    def show(self, entry: Mapping[str, float]) -> str:
        """Name and value of an entry of a curve: "test accuracy 61.25 %"."""
        return (
            f"{self.name} {self.scale * entry[self.column]:.{self.digits + 1}f}{f' {self.unit}' if self.unit else ''}"
        )

    def level(self, value: float) -> str:
        """A stored value as shown: "61.2 %"."""
        return f"{self.scale * value:.{self.digits}f}{f' {self.unit}' if self.unit else ''}"

    def signed(self, difference: float) -> str:
        """A difference of two stored values as shown, with its sign; none where a loss is too small to be shown."""
        shown = f"{self.scale * difference:+.{self.digits}f}"
        return shown.replace("-", "−" if float(shown) else "")

    def span(self, low: float, high: float) -> str:
        """An interval of differences as shown: "+0.1 to +0.3"; with a digit more where an end would be shown as 0 and
        is not; in words where there is none, as of one pair."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return "no interval"
        finer = any(end and not round(self.scale * end, self.digits) for end in (low, high))
        shown = replace(self, digits=self.digits + 1) if finer else self
        return f"{shown.signed(low)} to {shown.signed(high)}"

    def shown(self, mean: float, low: float, high: float, more: str = "") -> str:
        """A mean of differences of stored values with its interval as shown, and more: "+0.2 (+0.1 to +0.3)"; the mean
        alone where there is no interval, as of one pair."""
        return f"{self.signed(mean)} ({self.span(low, high)}{more})" if math.isfinite(low) else self.signed(mean)

    def better(self, difference: float) -> bool:
        """Whether an arm that differs by this from its reference is ahead."""
        return difference < 0 if self.lower_is_better else difference > 0


ACCURACY = Metric("test_accuracy", "test accuracy", "%", "points", scale=100, digits=1)
