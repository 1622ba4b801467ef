"""Import published weights: `python jobs/import_weights.py SOURCE --to CHECKPOINT --classes wall,building,sky`."""

import argparse

from pipeline.checkpoints import published
from pipeline.config.command_line import Parser, add_to_option, given_to, uri
from pipeline.console import log, run_job, when_interrupted


def main(argv: list[str], prog: str = "jobs/import_weights.py") -> None:
    parser = Parser(
        prog,
        "Convert PSPNet weights of hszhao/semseg or MMSegmentation to a checkpoint folder, or use an "
        "ImageNet ResNet of torchvision, MMSegmentation or timm as the backbone of a new PSPNet. SOURCE may be "
        "the name of published weights in docs/weights.md, which are downloaded.",
        (
            "resnet50-imagenet --to imagenet-resnet50 --classes road,car,sky",
            "train_epoch_100.pth --to pspnet50 --classes names.txt",
        ),
    )
    parser.add_argument(
        "source",
        type=_name_or_uri,
        metavar="SOURCE",
        help=".pth, .pt or .safetensors file, path or URI; or a name such as mmseg-r50-voc",
    )
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
    align_corners = None if arguments.align_corners is None else arguments.align_corners == "true"
    source, weights = arguments.source, None
    if published.is_name(source):
        weights = published.find(source)
        with when_interrupted("Run the same command again: the download continues where it stopped."):
            source = published.downloaded(weights, published.cache_folder()).as_uri()
        align_corners = weights.align_corners if align_corners is None else align_corners
    log("Loading PyTorch")
    # Before torch is imported, which takes seconds.
    from pipeline import storage

    storage.require(source, "source")
    from pipeline.checkpoints.importing import import_checkpoint, read_classes

    classes = read_classes(arguments.classes) if arguments.classes is not None else None
    summary = import_checkpoint(source, to, classes, arguments.bins, align_corners, arguments.ema)
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
    if weights is not None:
        print(f"Published     {weights.license}, trained on {weights.data}{_accuracy(weights)}")
    for note in summary.imported.notes:
        print(f"Note          {note}")
    if metadata.has_trained_heads:
        print(f"Next          python jobs/segment_bucket.py --input URI --output URI --checkpoint {summary.output}")


def _name_or_uri(text: str) -> str:
    return text if published.is_name(text) else uri(text)


def _accuracy(weights: published.PublishedWeights) -> str:
    if weights.miou is None:
        return ""
    return f": mIoU {weights.miou:.2f}%, {weights.miou_multi_scale:.2f}% at several scales with mirror images"


def _bins(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,2,3,6") from None


if __name__ == "__main__":
    run_job(main)
