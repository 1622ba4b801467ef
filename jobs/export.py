"""Export a checkpoint to ONNX or torch.export: `python jobs/export.py CHECKPOINT --to MODEL.onnx --size 480x640`."""

from pipeline.config.command_line import Parser, add_to_option, given_to, uri
from pipeline.console import log, run_job


def main(argv: list[str], prog: str = "jobs/export.py") -> None:
    parser = Parser(
        prog,
        "Export a checkpoint to a single file that maps uint8 photos to masks and runs without Sceneparse.",
        ("runs/mine/best --to model.onnx --size 480x640", "s3://bucket/runs/mine/best --to s3://bucket/model.pt2"),
    )
    parser.add_argument("checkpoint", type=uri, metavar="CHECKPOINT", help="folder or URI of the checkpoint")
    add_to_option(parser, metavar="FILE", help="file or URI to write: .onnx for ONNX, .pt2 for a torch.export program")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", metavar="HEIGHTxWIDTH", help="accept only images of this size, in pixels")
    sizes.add_argument("--dynamic", action="store_true", help="accept images of any size (the default)")
    arguments = parser.parse_intermixed_args(argv)
    to = given_to(parser, arguments)
    log("Loading PyTorch")
    # Before torch is imported, which takes seconds.
    from pipeline.checkpoints.checkpoint import check_is_checkpoint

    check_is_checkpoint(arguments.checkpoint)
    from pipeline.checkpoints import exporting

    size = exporting.parse_size(arguments.size) if arguments.size else None
    summary = exporting.export(arguments.checkpoint, to, size)
    print("\n".join(summary.lines()), flush=True)


if __name__ == "__main__":
    run_job(main)
