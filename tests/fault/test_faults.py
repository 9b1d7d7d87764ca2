"""Every process is killed once, each at another stage; a cancel meets the last result. `make faults` does the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.fault.faults import Cell, divided, judge, killed, specials, undisturbed
from tests.fault.place import Ended, Place, make_models, place_in
from tests.fault.postgres import killable

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

_RACE = "cancelled 0 ms after the result"
CELLS = [
    killed("redis", "leased"),
    killed("worker", "capturing"),
    killed("child", "refining"),
    killed("postgresql", "evaluating"),
    killed("agent", "uploading the result"),
    killed("hub", "publishing"),
    *(cell for cell in specials() if cell.fault == _RACE),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        killable() as server,
        place_in(tmp_path_factory.mktemp("fault"), make_models(tmp_path_factory.mktemp("models")), server) as place,
    ):
        yield place


@pytest.fixture(scope="module")
def reference(place: Place) -> Ended:
    ended = undisturbed(place)
    assert ended.state == "complete"
    assert ended.model is not None
    return ended


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_result_is_the_undisturbed_one_or_none(place: Place, reference: Ended, cell: Cell) -> None:
    judge(cell, cell.play(place, cell.name), reference)


def test_one_of_two_workers_is_killed_in_the_middle_of_what_they_share(place: Place, reference: Ended) -> None:
    """After the tests above: what two workers share comes to what one alone makes of it."""
    (cell,) = (cell for cell in divided() if cell.name == "sigkill-of-one-of-two-workers-refining-divided")
    place.use_two_workers()
    judge(cell, cell.play(place, cell.name), reference)


def test_what_was_killed_was_started_again(place: Place, reference: Ended) -> None:
    """After the tests above, and by the site itself."""
    log = (place.root / "site.log").read_text()
    for part in ("redis", "worker", "agent"):
        assert f'"part": "{part}"' in log
