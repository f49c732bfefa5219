"""`python -m models.compilation.precompile`: compiles the CPU kernels now, so that no service does later.

It takes a minute and stays on disk beside the sources; each function has one signature, that of the calls
below.
"""

import numpy as np
import torch

from models.batch import ACTION_NAMES, HistoryBatch
from models.catalogue.trie import Trie
from models.decoding.beam_search import beam_search
from models.decoding.compiled_search import CompiledSearch
from models.decoding.nearest import NearestIndex
from models.kernels.beam_step_cpu import mark_valid_codes
from models.kernels.compiled import forget_other_sources
from models.kernels.dense_head_cpu import DenseHead, dense_logits, dense_queries
from models.kernels.row_products import products_of_rows
from models.kernels.row_sets import open_positions, summed_by_row, union
from models.networks.compiled_ranker import CompiledRanker
from models.networks.compiled_trunk import CompiledTrunk
from models.networks.config import ModelConfig
from models.networks.depth_decoder import DepthDecoder
from models.networks.ranker import Ranker, RankingBatch
from models.networks.softmax_trunk import SoftmaxTrunk
from models.ranking.config import StatisticsConfig
from models.ranking.feature_columns import FeatureInputs, column_names, fill_columns
from models.ranking.live_statistics import LiveStatistics


def precompile() -> None:
    """One search of each kind among three items, training's mask, the trunk on one event, the ranker on one
    item."""
    trie = Trie(3, 4)
    trie.insert_many(np.array([[0, 1, 2], [0, 1, 3], [2, 0, 0]]), np.ones(3, np.bool_))
    decoder = DepthDecoder(
        d_model=8, num_codes=3, codebook_size=4, num_heads=2, dropout=0.0, ffn_ratio=1
    ).eval()
    decoding = decoder.tables().start(torch.zeros(1, 8))
    beam_search(decoding.logits, trie, batch_size=1, k=2, beam=2, exclude=[np.array([0])])
    CompiledSearch(decoder)(np.zeros((1, 8), np.float32), trie, k=2, beam=2, exclude=[np.array([0])])
    trunk = CompiledTrunk(SoftmaxTrunk(8, 1, 2, 0.0).eval())
    one_event = torch.zeros(1, 1, 8), torch.ones(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    trunk.extend(trunk.prefill(*one_event)[1], torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64))
    vector_ND = np.eye(3, 2, dtype=np.float32)
    head = DenseHead(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), 1.0)
    query_BD = dense_queries(vector_ND[:1], head)
    dense_logits(vector_ND[:1], head, vector_ND, np.zeros((1, 1), np.int64))
    nearest = NearestIndex(2)
    nearest.put(0, torch.from_numpy(vector_ND))
    nearest.search(query_BD, vector_ND, 1, allowed_N=np.ones(3, np.bool_))
    node_X, code_X = np.zeros(1, np.int64), np.zeros(1, np.int64)
    mark_valid_codes(trie.levels[0], 4, node_X, code_X, np.zeros((1, 4), np.bool_))
    _features_of_one()
    _rank_one()
    row, share = np.zeros(1, np.int64), np.zeros((1, 1))
    open_positions(row, np.ones(1, np.bool_), row)
    union(row, row, np.zeros(1, np.float32), np.zeros(1, np.float32))
    summed_by_row(row[None], share)


def _rank_one() -> None:
    config = ModelConfig(content_dim=8, d_model=8, num_heads=2, ranker_dim=8, num_identities=0)
    one, whole = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    batch = RankingBatch(
        history=HistoryBatch.from_lists([[0]], [[0]], [[0]], max_history=1),
        row_BM=whole,
        source_BM=whole,
        beam_BM=one,
        dense_BM=one,
        feature_BMF=one[:, :, None],
    )
    CompiledRanker(Ranker(config, 1).eval())(batch, torch.zeros(1, 8))


def _features_of_one() -> None:
    config = StatisticsConfig()
    whole, tie_RM = np.zeros(1, np.int64), np.zeros((1, 1))
    inputs = FeatureInputs(
        count_MH=np.zeros((1, len(config.half_lives_s))),
        total_M=np.zeros(1),
        first_ms_M=whole,
        last_ms_M=whole,
        announced_ms_M=whole,
        tie_RM=tie_RM,
        share_RM=tie_RM,
        cosine_RM=tie_RM.astype(np.float32),
        row_M=whole,
        history_T=whole,
        last_event_ms=0,
        time_ms=0,
    )
    statistics = LiveStatistics(config)
    statistics.update_many(["u", "u"], ["a", "b"], [ACTION_NAMES.index("click")] * 2, [0, 1])
    statistics.items(whole, 0)
    statistics.ties(whole, whole, 0)
    products_of_rows(np.zeros((1, 1), np.float32), whole, whole)
    fill_columns(inputs, np.zeros((1, len(column_names(config.half_lives_s))), np.float32))


if __name__ == "__main__":
    precompile()
    forget_other_sources()
