"""What would the neurons of a mouse do, shown this image, while it runs at 3 cm/s?

python predict_image.py image.png [MOUSE] [URL]
"""

from __future__ import annotations

import sys

import numpy as np
from v1t_client import Client, V1TError


def main(path: str, mouse: str = "A", url: str = "http://127.0.0.1:3000") -> None:
    with Client(url) as client:
        prediction = client.predict(mouse, path, pupil_dilation=41, running_speed=3, resize="fit", spread=True)
    print(prediction)
    assert prediction.spread is not None  # it was asked for
    for j in np.argsort(-prediction.responses[0])[:5]:
        response, spread = prediction.responses[0, j], prediction.spread[0, j]
        print(f"neuron {prediction.neuron_ids[j]:>6}: {response:.3f} +- {spread:.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except V1TError as error:
        sys.exit(f"predict_image: {error}")
