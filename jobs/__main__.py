"""One command for all jobs: `sceneparse COMMAND ...` does what `python jobs/COMMAND.py ...` does."""

import sys
from importlib import import_module

# Command, module in this package, and what `sceneparse --help` says.
COMMANDS = {
    "train": ("train", "train a PSPNet on a Ray cluster"),
    "evaluate": ("evaluate", "evaluate a checkpoint on an annotated dataset"),
    "segment": ("segment_bucket", "label every image of a bucket"),
    "query": ("query", "run SQL or a named query on a labeled output"),
    "report": ("report", "write an HTML report of a labeled output"),
    "verify": ("verify", "verify the integrity of a labeled output, and repair it"),
    "export-masks": ("export_masks", "export masks as PNG, COCO, Cityscapes, YOLO or FiftyOne"),
    "import-weights": ("import_weights", "convert published weights to a checkpoint"),
    "export": ("export", "export a checkpoint to ONNX or torch.export"),
    "calibrate": ("calibrate", "calibrate a checkpoint for int8 on CPUs"),
    "ablate": ("ablate", "train and evaluate a grid of variants"),
    "validate-dataset": ("validate_dataset", "report every error in a dataset"),
    "make-scenes": ("make_scenes", "write the built-in scenes as a dataset"),
    "doctor": ("doctor", "check that a Ray cluster is ready for jobs"),
    "demo": ("demo", "train, label, query and report on this machine"),
}


def main() -> None:
    """Run the command that the first argument names, and exit with its code."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(_usage())
        sys.exit(0)
    if command not in COMMANDS:
        print(f"sceneparse: no command {command!r}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    try:
        from pipeline.console import run_job
    except ImportError:
        import pipeline

        print(
            f"error: the package 'pipeline' in {pipeline.__file__} shadows Sceneparse's own; run in another "
            "folder or environment, or uninstall the other package",
            file=sys.stderr,
        )
        sys.exit(2)
    job = import_module(f"jobs.{COMMANDS[command][0]}")
    run_job(lambda argv: job.main(argv, f"sceneparse {command}"), rest)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["usage: sceneparse COMMAND ...", "", *lines, "", "sceneparse COMMAND --help lists the options of a command."]
    )


if __name__ == "__main__":
    main()
