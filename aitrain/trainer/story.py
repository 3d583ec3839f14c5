"""How a run ends: export, and a short account for the person who started it."""

from __future__ import annotations

from aitrain.dist.group import Group
from aitrain.errors import EXIT_DONE, AitrainError
from aitrain.trainer.display import Display, duration
from aitrain.trainer.export import export
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.step_edge import Session
from aitrain.trainer.trackers import close_trackers


def finish(session: Session, code: int) -> int:
    """Close the run on rank 0: export when done, then say what came of it.

    Args:
        session: What the parts of the run share.
        code: The exit code so far.

    Returns:
        The exit code.

    Raises:
        AitrainError: The export could not be written.
    """
    if session.is_first:
        close_trackers(session.trackers)
        if code == EXIT_DONE and session.config.export.at_end:
            session.display.say("exporting ...")
            try:
                export(session.directory.path, session.directory.export, session.config.export.merge, "newest")
            except AitrainError as error:
                again = f"aitrain export {session.directory.path} --to DIR"
                raise AitrainError(f"{error}\nThe training is done and its checkpoint is whole: {again}") from error
        session.directory.event("finished" if code == EXIT_DONE else "waiting", step=session.progress.step)
        session.display.say("\n".join(account(session, code)))
    session.group.barrier()
    return code


def finish_interrupted(directory: RunDirectory, group: Group, steps: int) -> int:
    """Export a run that had done its last step, and was killed before it was exported.

    Args:
        directory: The run.
        group: The ranks.
        steps: Its optimizer steps.

    Returns:
        The exit code: done.

    Raises:
        AitrainError: The export could not be written.
    """
    if group.ranks.is_first:
        config = directory.config()
        display = Display(True, steps)
        display.say(f"all {steps} steps are done; finishing the interrupted end of {directory.path}")
        if config.export.at_end and not directory.export.exists():
            display.say("exporting ...")
            export(directory.path, directory.export, config.export.merge, "newest")
            display.say(f"model   {directory.export / 'model'}")
        directory.event("finished", step=steps)
    group.barrier()
    return EXIT_DONE


def account(session: Session, code: int) -> list[str]:
    """Return the lines a person reads at the end.

    Args:
        session: What the parts of the run share.
        code: The exit code.
    """
    progress, directory, config = session.progress, session.directory, session.config
    lines = [
        "",
        f"{progress.step} of {session.total_steps} steps, {progress.tokens:,} tokens in {duration(progress.seconds)}",
    ]
    losses = list(progress.validation.items())
    if len(losses) == 1:
        lines.append(f"held-out loss  {losses[0][1]:.4f} at step {losses[0][0]}")
    elif losses:
        (_, before), (step, after) = losses[0], losses[-1]
        change = 100 * (after - before) / before
        lines.append(f"held-out loss  before {before:.4f}  after {after:.4f} (step {step}, {change:+.1f} %)")
        if progress.best_loss is not None and progress.best_loss < after:
            lines.append(f"               best   {progress.best_loss:.4f} (step {progress.best_step})")
    for old, new in zip(session.before or [], session.after or [], strict=False):
        lines += [f"prompt  {old['prompt']}", f"  before  {old['answer']}", f"  after   {new['answer']}"]
    lines.append(f"run     {directory.path}")
    if code != EXIT_DONE:
        lines.append(
            f"stopped on {session.stopper.reason} after step {progress.step}, with a checkpoint. "
            f"Go on with: aitrain resume {directory.path}"
        )
        return lines
    if config.export.at_end:
        adapter = directory.export / "adapter"
        if adapter.is_dir():
            lines.append(f"adapter {adapter}")
        lines.append(f"model   {directory.export / 'model'}")
    return lines
