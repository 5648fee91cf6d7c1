"""The picture holds what was recorded and what was found."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from franca.reproduce import figure
from franca.reproduce.comparison import agreements, points_of
from franca.reproduce.curve import Curve
from franca.reproduce.record import Record
from franca.reproduce.report import Outcome


def test_a_panel_has_every_recorded_seed_the_band_and_this_run(
    make_record: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Figure()
    monkeypatch.setattr(figure, "figure", lambda *_: nullcontext(drawn))
    seeds: list[Curve] = [
        {"loss": {10: 5.0, 20: 4.0}, "patch": {20: 1.0}},
        {"loss": {10: 7.0, 20: 2.0}, "patch": {20: 3.0}},
    ]
    record = make_record(*seeds, loss=0.5, patch=0.25)
    found = agreements(record, points_of(record, {"loss": {10: 6.5, 20: None}}))
    figure.draw(tmp_path / "none.png", Outcome(record, 2, 40, None, found, [], False, False, None))
    loss, patch = drawn.axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines] == [
        *(([10, 20], [5.0, 4.0]), ([10, 20], [7.0, 2.0])),
        ([10], [6.5]),
    ], "two recorded seeds, then this run where it is finite"
    assert [list(line.get_ydata()) for line in patch.lines] == [[1.0], [3.0]]
    corners = {tuple(corner) for corner in loss.collections[0].get_paths()[0].vertices}
    assert corners == {(10, 5.5), (10, 6.5), (20, 2.5), (20, 3.5)}, "means 6 and 3 and half to each side"
    assert loss.get_title().endswith(": differs")
    assert [text.get_text() for text in patch.texts] == ["not reached"]
