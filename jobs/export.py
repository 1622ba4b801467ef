"""Export a checkpoint to ONNX or torch.export: `python jobs/export.py CHECKPOINT --to MODEL.onnx --size 480x640`."""

import argparse

from pipeline.console import add_to_option, given_to, run_job


def main(argv: list[str], prog: str = "jobs/export.py") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Export a checkpoint to a single file that maps uint8 photos to masks and runs without Sceneparse.",
    )
    parser.add_argument("checkpoint", help="folder or URI of the checkpoint")
    add_to_option(parser, metavar="FILE", help="file or URI to write: .onnx for ONNX, .pt2 for a torch.export program")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", metavar="HEIGHTxWIDTH", help="accept only images of this size, in pixels")
    sizes.add_argument("--dynamic", action="store_true", help="accept images of any size (the default)")
    arguments = parser.parse_intermixed_args(argv)
    to = given_to(parser, arguments)
    from pipeline.checkpoints import exporting

    size = exporting.parse_size(arguments.size) if arguments.size else None
    summary = exporting.export(arguments.checkpoint, to, size)
    print("\n".join(summary.lines()), flush=True)


if __name__ == "__main__":
    run_job(main)
