"""The settings of all scores as options, read from the registry of scores."""

import inspect
from functools import cached_property
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand


class CommandWithScoreSettings(TyperCommand):
    """A command that takes every setting of every score as an option, and finds those given in `context.obj`.

    A new score or setting needs no change here. The registry imports torch, so it is read only when the command runs
    or shows its help. Values stay text: the score validates them.
    """

    @cached_property
    def setting_options(self) -> list[Any]:
        """An option for each setting, grouped by the scores that have it."""

        def settings() -> None:
            """Only its signature counts: typer makes the options from it."""

        settings.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
        app = typer.Typer(add_completion=False)
        app.command()(settings)
        return list(typer.main.get_command(app).params)

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own options, the settings, and `--help`."""
        from dlsr.scorers import PRESETS, SCORES  # noqa: PLC0415

        scores = "\n\n".join(f"{name}: {scorer.summary}." for name, scorer in SCORES.items())
        presets = ", ".join(f"{preset} ({score})" for preset, score in PRESETS.items())
        texts = {"score": scores, "preset": f"Settings to start from, and the score if none is named: {presets}."}
        *own, help_option = super().get_params(ctx)
        options: list[Any] = own
        for option in options:
            option.help = texts.get(option.name, option.help)
        return [*options, *self.setting_options, help_option]

    def invoke(self, ctx: Any) -> Any:
        """Run the command with the given settings in `ctx.obj`."""
        values = {option.name: ctx.params.pop(option.name) for option in self.setting_options}
        ctx.obj = {name: value for name, value in values.items() if value is not None}
        return super().invoke(ctx)


def _parameters() -> list[inspect.Parameter]:
    """A parameter for each setting, in the order of the registry, settings of the same scores together."""
    from dlsr.scorers import SCORES  # noqa: PLC0415

    fields: dict[str, dict[str, Any]] = {}
    for score, scorer in SCORES.items():
        for name, field in scorer.Settings.model_fields.items():
            fields.setdefault(name, {})[score] = field
    by_scores: dict[str, list[inspect.Parameter]] = {}
    for name, by_score in fields.items():
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=_help(by_score),
            metavar=_metavar(next(iter(by_score.values())).annotation),
            show_default=False,  # it depends on score and preset
            rich_help_panel=f"Settings of {', '.join(by_score)}",
        )
        parameter = inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
        )
        by_scores.setdefault(", ".join(by_score), []).append(parameter)
    return [parameter for parameters in by_scores.values() for parameter in parameters]


def _help(fields: dict[str, Any]) -> str:
    """The description of a setting; where scores differ, a description for each."""
    scores: dict[str, list[str]] = {}
    for score, field in fields.items():
        scores.setdefault(field.description or "", []).append(score)
    if len(scores) == 1:
        return next(iter(scores))
    return " ".join(f"{', '.join(names)}: {description}" for description, names in scores.items())


def _metavar(annotation: Any) -> str:
    """How help texts show a setting's type: `INT`, `FLOAT`, `INT,..`, or the choices."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind not in (type(None), ...)]
    if get_origin(annotation) is tuple:
        return f"{kinds[0].__name__.upper()},.."
    return "|".join(kind.__name__.upper() for kind in kinds)
