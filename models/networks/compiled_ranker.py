"""The ranker's weights as its compiled form takes them (`models.kernels.ranker_cpu`), and the call.

Owns which rankers have a compiled form, and that it reads a batch as the network does.

Shapes: B requests, N catalogue rows, M candidates, D the generator's width, A actions.
"""

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array
from models.candidates import Source
from models.kernels.ranker_cpu import rank_candidates
from models.kernels.ranker_weights import PackedWeights
from models.networks import ranker as network
from models.networks.ranker import PADDING_LOGIT, Ranker, RankerOutput, RankingBatch
from models.networks.softmax_trunk import SoftmaxTrunk


class CompiledRanker:
    """A frozen reading of one ranker: later changes of its weights do not show.

    Raises ValueError for one without a compiled form (`has_compiled_form`).
    """

    def __init__(self, ranker: Ranker) -> None:
        if not has_compiled_form(ranker):
            raise ValueError("only a ranker on a CPU with one softmax block has a compiled form")
        self._weights = _packed(ranker)

    def __call__(self, batch: RankingBatch, item_ND: Tensor) -> RankerOutput:
        """`Ranker.forward` in evaluation, within float32's rounding; for `item_ND` float32 [N, D], N >= 1."""
        history = batch.history
        out_BOM = torch.from_numpy(
            rank_candidates(
                self._weights,
                item_ND.numpy(),
                history.item_BT.contiguous().numpy(),
                history.action_BT.contiguous().numpy(),
                history.time_ms_BT.contiguous().numpy(),
                history.length_B.numpy(),
                batch.row_BM.contiguous().numpy(),
                batch.source_BM.contiguous().numpy(),
                batch.beam_BM.contiguous().numpy(),
                batch.dense_BM.contiguous().numpy(),
                batch.feature_BMF.contiguous().numpy(),
            )
        )
        return RankerOutput(relevance_BM=out_BOM[:, 0], action_logit_BMA=out_BOM[:, 1:].transpose(1, 2))


def has_compiled_form(ranker: Ranker) -> bool:
    """Whether `CompiledRanker` takes it: float32 on a CPU, with a softmax trunk of one block."""
    first = ranker.history_item.weight
    is_plain = first.device.type == "cpu" and first.dtype == torch.float32
    return is_plain and isinstance(ranker.trunk, SoftmaxTrunk) and len(ranker.trunk.blocks) == 1


def _packed(ranker: Ranker) -> PackedWeights:
    arrays = _arrays(ranker)
    shapes = [array.shape if array.ndim == 2 else (1, len(array)) for array in arrays]
    sizes = np.array([array.size for array in arrays], np.int64)
    return PackedWeights(
        number_X=np.concatenate([array.ravel() for array in arrays]),
        begin_W=np.cumsum(sizes) - sizes,
        shape_W2=np.array(shapes, np.int64),
        bit_S=np.array([source.bit for source in Source], np.int64),
    )


def _arrays(ranker: Ranker) -> list[Float32Array]:
    """In the order of the fields of `RankerWeights`."""
    trunk = ranker.trunk
    (block,) = trunk.blocks
    scales = [trunk.norm.eps, network.DENSE_SCALE, network.BEAM_FLOOR, network.BEAM_SCALE, PADDING_LOGIT]
    layers = [
        ranker.history_item,
        ranker.candidate_item,
        block.attention.project_in,
        block.attention.project_out,
        block.ffn[0],
        block.ffn[2],
        ranker.hidden[0],
        ranker.hidden[2],
        ranker.output,
    ]
    norms = [ranker.history_norm, ranker.candidate_norm, block.attention_norm, block.ffn_norm, trunk.norm]
    return [
        *(_array(getattr(layer, part)) for layer in (*layers, *norms) for part in ("weight", "bias")),
        _array(ranker.action_embedding.weight),
        _array(ranker.gap_embedding.weight),
        _array(trunk.slope_H),
        _array(torch.stack([ranker.dense_weight, ranker.beam_weight])),
        np.array(scales, np.float32),
    ]


def _array(tensor: Tensor) -> Float32Array:
    array: Float32Array = tensor.detach().numpy()
    return array
