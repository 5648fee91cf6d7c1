"""`python -m franca.publish`: what it prints, and one line for what can't be done."""

from pathlib import Path

import pytest

from franca.publish.__main__ import main


def test_the_command_writes_a_release_and_says_how_to_check_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "below" / "release"
    assert main([str(run), str(output), "--steps", "last", "--with-state", "--licence", "CC0"]) == 0
    said = capsys.readouterr()
    assert "step 6: training state" in said.err
    assert "teacher.pth" in said.out
    assert "--data NAME" in said.out
    assert "--licence TEXT" not in said.out
    assert f"cd {output} && sha256sum -c SHA256SUMS" in said.out
    assert (output / "checkpoints/step_0000006/.metadata").is_file()


@pytest.mark.parametrize("place", ["/proc/franca/release", "{tmp}/file/release"])
def test_a_place_that_cannot_be_written_is_named(
    place: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    output = place.format(tmp=tmp_path)
    assert main([str(run), output]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {output} could not be written")
    assert len(error.splitlines()) == 1


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing"), str(tmp_path / "release")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'nothing'} is no folder; give the output folder of a run of franca.train\n"
    )


def test_help_is_a_page_to_work_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    for words in ("--with-state", "all|last|N,N", "--rasa RASA_RUN", "SHA256SUMS", "hard links"):
        assert words in said
