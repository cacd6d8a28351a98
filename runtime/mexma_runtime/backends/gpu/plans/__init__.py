"""Plans opened on a GPU, by TensorRT or by TensorRT for RTX: one backend and one session for both."""
