"""The limit of a run's error rate judges all images, or a random sample, but not the names that sort first."""

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.output.schema import IMAGE_ID_BYTES, image_id
from pipeline.segment.error_rate import MIN_TO_JUDGE, ErrorLimit, is_sampled, sampled_first

NUM_IMAGES = 20_000


@pytest.fixture(scope="module")
def wave() -> pa.Table:
    uris = [f"s3://photos/{number:05}.jpg" for number in range(NUM_IMAGES)]
    ids = pa.array([image_id(uri) for uri in uris], pa.binary(IMAGE_ID_BYTES))
    return pa.table({"image_uri": uris, "image_id": ids})


def test_the_sample_comes_first_and_every_image_once(wave: pa.Table) -> None:
    ordered = sampled_first(wave)
    in_sample = [is_sampled(one) for one in ordered["image_id"].to_pylist()]
    count = sum(in_sample)
    assert in_sample == [True] * count + [False] * (NUM_IMAGES - count)
    assert count == pytest.approx(NUM_IMAGES / 32, rel=0.2)
    uris = ordered["image_uri"].to_pylist()
    assert uris[count:] == sorted(uris[count:])
    assert sorted(uris) == wave["image_uri"].to_pylist()


def test_the_first_images_of_the_sample_are_spread_over_the_names(wave: pa.Table) -> None:
    first = sampled_first(wave)["image_uri"].to_pylist()[:MIN_TO_JUDGE]
    quarters = [sum(f"s3://photos/{low:05}" <= uri for uri in first) for low in (0, 5_000, 10_000, 15_000)]
    assert quarters == pytest.approx([200, 150, 100, 50], abs=25)


def test_images_that_fail_first_end_the_run_only_when_they_exceed_the_limit_of_all() -> None:
    limit = ErrorLimit(0.5, num_images=521)
    limit.check({"NotAnImage": 260})
    with pytest.raises(UserError) as raised:
        limit.check({"NotAnImage": 200, "Empty": 61, "ok": 3})
    assert str(raised.value) == (
        "max_error_rate 0.5: 261 of the 521 images failed (61 Empty, 200 NotAnImage); check the input, filter out "
        "files that are not images with --include or --exclude, or raise --max-error-rate"
    )


def test_few_images_are_not_judged() -> None:
    ErrorLimit(0.0, num_images=MIN_TO_JUDGE - 1).check({"Empty": MIN_TO_JUDGE - 1})
    with pytest.raises(UserError):
        ErrorLimit(0.0, num_images=MIN_TO_JUDGE).check({"Empty": 1})
    ErrorLimit(0.0, num_images=1_000_000).check_sample({"Empty": MIN_TO_JUDGE - 1})


def test_a_sample_ends_the_run_early_if_chance_does_not_explain_its_failures() -> None:
    limit = ErrorLimit(0.5, num_images=1_000_000)
    limit.check_sample({"NotAnImage": 110, "ok": 90})
    with pytest.raises(UserError, match=r"130 of 200 images chosen at random failed \(130 NotAnImage\)"):
        limit.check_sample({"NotAnImage": 130, "ok": 70})


def test_a_limit_of_one_never_ends_a_run() -> None:
    limit = ErrorLimit(1.0, num_images=1000)
    limit.check({"Empty": 1000})
    limit.check_sample({"Empty": 1000})
