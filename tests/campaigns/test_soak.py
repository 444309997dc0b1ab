"""The judge of the soak, on samples of a process that grows and of one that does not."""

from dataclasses import replace

import pytest

from tests.campaigns.soak import LINE, LOG_EVERY, Sample, judge


def _samples(steps: int = 20_000) -> list[Sample]:
    """Return samples of a process that settles in its first steps and then does not grow."""
    return [
        Sample(
            step=step,
            rss=(300 << 20) + min(step, 500) * 1000 + step % 7 * 4096,
            handles=13 + step // 50 % 2,
            threads=2,
            files=25 + step // 50 % 6,
            metrics=170 * step // LOG_EVERY,
        )
        for step in range(50, steps + 1, 50)
    ]


def _refused(samples: list[Sample]) -> list[str]:
    return [verdict.what for verdict in judge(samples) if not verdict.kept]


def test_a_process_that_keeps_what_it_has_passes():
    assert [_refused(_samples(steps)) for steps in (1000, 20_000)] == [[], []]


@pytest.mark.parametrize(
    ("leak", "named"),
    [
        (lambda s: replace(s, rss=s.rss + 140 * s.step), "resident memory"),
        (lambda s: replace(s, handles=s.handles + s.step // 5000), "open files"),
        (lambda s: replace(s, threads=s.threads + s.step // 5000), "threads"),
        (lambda s: replace(s, files=s.files + s.step // 1000), "files in the run folder"),
        (lambda s: replace(s, metrics=(LINE + 1) * s.step // LOG_EVERY), "metrics.jsonl"),
    ],
    ids=["memory", "handles", "threads", "files", "metrics"],
)
def test_what_grows_is_named(leak, named):
    (refused,) = _refused([leak(sample) for sample in _samples()])
    assert refused.startswith(named)


def test_a_short_soak_sees_a_step_that_is_kept():
    """A step of 100 KiB: its activations."""
    leaking = [replace(s, rss=s.rss + (100 << 10) * s.step) for s in _samples(1000)]
    assert _refused(leaking) == ["resident memory, growth per 1,000 steps"]
