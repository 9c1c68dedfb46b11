"""A mouse's responses with onnxruntime alone: python onnxruntime_alone.py mice/A/twin.onnx (export --single-file)"""

import sys

import numpy as np
import onnxruntime

twin = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
shapes = {value.name: [1, *value.shape[1:]] for value in twin.get_inputs()}  # of the inputs that it uses
stimulus = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}  # in the recording's own units
stimulus["image"] += np.random.default_rng(0).normal(113, 60, shapes["image"]).astype(np.float32)  # grey levels
(response,) = twin.run(["response"], stimulus)  # (1, neurons), standardised
print(f"{response.shape[1]} neurons, mean response {response.mean():.3f}, strongest: neuron {response[0].argmax()}")
