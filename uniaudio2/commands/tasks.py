"""`uniaudio2 tasks`: what the model can be asked for, and what each task needs."""

import argparse

from ..processing import TASKS, TaskFormat


def add_parser(commands) -> None:
    tasks = commands.add_parser("tasks", help="the tasks, what each needs and what it answers with")
    tasks.set_defaults(command=_tasks)


def _tasks(args: argparse.Namespace) -> None:
    lines = [(task.name, " ".join(map(option, given_fields(task))), answer(task)) for task in TASKS.values()]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for task, (name, options, answered) in zip(TASKS.values(), lines, strict=True):
        print(f"{name:<{widths[0]}}  {options:<{widths[1]}}  {answered:<{len('2 recordings')}}  {task.description}")


def given_fields(task: TaskFormat) -> tuple[str, ...]:
    """The values that a user gives: the conditions, or the beginning of what a task without conditions continues."""
    if task.conditions or task.output == "text":
        return task.condition_fields or task.fields
    return ()


def option(field: str) -> str:
    """The option of the command line that gives the value of a field."""
    return f"--{field.replace('_', '-')}"


def answer(task: TaskFormat) -> str:
    """What a task answers with, in a word or two."""
    if task.output == "text":
        return "text"
    return {0: "codes", 1: "recording"}.get(task.num_recordings, f"{task.num_recordings} recordings")
