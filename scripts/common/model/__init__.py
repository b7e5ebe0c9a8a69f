"""Checkpoints, the network, its graph, ONNX files, float16, int8."""
