"""The commands of READMEs and guides, run as they stand there, in their order, in a folder with the presets only."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.ko.md")
GUIDES = ("docs/conversion.md", "docs/conversion.ko.md")
SCALING = ("docs/scaling.md", "docs/scaling.ko.md")
DATA = ("docs/data.md", "docs/data.ko.md")
RECOVERY = ("docs/recovery.md", "docs/recovery.ko.md")
OTHERS = (
    *SCALING,
    *DATA,
    *RECOVERY,
    "docs/objectives.md",
    "docs/objectives.ko.md",
    "CONTRIBUTING.md",
    "configs/README.md",
)


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def commands(readme: str) -> list[str]:
    """Commands of the bash blocks, continued lines joined; `make` sets up the machine and is not run here."""
    text = "\n".join(blocks(readme, "bash")).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith("make ")]


@pytest.mark.parametrize(
    ("pair", "least"), [(READMES, 4), (GUIDES, 4), (SCALING, 1), (DATA, 2), (RECOVERY, 3)], ids=lambda value: str(value)
)
def test_both_languages_give_the_same_commands(pair: tuple[str, str], least: int):
    assert commands(pair[0]) == commands(pair[1])
    assert len(commands(pair[0])) >= least


@pytest.mark.parametrize("target", ["demo", "test", "lint", "schema", "bench", "soak", "clean"])
def test_make_knows_its_targets(target: str):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for readme in (*READMES, *GUIDES, *OTHERS):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / readme).read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (ROOT / readme).parent.joinpath(link).exists(), f"{readme}: {link}"


def run_commands(document: str, tmp_path: Path, check: str) -> None:
    """Runs the commands, then the Python examples with ``check`` behind each."""
    for command in commands(document):
        assert command.startswith("python -m "), command
        arguments = shlex.split(command.removeprefix("python "))
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for code in blocks(document, "python"):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}\n{check}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_guide_commands_run_as_written(tmp_path: Path):
    run_commands(GUIDES[0], tmp_path, "assert values.shape == (1, 4) and rewards.shape == (1,)")


@pytest.mark.parametrize("guide", [SCALING[0], DATA[0]])
def test_commands_of_guides_run_as_written(guide: str, tmp_path: Path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    run_commands(guide, tmp_path, "")


def test_readme_commands_run_as_written(tmp_path: Path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    run_commands(READMES[0], tmp_path, "assert logits.shape == (1, 3, 4, 1024), logits.shape")
    run = tmp_path / "storage/checkpoints/baseline/first-look"
    for name in ("checkpoints", "config.json", "tokenizer", "metrics.jsonl", "mlflow.db", "settings.yaml", "run.json"):
        assert (run / name).exists(), name
    # This guide goes on with the run of the README.
    run_commands(RECOVERY[0], tmp_path, "")
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [(session["first_step"], session["last_step"]) for session in sessions] == [(0, 20), (20, 24), (24, 26)]
    assert sessions[-1]["changed"] == {"training.learning_rate": [3e-3, 1e-3]}
