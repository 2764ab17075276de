"""How often `autoft init` guesses the task of a data set: folders of data sets by task, as DATA/<task>/<name>.

    python benchmarks/first_contact.py DATA

Nothing is trained. One line for each data set: what was guessed, whether that is the folder's task, and from which columns.
With --renamed each column has a name that says nothing (column_1, column_2 ...), so that values alone decide.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autoft.data.sources import load_source
from autoft.drafts.guesses import AMBIGUOUS, guess_tasks
from autoft.drafts.sources import find_sources
from autoft.drafts.survey import survey
from autoft.errors import DataError
from autoft.plugins import load_plugins

ALSO = {"question-answering": {"medical-qa-extractive"}, "dialogue": {"generation"}}
"""Tasks that are as right as the folder's name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--renamed", action="store_true", help="take the columns' names away")
    arguments = parser.parse_args()
    tasks = list(load_plugins().tasks.values())
    right = clear = 0
    folders = sorted(folder for folder in arguments.data.glob("*/*") if folder.is_dir())
    for folder in folders:
        sources = find_sources([str(folder)], Path("recipe.yaml"))
        table = load_source(sources.train, base=sources.base, where="train")
        if arguments.renamed:
            table = table.rename_columns([f"column_{number}" for number in range(1, table.num_columns + 1)])
        try:
            guesses, _ = guess_tasks(tasks, survey(table), {})
        except DataError as error:
            print(f"{folder.parent.name}/{folder.name}: {error}")
            continue
        wanted = folder.parent.name
        best = guesses[0] if guesses else None
        name = best.task.card.name if best else "nothing"
        hit = name == wanted or name in ALSO.get(wanted, set()) or name.startswith(wanted)
        sure = best is not None and sum(one.score >= AMBIGUOUS * best.score for one in guesses) == 1
        right, clear = right + hit, clear + (hit and sure)
        others = ", ".join(f"{one.task.card.name} {one.score:.2f}" for one in guesses[1:4])
        print(
            f"{wanted}/{folder.name}: {name} {best.score if best else 0:.2f} ({'right' if hit else 'WRONG'}{'' if sure else ', asks'}); "
            f"{dict(best.columns) if best else {}}; then {others or 'nothing'}",
            flush=True,
        )
    print(f"{right} of {len(folders)} right, {clear} of them without a question")


if __name__ == "__main__":
    main()
