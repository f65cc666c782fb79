"""A student as a file for other runtimes: ONNX, torch.export, packed integers."""
