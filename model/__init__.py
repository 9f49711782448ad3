"""The DeepSeek-V2 network as functions of tensors. Opens no file, knows no device policy."""
