"""Figures that others published for Amazon Beauty, leave-one-out, full ranking; nothing here was run by us.

All from Table 2 of REG4Rec (Xing et al., "Reasoning-Enhanced Generative Model for Large-Scale
Recommendation Systems"), which took some of its baselines' figures from the papers before it.
"""

from typing import Any

SOURCE = "REG4Rec, Table 2"
_METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
_BEAUTY = {
    "SASRec": (0.0387, 0.0249, 0.0605, 0.0318),
    "S3-Rec": (0.0387, 0.0244, 0.0647, 0.0327),
    "TIGER": (0.0454, 0.0321, 0.0648, 0.0384),
    "COBRA": (0.0537, 0.0395, 0.0725, 0.0456),
    "ReaRec": (0.0431, 0.0276, 0.0654, 0.0375),
    "STREAM": (0.0538, 0.0388, 0.0691, 0.0422),
    "REG4Rec": (0.0586, 0.0416, 0.0792, 0.0493),
}


def published_rows() -> list[dict[str, Any]]:
    """One row for each published system, marked by `published` and its source."""
    return [
        {
            "system": f"{system} (published)",
            "dataset": "amazon_beauty",
            "split": "test",
            "seed": None,
            **dict(zip(_METRICS, figures, strict=True)),
            "train_minutes": None,
            "published": SOURCE,
        }
        for system, figures in _BEAUTY.items()
    ]
