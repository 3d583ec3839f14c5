"""The end of a run: export, and a short summary for the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.errors import EXIT_DONE, EXIT_REQUEUE, AitrainError, Interrupted
from aitrain.tasks.metric import Metric
from aitrain.trainer.curves import Curves, chart, draw, read_curves
from aitrain.trainer.display import Display, duration
from aitrain.trainer.evaluation import measure_late
from aitrain.trainer.export import Wanted, export
from aitrain.trainer.progress import Progress
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.stopping import Stopper
from aitrain.trainer.trackers import close_trackers
from aitrain.trainer.training_callback import Session


def finish(session: Session, code: int) -> int:
    """Close the run on rank 0: export if done, then print the summary.

    Args:
        session: State shared by the parts of the run.
        code: The exit code so far.

    Returns:
        The exit code; a run that is stopped while it exports must be started again.

    Raises:
        AitrainError: The export could not be written.
    """
    if session.is_first:
        close_trackers(session.trackers)
        if code == EXIT_DONE:
            code = _export_at_end(
                session.directory, session.config, session.progress.step, session.stopper, session.display
            )
        if code == EXIT_DONE and session.measured is not None:
            session.picture = _picture(session)
        curves = read_curves(session.directory.metrics_file, session.directory.events_file, session.task.primary)
        session.curves = _curves_file(session.directory, curves)
        drawn = chart(curves.loss)
        if drawn:
            session.display.say("\n".join(["", "loss", *drawn]))
        session.directory.event("finished" if code == EXIT_DONE else "waiting", step=session.progress.step)
        session.display.say("\n".join(account(session, code)))
    return int(session.group.from_first(code))


def _curves_file(directory: RunDirectory, curves: Curves) -> Path | None:
    """Write the page of curves; return its file, or None if there is nothing to draw yet."""
    file = directory.path / "report" / "curves.svg"
    file.parent.mkdir(exist_ok=True)
    if draw(curves, file):
        return file
    with suppress(OSError):
        file.parent.rmdir()
    return None


def _picture(session: Session) -> Path | None:
    """Let the task draw the final measurements; return the file, or None if there is no picture."""
    assert session.measured is not None, "called only after an evaluation"
    file = session.directory.path / "report" / f"{session.task.primary.name}.svg"
    file.parent.mkdir(exist_ok=True)
    if session.task.picture(session.measured, file):
        return file
    with suppress(OSError):  # not empty: a picture of before
        file.parent.rmdir()
    return None


def _export_at_end(directory: RunDirectory, config: RunConfig, step: int, stopper: Stopper, display: Display) -> int:
    """Write `export/` replacing an older one, and record its step; return the exit code."""
    if not config.export.at_end:
        return EXIT_DONE
    display.say("exporting ...")
    try:
        with heartbeat.beating_while_writing("export"):
            export(
                directory.path,
                directory.export,
                Wanted(merge=config.export.merge, replace=True, changed_inputs=True),
                lambda: stopper.reason is not None,
            )
    except Interrupted:
        return EXIT_REQUEUE
    except AitrainError as error:
        again = f"aitrain export {directory.path} --to DIR"
        raise AitrainError(f"{error}\nTraining is complete and its checkpoint is intact: {again}") from error
    directory.event("exported", step=step, path=str(directory.export))
    return EXIT_DONE


def finish_interrupted(directory: RunDirectory, group: Group, steps: int, stopper: Stopper) -> int:
    """Export a run that was killed between its last step and its export.

    Args:
        directory: The run.
        group: The ranks.
        steps: Its optimizer steps.
        stopper: Whether it is asked to stop again.

    Returns:
        The exit code.

    Raises:
        AitrainError: The export could not be written.
    """
    code = EXIT_DONE
    if group.ranks.is_first:
        config = directory.config()
        display = Display(True, steps)
        display.say(f"all {steps} steps are done; completing the interrupted last phase of {directory.path}")
        try:
            measure_late(directory, steps, lambda: stopper.reason is not None)
        except Interrupted:
            code = EXIT_REQUEUE
        if code == EXIT_DONE and directory.last_of("exported").get("step") != steps:
            code = _export_at_end(directory, config, steps, stopper, display)
        if code == EXIT_DONE and config.export.at_end:
            display.say(f"model   {directory.export / 'model'}")
        directory.event("finished" if code == EXIT_DONE else "waiting", step=steps)
    return int(group.from_first(code))


def finish_stopped_early(directory: RunDirectory, group: Group, progress: Progress, stopper: Stopper) -> int:
    """Report that a run has stopped early, and export it if that was interrupted.

    Args:
        directory: The run.
        group: The ranks.
        progress: How far it is.
        stopper: Whether it is asked to stop.

    Returns:
        The exit code.

    Raises:
        AitrainError: The export could not be written.
    """
    if group.any_true(group.ranks.is_first and not directory.is_finished):
        return finish_interrupted(directory, group, progress.step, stopper)
    if group.ranks.is_first:
        Display(True, progress.step).say(
            f"{directory.path} stopped early after step {progress.step}, because its validation metric no "
            "longer improved: nothing left to do. To continue anyway, set evaluate.patience=null or a larger number"
        )
    return EXIT_DONE


def _held_out_lines(progress: Progress, metric: Metric) -> list[str]:
    """Return the held-out metrics before and after training."""
    name, found = f"held-out {metric.name.replace('_', ' ')}", list(progress.validation.items())
    if len(found) == 1:
        return [f"{name}  {found[0][1]:.4f} at step {found[0][0]}"]
    if not found:
        return []
    (_, before), (step, after) = found[0], found[-1]
    change = f", {100 * (after - before) / before:+.1f} %" if before and not metric.greater_is_better else ""
    lines = [f"{name}  before {before:.4f}  after {after:.4f} (step {step}{change})"]
    if progress.best is not None and metric.is_better(progress.best, after):
        at = next((step for step, value in found if value == progress.best), progress.best_step)
        lines.append(f"{'':<{len(name)}}  best   {progress.best:.4f} (step {at})")
    return lines


def _best_line(progress: Progress, metric: Metric, baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return which is best on the held-out data, the trained model or a baseline; nothing without baselines."""
    values = {name: found[metric.name] for name, found in baselines.items() if metric.name in found}
    if not values or not progress.validation:
        return []
    ours, what = list(progress.validation.values())[-1], metric.name.replace("_", " ")
    best = max(values, key=values.__getitem__) if metric.greater_is_better else min(values, key=values.__getitem__)
    if metric.is_better(ours, values[best]):
        return [f"best by {what}: the trained model ({ours:.4f}; {best}: {values[best]:.4f})"]
    return [f"best by {what}: {best} ({values[best]:.4f}; the trained model: {ours:.4f})"]


