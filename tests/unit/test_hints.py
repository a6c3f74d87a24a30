"""Free blocks become zeros by the word of the disk that is copied, and as long as it is wanted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from relocator.copying import hints
from relocator.copying.hydration import Hydration
from relocator.copying.plan import Plan
from relocator.errors import OtherDiskError
from relocator.filesystem import rounds
from relocator.source.answer import Answer
from relocator.source.remote import Source
from relocator.source.upstream import Upstream
from relocator.store import runs
from relocator.store.bitmap import Bitmap
from relocator.store.meta import Base
from relocator.store.store import Store
from tests.support import ext_images as images
from tests.support.fake_upstream import FakeUpstream
from tests.support.hydration import unheard
from tests.support.stores import make_store

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")
OURS, OTHER = "a" * 32, "b" * 32


class Told(FakeUpstream):
    """A relocator that has an image, where nothing was written, and says that it is `name`."""

    hydration: Hydration

    def __init__(self, image: bytes, name: str) -> None:
        super().__init__(image)
        self.image, self.name = image, name

    def serve(self, reader: Any) -> Any:
        return rounds.serve(
            reader, lambda wanted: [self.image[one.offset :][: one.length] for one in wanted]
        )

    def call(self, _verb: str) -> Answer:
        nothing = runs.pack(Bitmap(len(self.image) // 4096))
        fields = {"id": self.name, "block_bytes": 4096}
        return Answer(fields, {"dirty": nothing, "diverged": nothing})


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    several_runs = ["-t", "ext4", "-b", "1024", "-O", "^flex_bg"]  # that are free
    return images.make(tmp_path / "ext.img", "32M", several_runs, None).read_bytes()


@pytest.fixture
def store(tmp_path: Path, image: bytes) -> Iterator[Store]:
    made = make_store(tmp_path / "store", len(image))
    made.update(base=Base(OURS, 1), origin_id=OURS)
    yield made
    made.close()


def ask(store: Store, told: Told, stopped: Callable[[], bool] = lambda: False) -> None:
    """Let be filled what is free, by its word."""
    plan = Plan(store.geometry, ("sequential",), heat_shift=20, trace=())
    source, upstream = cast(Source, told), cast(Upstream, told)
    told.hydration = Hydration(
        store, upstream, on_demand=lambda _length: unheard, on_complete=lambda: None
    )
    hints.ask(source, upstream, store, plan, told.hydration, skip_free=True, stopped=stopped)


def test_what_was_written_is_not_believed_of_another_disk(store: Store, image: bytes) -> None:
    with pytest.raises(OtherDiskError):
        ask(store, Told(image, OTHER))
    assert store.present_blocks == 0
    ask(store, told := Told(image, OURS))
    assert told.hydration.skipped_bytes == store.present_blocks * 4096 > 0


def test_nothing_is_skipped_any_more_once_it_is_stopped(store: Store, image: bytes) -> None:
    looks = iter([False, False, True])
    ask(store, Told(image, OURS), lambda: next(looks))
    before = store.present_blocks
    ask(store, Told(image, OURS))
    assert 0 < before < store.present_blocks


def test_nothing_is_skipped_any_more_once_answers_are_disowned(store: Store, image: bytes) -> None:
    class Disowned(Told):
        def call(self, verb: str) -> Answer:
            self.hydration.disown_fetches()
            return super().call(verb)

    ask(store, Disowned(image, OURS))
    assert store.present_blocks == 0
