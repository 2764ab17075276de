"""Models of tasks as a trial leaves them, and a Python that has every library but autoft."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoft.plugins import load_plugins

SERVER = """
import contextlib, io, json, os, sys, traceback
sys.path.extend({paths!r})
try:
    import autoft
except ImportError:
    pass
else:
    raise SystemExit("autoft can be imported from " + str(autoft.__path__))
import onnxruntime, torch, transformers.models.auto.modeling_auto, transformers.modeling_utils
requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in requests:
    code, folder, said = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        status = 1
        try:
            exec(compile(code, "<the card>", "exec"), {{"__name__": "__main__"}})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""
"""Each code runs in a process forked from one that has the libraries imported: they take seconds, the code none."""


class Without:
    """Runs code where autoft cannot be imported, nor anything that the environment or the current folder adds."""

    def __init__(self, said: Path) -> None:
        # Where libraries are installed; autoft itself is found by a .pth file, which -S leaves unread, or by PYTHONPATH.
        found = [importlib.util.find_spec(name) for name in ("numpy", "transformers", "openvino")]
        paths = list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin))
        self.said = said
        self.server = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SERVER.format(paths=paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, code: str, folder: Path) -> str:
        """Return what the code prints last, run in the folder."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([code, str(folder), str(self.said)]), file=self.server.stdin, flush=True)
        status = self.server.stdout.readline().strip()
        said = self.said.read_text(encoding="utf-8") if self.said.is_file() else ""
        assert status == "0", f"{code}\n{said}"
        return said.strip().splitlines()[-1]

    def end(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        assert self.server.wait(60) == 0

    def answers(self, model: Path, texts: list[str] | None = None, base: Path | None = None) -> list:
        """Return what the first code block of a model's card that does not name autoft answers.

        Args:
            model: the folder.
            texts: in place of the demo rows that the code has.
            base: what the code calls ``BASE``.
        """
        return self.told(model, "answers", texts, base)

    def told(self, model: Path, value: str, texts: list[str] | None = None, base: Path | None = None) -> list:
        """Return what an expression is after that code, as :meth:`answers` does."""
        card = (model / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        code = next(block for block in blocks if "autoft" not in block)
        code = code.replace("BASE", str(base))
        if texts is not None:
            code, count = re.subn(r"^texts = .*$", lambda _: f"texts = {texts!r}", code, flags=re.MULTILINE)
            assert count == 1
        last = self.run(code + f"\nimport json\nprint(json.dumps({value}))", model.parent)
        return json.loads(last)


@pytest.fixture(scope="session")
def without(tmp_path_factory) -> Iterator[Without]:
    found = Without(tmp_path_factory.mktemp("without") / "said.txt")
    yield found
    found.end()


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
