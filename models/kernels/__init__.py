"""Fused kernels, each beside the plain form that says the same.

`beam_step.py`, `hstu_attention.py` and `item_embedding.py` hold a public function and its torch reference.
The function chooses by device: a CUDA tensor goes to the Triton kernel of the neighbouring `*_triton.py`,
any other to the reference. Triton is imported on the way to a kernel and not before, so a CPU needs none
of it. `compile.py` compiles all of them without a GPU and reports what they need.
"""
