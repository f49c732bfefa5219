"""The ranker's weights as its compiled form takes them (`models.kernels.ranker_cpu`), and the call.

Owns which rankers have a compiled form, and that it reads a batch as the network does.

Shapes: B requests, N catalogue rows, M candidates, D the generator's width, A actions.
"""

import numpy as np
import torch
from torch import Tensor, nn

from models.arrays import Float32Array
from models.candidates import Source
from models.kernels.ranker_cpu import Layer, Norm, RankerWeights, rank_candidates
from models.networks import ranker as network
from models.networks.ranker import Ranker, RankerOutput, RankingBatch
from models.networks.softmax_trunk import SoftmaxTrunk


class CompiledRanker:
    """A frozen reading of one ranker: later changes of its weights do not show.

    Raises ValueError for one without a compiled form (`has_compiled_form`).
    """

    def __init__(self, ranker: Ranker) -> None:
        if not has_compiled_form(ranker):
            raise ValueError("only a ranker on a CPU with one softmax block has a compiled form")
        self._weights = _weights_of(ranker)

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


def _weights_of(ranker: Ranker) -> RankerWeights:
    trunk = ranker.trunk
    (block,) = trunk.blocks
    ffn_in, _, ffn_out = block.ffn
    hidden_first, _, hidden_second, _ = ranker.hidden
    return RankerWeights(
        history_item=_layer(ranker.history_item),
        candidate_item=_layer(ranker.candidate_item),
        action_AD=_copy(ranker.action_embedding.weight),
        gap_GD=_copy(ranker.gap_embedding.weight),
        history_norm=_norm(ranker.history_norm),
        candidate_norm=_norm(ranker.candidate_norm),
        attention_norm=_norm(block.attention_norm),
        attention_in=_layer(block.attention.project_in),
        attention_out=_layer(block.attention.project_out),
        ffn_norm=_norm(block.ffn_norm),
        ffn_in=_layer(ffn_in),
        ffn_out=_layer(ffn_out),
        last_norm=_norm(trunk.norm),
        slope_H=_copy(trunk.slope_H),
        hidden_first=_layer(hidden_first),
        hidden_second=_layer(hidden_second),
        output=_layer(ranker.output),
        weight_2=np.array([ranker.dense_weight.item(), ranker.beam_weight.item()], np.float32),
        scale_5=np.array(
            [
                trunk.norm.eps,
                network.DENSE_SCALE,
                network.BEAM_FLOOR,
                network.BEAM_SCALE,
                network.PADDING_LOGIT,
            ],
            np.float32,
        ),
        bit_S=np.array([source.bit for source in Source], np.int64),
    )


def _layer(layer: nn.Module) -> Layer:
    assert isinstance(layer, nn.Linear)
    return Layer(_copy(layer.weight), _copy(layer.bias))


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(_copy(norm.weight), _copy(norm.bias))


def _copy(tensor: Tensor) -> Float32Array:
    copied: Float32Array = tensor.detach().contiguous().numpy().copy()
    return copied
