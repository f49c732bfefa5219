"""Fused kernels, each beside the plain form that says the same; arrays and tensors in, arrays and tensors
out.

Must not know modules, the catalogue or a search.

`beam_step.py`, `hstu_attention.py` and `item_embedding.py` hold a public function that chooses by device: a
CUDA tensor goes to the Triton kernel of the neighbouring `*_triton.py`, any other to the torch reference.
Triton is imported on the way to a kernel and not before, so a CPU needs none of it.
`models/compilation/compile.py` compiles all of them without a GPU and reports what they need.
"""
