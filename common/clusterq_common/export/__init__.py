"""Export of a student to files for other runtimes: ONNX, torch.export, packed integers."""
