"""Times as they are typed."""

from __future__ import annotations

import pytest

from fastdqn.config import Config
from fastdqn.errors import UsageError
from fastdqn.foundation.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1h", 3600.0), ("1.5m", 90.0)]
)
def test_a_time_has_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert Config(checkpoint_every=text).checkpoint_every == text


@pytest.mark.parametrize(
    "text",
    ["", "10", "m", "-1m", "0m", "0.0h", "1 m", "1m ", "1d", "1m30s", "1e3s", "nans", "٣m", "1\n"],
)
def test_all_else_is_refused_with_the_flag_and_an_example(text: str) -> None:
    assert seconds_of(text) is None
    with pytest.raises(UsageError, match=r"--checkpoint-every .*as 90s, 10m or 1h\. The default"):
        Config(checkpoint_every=text)
