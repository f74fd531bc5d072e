"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) == 9


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {})
    printed = capsys.readouterr().out
    if "tbnn.summary" in BLOCKS[number]:
        assert re.search(r"layers\.5 .* BinaryLinear .* 50\.0%", printed), printed
    elif "EventCamera" in BLOCKS[number]:
        count = re.fullmatch(r"(\d+) events, \(10, 15\) int32\n", printed)
        assert count is not None, printed
        assert int(count[1]) > 10_000
    elif "open_stream" in BLOCKS[number]:
        assert "'windows'" in printed
    elif "print" in BLOCKS[number]:
        loss = re.match(r"loss (\d\.\d+), equal: True, \d+ bytes", printed)
        assert loss is not None, printed
        assert float(loss[1]) < 0.4


def test_every_command_of_the_readme_exists() -> None:
    from tbnn.cli import _parser

    named = set(re.findall(r"^    tbnn (\w+)", README, re.M))
    assert named == set(_parser()[1])
