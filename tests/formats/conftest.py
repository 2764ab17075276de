"""Models of tasks as a trial leaves them, and a Python that has every library but autoft."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.plugins import load_plugins

BEGIN = """
import sys
sys.path.extend({paths!r})
try:
    import autoft
except ImportError:
    pass
else:
    raise SystemExit("autoft can be imported from " + str(autoft.__path__))
"""


class Without:
    """Runs code where autoft cannot be imported, nor anything that the environment or the current folder adds."""

    def __init__(self) -> None:
        # Where libraries are installed; autoft itself is found by a .pth file, which -S leaves unread, or by PYTHONPATH.
        found = [importlib.util.find_spec(name) for name in ("numpy", "transformers", "openvino")]
        self.paths = list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin))

    def run(self, code: str, folder: Path) -> str:
        """Return what the code prints last, run in the folder."""
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", BEGIN.format(paths=self.paths) + code],
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip().splitlines()[-1]

    def answers(self, model: Path, texts: list[str] | None = None, base: Path | None = None) -> list:
        """Return what the first code block of a model's card that does not name autoft answers.

        Args:
            model: the folder.
            texts: in place of the demo rows that the code has.
            base: what the code calls ``BASE``.
        """
        card = (model / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        code = next(block for block in blocks if "autoft" not in block)
        code = code.replace("BASE", str(base))
        if texts is not None:
            code, count = re.subn(r"^texts = .*$", lambda _: f"texts = {texts!r}", code, flags=re.MULTILINE)
            assert count == 1
        last = self.run(code + "\nimport json\nprint(json.dumps(answers))", model.parent)
        return json.loads(last)


@pytest.fixture(scope="session")
def without() -> Without:
    return Without()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A function that writes a model of a task as a trial does, trained for a moment on the task's demo rows."""
    from autoft.artifact import save_artifact
    from autoft.testing.workbench import Workbench

    catalog = load_plugins()
    made: dict[tuple[str, str | None], Path] = {}

    def make(task: str, kind: str | None = None) -> Path:
        if (task, kind) not in made:
            bench = Workbench(catalog.task(task), catalog, kind=kind)
            folder = tmp_path_factory.mktemp(task) / "model"
            model = bench.trained.model
            save_artifact(folder, model, bench.target, writer=None, variant="none", objective=bench.objective.name)
            made[task, kind] = folder
        return made[task, kind]

    return make