SIDE_BY_SIDE = 5
"""Answers to held-out conversations that are shown; with more of them, exact matches are counted."""


def _answer_lines(before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what the model answered before and after, and the target answer where it is known."""
    lines, known = [], 0
    for old, new in zip(before, after, strict=False):
        known += "expected" in old
        if known > SIDE_BY_SIDE and "expected" in old:
            continue
        lines.append(f"prompt  {_short(old['prompt'])}")
        if "expected" in old:
            lines.append(f"  target  {_short(old['expected'])}")
        lines += [f"  before  {_short(old['answer'])}", f"  after   {_short(new['answer'])}"]
    if known > SIDE_BY_SIDE:
        counts = [sum(entry["answer"] == entry.get("expected") for entry in told) for told in (before, after)]
        shares = "  ".join(
            f"{when} {count} of {known} ({100 * count / known:.0f} %)"
            for when, count in zip(("before", "after"), counts, strict=True)
        )
        lines.append(f"exact matches: {shares}")
    return lines


def _short(text: str, most: int = 300) -> str:
    """Return a text on one line, shortened in the middle if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def account(session: Session, code: int) -> list[str]:
    """Return the lines of the final summary.

    Args:
        session: State shared by the parts of the run.
        code: The exit code.
    """
    progress, directory, config = session.progress, session.directory, session.config
    lines = [
        "",
        f"{progress.step} of {session.total_steps} steps, {progress.units:,} {session.task.unit} in "
        f"{duration(progress.seconds)}",
    ]
    lines += _held_out_lines(progress, session.task.primary)
    for name, metrics in session.baselines.items():
        lines.append(f"to compare, {name}: {session.task.sentence(metrics)}")
    lines += _best_line(progress, session.task.primary, session.baselines)
    lines += _answer_lines(session.before or [], session.after or [])
    if session.picture is not None:
        lines.append(f"picture {session.picture}")
    if session.curves is not None:
        lines.append(f"curves  {session.curves}")
    lines.append(f"run     {directory.path}")
    if code != EXIT_DONE:
        saved = f"after saving step {progress.step}" if progress.step else "before the first step"
        lines.append(f"Interrupted by {session.stopper.reason} {saved}. Resume with: aitrain resume {directory.path}")
        return lines
    if config.export.at_end:
        adapter = directory.export / "adapter"
        if adapter.is_dir():
            lines.append(f"adapter {adapter}")
        lines.append(f"model   {directory.export / 'model'}")
    if session.task.talks:
        lines.append(f"talk    aitrain chat {directory.path}")
    elif session.task.predicts:
        lines.append(f"predict aitrain predict {directory.path} FILE")
    return lines
