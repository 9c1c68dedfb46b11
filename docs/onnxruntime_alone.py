"""A mouse's responses with onnxruntime alone: python onnxruntime_alone.py mice/A/twin.onnx (export --single-file)"""

import sys

import numpy as np
import onnxruntime

twin = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = twin.get_modelmeta().custom_metadata_map  # mouse, model, units, neuron_ids, citation, ...
standardized = about["standardized_inputs"] == "true"  # then ordinary pictures give wrong responses
shapes = {value.name: [1, *value.shape[1:]] for value in twin.get_inputs()}  # of the inputs that it uses
stimulus = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
mean, std = (0, 1) if standardized else (113, 60)  # grey levels, 0 to 255
stimulus["image"] += np.random.default_rng(0).normal(mean, std, shapes["image"]).astype(np.float32)
(response,) = twin.run(["response"], stimulus)  # (1, neurons), standardised
print(f"{response.shape[1]} neurons, mean response {response.mean():.3f}, strongest: neuron {response[0].argmax()}")
print(f"mouse {about['mouse']}{' (simulated)' if about['simulated'] == 'true' else ''} of model {about['model']}")
print(f"takes {'standardised inputs' if standardized else 'inputs as recorded'}: image {about['image']}")
