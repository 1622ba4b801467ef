"""Run the paper's ablations over a recipe: `python jobs/ablate.py --config configs/NAME.yaml --output URI`."""

from pipeline.config.jobs import AblateConfig
from pipeline.config.loading import load_settings
from pipeline.console import log, run_job, when_interrupted


@when_interrupted("Run the same command again: finished trainings stay, and the others resume.")
def main(argv: list[str], prog: str = "jobs/ablate.py") -> None:
    config = load_settings(AblateConfig, argv, prog)
    log("Loading PyTorch and Ray")
    # Before torch is imported, which takes seconds.
    from pipeline import storage

    storage.require(config.data.root, "data.root")
    from pipeline.ablate.run import ablate

    ablation = ablate(config)
    for table in ablation.tables:
        log(f"\n{table.text()}")
    log(f"\nTables   {ablation.report}")
    log(f"Results  {ablation.results}")


if __name__ == "__main__":
    run_job(main)
