"""Export a checkpoint to ONNX or torch.export: `python jobs/export.py CHECKPOINT OUT.onnx --size 480x640`."""

import argparse

from pipeline.console import run_job


def main(argv: list[str], prog: str = "jobs/export.py") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Export a checkpoint to a single file that maps uint8 photos to masks and runs without Sceneparse.",
    )
    parser.add_argument("checkpoint", help="folder or URI of the checkpoint")
    parser.add_argument("output", help="file or URI to write: .onnx for ONNX, .pt2 for a torch.export program")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", metavar="HEIGHTxWIDTH", help="accept only images of this size, in pixels")
    sizes.add_argument("--dynamic", action="store_true", help="accept images of any size (the default)")
    arguments = parser.parse_args(argv)
    from pipeline.checkpoints import exporting

    size = exporting.parse_size(arguments.size) if arguments.size else None
    summary = exporting.export(arguments.checkpoint, arguments.output, size)
    print("\n".join(summary.lines()), flush=True)


if __name__ == "__main__":
    run_job(main)
