"""Settings that a column may try, and the choice by validation clicks of seed 0. All trials are in ``tuning.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.results import Row, read_results, write_results

Overrides = tuple[str, ...]
KERNEL = 'patch.parts=["convolution","readout"]'
OURS, LOCAL, FEDAVG, ORACLE = "fedquilt", "local fine-tuning only", "FedAvg of the whole kernel", "oracle"


def _local(steps: int, rate: float) -> Overrides:
    return f"evaluation.personal_steps={steps}", f"evaluation.personal_learning_rate={rate}"


# As many visits of users, in more and smaller steps: the oracle takes some 440 steps of 128 users.
SMALL_STEPS: Overrides = ("federation.cohort_size=128", "federation.rounds=250", "server_optimizer.learning_rate=0.01")
MORE_MOMENTS: Overrides = (*SMALL_STEPS[:1], "federation.rounds=125", SMALL_STEPS[2], "meta.num_contexts=4")

# A column's own settings, then what it may vary. Ours, FedAvg and the oracle have as many trials.
FIXED: dict[str, Overrides] = {
    OURS: (),
    LOCAL: (KERNEL, 'meta.inner_parts=["convolution","readout"]', "federation.rounds=0"),
    FEDAVG: (KERNEL, 'meta.inner_parts=["readout"]', "meta.inner_steps=0", "federation.upload_entries=0"),
    ORACLE: ("split.cloud_share=1.0", "federation.rounds=0"),
}
TRIALS: dict[str, tuple[Overrides, ...]] = {
    OURS: ((), SMALL_STEPS, MORE_MOMENTS),
    LOCAL: tuple(_local(steps, rate) for steps in (1, 5) for rate in (0.03, 0.1)),
    FEDAVG: ((), SMALL_STEPS, MORE_MOMENTS),
    ORACLE: ((), ("cloud.learning_rate=0.002",), ("cloud.num_contexts=8", "cloud.epochs=60")),
}
# The bazaar's first trials were ml-100k's, at a cloud learning rate of .005 (in ``tuning.json``): more moments and the
# smaller rate won. Eight visits a user were too few, so its configuration now has both, and four times the visits, for
# ours and FedAvg alike, without another choice.
FROM_FIRST_TRIALS: dict[str, tuple[Overrides, ...]] = {
    OURS: ((),),
    LOCAL: (_local(1, 0.03),),
    FEDAVG: ((),),
    ORACLE: ((),),
}
TRIALS_OF = {"ml-100k": TRIALS, "bazaar": FROM_FIRST_TRIALS}
JUDGED_BY = {OURS: "personal", LOCAL: "personal", FEDAVG: "global", ORACLE: "base"}  # the variant of a run


def chosen(dataset: str, column: str, path: Path, validate: Callable[[Overrides], float]) -> Overrides:
    """The trial with the best validation NDCG@10 over all users, the first among equals. None is made twice, and an
    only one is not judged.
    """
    trials = TRIALS_OF[dataset][column]
    known: list[Row] = read_results(path)["rows"] if path.exists() else []
    scores = {
        tuple(row["tried"]): row["valid_ndcg"] for row in known if (row["dataset"], row["column"]) == (dataset, column)
    }
    for tried in trials if len(trials) > 1 else ():
        if tried not in scores:
            scores[tried] = validate(tried)
            row = {"dataset": dataset, "column": column, "tried": list(tried), "valid_ndcg": round(scores[tried], 5)}
            write_results(path, [row], lambda rows: {}, key=("dataset", "column", "tried"))
            print(dataset, column, *tried, f"validation NDCG@10 {scores[tried]:.4f}", flush=True)
    return max(trials, key=lambda tried: scores.get(tried, 0.0))


def overrides(column: str, tried: Sequence[str], seed: int) -> list[str]:
    return [f"seed={seed}", *FIXED[column], *tried]
