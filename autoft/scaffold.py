"""A new plugin from a template: a task that works as it is, for an author to change."""

from __future__ import annotations

from pathlib import Path

from autoft.errors import PluginError
from autoft.plugins import NAME, load_plugins
from autoft.version import __version__

__all__ = ["new_plugin"]


def new_plugin(name: str, folder: str | Path | None = None) -> Path:
    """Write a complete plugin with one task: package, README and tests, which pass as they are.

    Args:
        name: of the task, as ``my-task``; the distribution will be ``autoft-my-task``.
        folder: where to; by default a folder of the distribution's name, in the current one.

    Returns:
        the folder.

    Raises:
        PluginError: the name is no name or is taken, or the folder holds something.
    """
    import jinja2

    task = name.removeprefix("autoft-")
    if not NAME.fullmatch(task):
        raise PluginError(f"{name!r} is no name for a task: it is letters, digits, '-' and '_', as 'my-task'")
    taken = {own: one.distribution for one in load_plugins().plugins for own in (one.name, *one.tasks)}
    if task in taken:
        raise PluginError(f"{taken[task]} has a plugin or task {task!r} already; choose another name")
    distribution = f"autoft-{task.replace('_', '-').lower()}"
    target = Path(folder) if folder is not None else Path(distribution)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PluginError(f"{target}: is there already; choose another --folder, or empty it")
    package = distribution.replace("-", "_")
    kind = "".join(word.capitalize() for word in package.split("_")[1:])
    major, minor = __version__.split(".")[:2]
    values = {
        "task": task,
        "distribution": distribution,
        "package": package,
        "kind": kind if kind[:1].isalpha() else f"Task{kind}",
        "metric": f"{package.removeprefix('autoft_')}_accuracy",
        "bounds": (f"{major}.{minor}", f"{major}.{int(minor) + 1}"),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoft", "templates/plugin"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    for template in environment.list_templates(extensions=["j2"]):
        path = target / template.removesuffix(".j2").replace("src/package", f"src/{package}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(environment.get_template(template).render(values), encoding="utf-8")
    return target
