"""Export a checkpoint to ONNX or torch.export: `python jobs/export.py CHECKPOINT OUT.onnx --size 480x640`."""

import argparse

from pipeline.console import run_job


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="jobs/export.py",
        description="Write a checkpoint as one file that runs without Sceneparse, from uint8 photos to masks.",
    )
    parser.add_argument("checkpoint", help="folder or URI of a checkpoint")
    parser.add_argument("output", help="file or URI: .onnx for ONNX, .pt2 for a torch.export program")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", metavar="HEIGHTxWIDTH", help="take images of this size only, in pixels")
    sizes.add_argument("--dynamic", action="store_true", help="take images of any size (the default)")
    arguments = parser.parse_args(argv)
    from pipeline.checkpoints import exporting

    size = exporting.parse_size(arguments.size) if arguments.size else None
    summary = exporting.export(arguments.checkpoint, arguments.output, size)
    print("\n".join(summary.lines()), flush=True)


if __name__ == "__main__":
    run_job(main)
