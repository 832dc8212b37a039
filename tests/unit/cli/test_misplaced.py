"""An option that a command does not have is told with the place where it belongs, or the nearest name."""

import pytest
from typer.testing import CliRunner

import daskreg
from daskreg import cli

PAIR = ("register", "f.nii", "m.nii", "-o", "r.zarr")
MOVE = ("apply", "r.zarr", "a.nii", "-o", "b.nii")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--preset", "rigid", *PAIR), "--preset; it stands behind the command, as in 'daskreg register ... --preset ...'."),
        (
            ("-o", "r.zarr", "register", "f.nii", "m.nii"),
            "-o; it stands behind the command, as in 'daskreg register ... -o",
        ),
        ((*PAIR, "--channel", "1"), "--channel; it belongs to an image: write '::channel=...' behind its path."),
        ((*MOVE, "--channels", "1"), "--channels; it belongs to an image: write '::channel=...' behind its path."),
        ((*PAIR, "--iterations", "9"), "--iterations; it is a key of a stage of a configuration: 'daskreg register --preset"),
        ((*PAIR, "--radius", "3"), "--radius; it is a key of a stage of a configuration:"),
        ((*MOVE, "--interpolate", "label"), "--interpolate; did you mean --interpolation?"),
        ((*MOVE, "--workers", "3"), "--workers; it is an option of register, plan, verify."),
        (("info", "f.nii", "--nonsense"), "No such option: --nonsense"),
        (("--foo",), "No such option: --foo"),
    ],
)
def test_where_an_option_belongs(words, told):
    found = CliRunner().invoke(cli.app, words, env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    said = " ".join(found.output.replace("│", " ").split())
    assert found.exit_code == 2
    assert told in said
    assert ("did you mean" in said) == ("did you mean" in told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*PAIR, "--config", "recpie.yaml"), "config recpie.yaml does not exist; the nearest name there is recipe.yaml; give"),
        (
            ("refine", "r.zarr", "f.nii", "m.nii", "-o", "b.zarr", "--region", "0:9,0:9,0:9", "--config", "recpie.yaml"),
            "config recpie.yaml does not exist; the nearest name there is recipe.yaml; give a YAML file, or a preset",
        ),
        ((*PAIR, "--preset", "recipe.yaml"), "--preset takes a name, and 'recipe.yaml' is that of a file; give it by --config"),
        ((*PAIR, "--config", "rigid"), "config rigid does not exist as a file; the preset of that name is --preset rigid"),
    ],
)
def test_a_configuration_that_is_not_there(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stages: [rigid]\n")
    assert told in str(CliRunner().invoke(cli.app, words).exception)


def test_a_configuration_that_is_not_there_in_python(tmp_path):
    (tmp_path / "recipe.yaml").write_text("stages: [rigid]\n")
    with pytest.raises(daskreg.NotFound, match=r"does not exist; the nearest name there is .*recipe\.yaml"):
        daskreg.Config.load(tmp_path / "recpie.yaml")
