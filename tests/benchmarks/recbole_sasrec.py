"""RecBole's SASRec on one leave-one-out split: run by `quality_sasrec.py` in an environment of its own.

RecBole 1.2.1 needs numpy < 2 (its Config assigns `np.float_` and others that numpy 2 took away) and pandas
< 3, so it lives in `.venv-recbole` and this file is a program: events in, ranks out. Of RecBole it uses the
data set with its augmentation by prefixes, the model, the loss, the optimiser and the training epoch as
they are. What is replaced, and why:

- `Trainer.fit` and `Trainer.evaluate` go through a checkpoint on disk and `torch.load` without
  `weights_only`; here the best weights stay in memory.
- RecBole's evaluation of sequential models lets items that the user already had compete. Ranks are counted by
  `models.measures.ranking_metrics` without them, as for every other system; `--check` first counts them as
  RecBole does and compares with its own figures.
- A batch is encoded in parts of similar length without the common padding: positions are counted from the
  left and attention is causal, so the same numbers come out, several times faster.
- Dropout of rate one half is drawn from bytes, and autograd's search for NaN, which RecBole switches on, is
  off: together half of a step's time on a CPU. A loss that is no number still ends the run.

    .venv-recbole/bin/python tests/benchmarks/recbole_sasrec.py --events DIR/events.npz --out DIR/ranks.npz
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import Tensor

from models.measures.ranking_metrics import ranking_metrics, ranks_of_targets
from models.networks.blocks import ByteDropout

PART = 256
SETTINGS: dict[str, Any] = {
    # the network: RecBole's own defaults for SASRec, which its published Amazon results also use
    # (benchmark/hyper/sequential/SASRec-amazon-books_seq.md tunes the learning rate alone)
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "hidden_act": "gelu",
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "MAX_ITEM_LIST_LENGTH": 50,
    "train_batch_size": 2048,
    "learning_rate": 1e-3,
    "stopping_step": 10,
    # the protocol: `position` stands for the time, so that equal times keep our order
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "position",
    "load_col": {"inter": ["user_id", "item_id", "position"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
    "eval_batch_size": 512,
    "metrics": ["Recall", "NDCG"],
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "use_gpu": False,
    "gpu_id": "",
    "show_progress": False,
    "state": "ERROR",
    "log_wandb": False,
}


class UnpaddedSASRec(SASRec):
    """The same network; a batch is encoded in parts of similar length, each as wide as it must be."""

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """int64 [B, T] and [B] -> float32 [B, D]."""
        order = torch.argsort(item_seq_len)
        parts = []
        for part in order.split(PART):
            width = max(1, int(item_seq_len[part].max()))
            parts.append(super().forward(item_seq[part, :width], item_seq_len[part]))
        return torch.cat(parts)[torch.argsort(order)]


def cheap_dropout(module: torch.nn.Module) -> None:
    """Puts `ByteDropout` in the place of every dropout; .5 is a whole number of 256ths, so it is the same."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Dropout):
            setattr(module, name, ByteDropout(child.p))
        else:
            cheap_dropout(child)


def ranks(model: SASRec, loader: Any, seen: list[np.ndarray], *, exclude: bool) -> dict[str, np.ndarray]:
    """The 0-based rank of each case's item among all, with its user and item (RecBole's numbers)."""
    model.eval()
    found: dict[str, list[np.ndarray]] = {"user": [], "item": [], "rank": []}
    with torch.no_grad():
        for interaction, _, _, positive in loader:
            user, length = interaction["user_id"], interaction["item_length"]
            scores = model.full_sort_predict(interaction)
            scores[:, 0] = -torch.inf  # the padding is no item
            for row, (one, target) in enumerate(zip(user.tolist(), positive.tolist(), strict=True)):
                # the last of a user's events before the target stands at the end of the list
                history = before_target(seen[one], target, interaction["item_id_list"][row], int(length[row]))
                if exclude:
                    scores[row, torch.from_numpy(history)] = -torch.inf
            found["user"].append(user.numpy())
            found["item"].append(positive.numpy())
            found["rank"].append(ranks_of_targets(scores, positive))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def before_target(events: np.ndarray, target: int, newest: Tensor, length: int) -> np.ndarray:
    """All items of a user before the target, also those older than what the model reads."""
    last = int(newest[length - 1])
    place = next(
        n for n in range(len(events) - 1, 0, -1) if events[n] == target and int(events[n - 1]) == last
    )
    return events[:place]


