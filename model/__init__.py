"""The DeepSeek-V2 network as functions of tensors.

Reads no checkpoint and places no weight; kernels/ picks the fastest product for where tensors lie.
"""
