"""echo-cli: training of language-model agents on the environment's output as well as on rewards.

The library consists of the names below, with examples in docs/library.md, and the names in `echo_cli.objective`. Each
name is imported on first access, so that `import echo_cli` loads nothing else.
"""

TYPE_CHECKING = False  # as in typing, whose import would delay the handling of Ctrl-C at the start of echo-cli

__all__ = [
    "Config",
    "EchoError",
    "Environment",
    "Role",
    "Segment",
    "Task",
    "Trajectory",
    "__version__",
    "evaluate_run",
    "load_config",
    "open_run",
    "open_worlds",
    "read_trajectories",
    "run_experiment",
]

if TYPE_CHECKING:
    from echo_cli.config.loader import load_config
    from echo_cli.config.schema import Config
    from echo_cli.environments.protocol import Environment
    from echo_cli.environments.tasks import Task
    from echo_cli.environments.worlds import open_worlds
    from echo_cli.errors import EchoError
    from echo_cli.evaluation.run_evaluation import evaluate_run
    from echo_cli.runs.directory import open_run
    from echo_cli.training.experiment import run_experiment
    from echo_cli.trajectory import Role, Segment, Trajectory, read_trajectories

    __version__: str
else:
    # The same imports as a table. Hidden from type checkers: with __getattr__, they would accept every name.
    _MODULES = {
        "Config": "config.schema",
        "EchoError": "errors",
        "Environment": "environments.protocol",
        "Role": "trajectory",
        "Segment": "trajectory",
        "Task": "environments.tasks",
        "Trajectory": "trajectory",
        "evaluate_run": "evaluation.run_evaluation",
        "load_config": "config.loader",
        "open_run": "runs.directory",
        "open_worlds": "environments.worlds",
        "read_trajectories": "trajectory",
        "run_experiment": "training.experiment",
    }

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("echo-cli")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__():
        return __all__
