"""Import published weights: `python jobs/import_weights.py SOURCE --to CHECKPOINT --classes wall,building,sky`."""

import argparse

from pipeline.config.command_line import Parser, add_to_option, given_to, uri
from pipeline.console import log, run_job


def main(argv: list[str], prog: str = "jobs/import_weights.py") -> None:
    parser = Parser(
        prog,
        "Convert PSPNet weights of hszhao/semseg or MMSegmentation to a checkpoint folder, or use an "
        "ImageNet ResNet from torchvision as the backbone of a new PSPNet.",
        (
            "resnet50-11ad3fa6.pth --to imagenet-resnet50 --classes road,car,sky",
            "train_epoch_100.pth --to pspnet50 --classes names.txt",
        ),
    )
    parser.add_argument("source", type=uri, metavar="SOURCE", help=".pth, .pt or .safetensors file, path or URI")
    add_to_option(parser, metavar="FOLDER", help="folder or URI for the checkpoint")
    parser.add_argument(
        "--classes",
        help="comma-separated class names, or a text file or URI with one name per line; default: those in the source",
    )
    parser.add_argument(
        "--bins",
        type=_bins,
        help="cells per side of each pyramid level; default: those in the source, or 1,2,3,6 if it has four levels",
    )
    parser.add_argument(
        "--align-corners",
        choices=["true", "false"],
        help="align_corners of every bilinear upsampling; default: as in the framework that the weights come from",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="import the moving averages that MMSegmentation 0.x saved as ema_*, instead of the parameters",
    )
    arguments = parser.parse_intermixed_args(argv)
    to = given_to(parser, arguments)
    log("Loading PyTorch")
    # Before torch is imported, which takes seconds.
    from pipeline import storage

    storage.require(arguments.source, "source")
    from pipeline.checkpoints.importing import import_checkpoint, read_classes

    summary = import_checkpoint(
        arguments.source,
        to,
        read_classes(arguments.classes) if arguments.classes is not None else None,
        arguments.bins,
        None if arguments.align_corners is None else arguments.align_corners == "true",
        arguments.ema,
    )
    model, metadata = summary.imported.model, summary.imported.metadata
    a = model.architecture
    stem = f"deep stem {'-'.join(map(str, a.stem_channels))}" if a.stem == "deep" else "plain stem"
    names = ", ".join(metadata.classes[:4]) + (", ..." if len(metadata.classes) > 4 else "")
    print(f"Recognized    {summary.imported.kind}")
    print(
        f"Architecture  {a.backbone}, {stem}, bins {','.join(map(str, a.bins)) or 'none'}, "
        f"{'an' if a.auxiliary else 'no'} auxiliary head, align_corners {str(a.align_corners).lower()}"
    )
    print(f"Classes       {len(metadata.classes):,}: {names}")
    print(f"Parameters    {sum(parameter.numel() for parameter in model.parameters()):,}")
    print(f"Model id      {summary.model_id}")
    print(f"Checkpoint    {summary.output}{'' if summary.written else ' (already exists)'}")
    for note in summary.imported.notes:
        print(f"Note          {note}")
    if summary.imported.is_trained:
        print(f"Next          python jobs/segment_bucket.py --input URI --output URI --checkpoint {summary.output}")


def _bins(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,2,3,6") from None


if __name__ == "__main__":
    run_job(main)