def train(
    model: SASRec, trainer: Trainer, train_data: Any, validate: Any, arguments: argparse.Namespace
) -> int:
    """RecBole's epochs until its early stopping, `--epochs` or `--minutes`; the best weights stay."""
    begin_s, best, best_state, stale, best_epoch = time.monotonic(), -1.0, None, 0, 0
    for epoch in range(arguments.epochs):
        loss = trainer._train_epoch(train_data, epoch)
        figures = validate()
        minutes = (time.monotonic() - begin_s) / 60
        say(epoch=epoch + 1, loss=loss / len(train_data), minutes=minutes, **figures)
        if figures["ndcg@10"] > best:
            best, best_state, stale, best_epoch = (
                figures["ndcg@10"],
                copy.deepcopy(model.state_dict()),
                0,
                epoch,
            )
        else:
            stale += 1
        if stale > SETTINGS["stopping_step"] or minutes >= arguments.minutes:
            break
    if best_state is not None:
        model.load_state_dict(best_state)
    return best_epoch + 1


def say(**figures: float) -> None:
    """One line of JSON on standard output, for the benchmark to show."""
    sys.stdout.write(json.dumps({name: round(float(value), 5) for name, value in figures.items()}) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with RecBole's own evaluation first")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line too
    torch.set_num_threads(arguments.threads)
    events = np.load(arguments.events)
    folder = write_inter(events, arguments.out.parent)
    config = Config(
        model="SASRec",
        dataset="events",
        config_dict=SETTINGS
        | {"data_path": str(folder), "seed": arguments.seed, "checkpoint_dir": str(folder / "saved")},
    )
    init_seed(arguments.seed, reproducibility=True)
    dataset = create_dataset(config)
    seen = sequences(dataset)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(arguments.seed, reproducibility=True)
    model = UnpaddedSASRec(config, train_data.dataset)
    cheap_dropout(model)
    torch.autograd.set_detect_anomaly(False)
    trainer = Trainer(config, model)
    begin_s = time.monotonic()
    best_epoch = train(
        model,
        trainer,
        train_data,
        lambda: ranking_metrics(ranks(model, valid_data, seen, exclude=True)["rank"]),
        arguments,
    )
    minutes = (time.monotonic() - begin_s) / 60
    if arguments.check:
        check(model, trainer, valid_data, seen)
    result: dict[str, Any] = {"minutes": minutes, "best_epoch": best_epoch}
    for name, loader in (("validation", valid_data), ("test", test_data)):
        part = ranks(model, loader, seen, exclude=True)
        result[f"{name}_rank"] = part["rank"]
        result[f"{name}_user"] = dataset.id2token("user_id", part["user"]).astype(np.int64)
        result[f"{name}_item"] = dataset.id2token("item_id", part["item"]).astype(np.int64)
    np.savez(arguments.out, **result)


def write_inter(events: Any, folder: Path) -> Path:
    """RecBole's atomic file of the events (int64 user, item, position); returns its data path."""
    (folder / "events").mkdir(parents=True, exist_ok=True)
    rows = np.stack([events["user"], events["item"], events["position"]], axis=1)
    np.savetxt(
        folder / "events" / "events.inter",
        rows,
        fmt="%d",
        delimiter="\t",
        header="user_id:token\titem_id:token\tposition:float",
        comments="",
    )
    return folder


def sequences(dataset: Any) -> list[np.ndarray]:
    """Each user's items in order, by RecBole's number of the user."""
    user, item, position = (
        np.asarray(dataset.inter_feat[name]) for name in ("user_id", "item_id", "position")
    )
    order = np.lexsort((position, user))
    bounds = np.searchsorted(user[order], np.arange(1, dataset.user_num + 1))
    return np.split(item[order], bounds)


def check(model: SASRec, trainer: Trainer, loader: Any, seen: list[np.ndarray]) -> None:
    """Our counting of ranks, with seen items competing, must give RecBole's own figures."""
    ours = ranking_metrics(ranks(model, loader, seen, exclude=False)["rank"])
    theirs = trainer.evaluate(loader, load_best_model=False)
    worst = max(abs(ours[name] - theirs[name]) for name in ours)
    if worst > 1e-5:
        raise SystemExit(f"RecBole's evaluation says {dict(theirs)}, ours {ours}")
    say(difference_to_recbole_evaluation=worst)


if __name__ == "__main__":
    main()
