"""What the last token of a short prefix sees, on a CPU, compiled.

In torch it takes a gather, a product and a sum for each code of the prefix; a prefix has three at most, and
for one request the calls cost more than the work.

Shapes: Q prefixes, B requests, l codes so far, s tokens seen (l + 1), V codebook size, D width, H heads.
"""

import numpy as np

from models.arrays import Float32Array, Int64Array
from models.kernels.compiled import compiled_fast


@compiled_fast
def attend_prefix(
    prefix_Ql: Int64Array,
    request_Q: Int64Array,
    start_key_BD: Float32Array,
    start_value_BD: Float32Array,
    query_lVD: Float32Array,
    key_lVD: Float32Array,
    value_lVD: Float32Array,
    num_heads: int,
) -> Float32Array:
    """Softmax attention of each prefix's last code over the first token and l >= 1 codes: float32 [Q, D].

    Queries, keys and values of all codes come from tables, those of the first token by request; the
    `num_heads` heads stand side by side in D.
    """
    num_prefixes, length = prefix_Ql.shape
    width = start_key_BD.shape[1]
    head_width = width // num_heads
    scale = np.float32(1.0 / np.sqrt(head_width))
    seen_QD = np.zeros((num_prefixes, width), np.float32)
    weight_Hs = np.empty((num_heads, length + 1), np.float32)
    for q in range(num_prefixes):
        query_D = query_lVD[length - 1, prefix_Ql[q, length - 1]]
        for s in range(length + 1):
            key_D = start_key_BD[request_Q[q]] if s == 0 else key_lVD[s - 1, prefix_Ql[q, s - 1]]
            for head in range(num_heads):
                score = np.float32(0.0)
                for d in range(head * head_width, (head + 1) * head_width):
                    score += query_D[d] * key_D[d]
                weight_Hs[head, s] = score * scale
        for head in range(num_heads):
            highest = weight_Hs[head].max()
            total = np.float32(0.0)
            for s in range(length + 1):
                weight_Hs[head, s] = np.exp(weight_Hs[head, s] - highest)
                total += weight_Hs[head, s]
            for s in range(length + 1):
                weight_Hs[head, s] /= total
        for s in range(length + 1):
            value_D = start_value_BD[request_Q[q]] if s == 0 else value_lVD[s - 1, prefix_Ql[q, s - 1]]
            for head in range(num_heads):
                share = weight_Hs[head, s]
                for d in range(head * head_width, (head + 1) * head_width):
                    seen_QD[q, d] += share * value_D[d]
    return seen_QD
