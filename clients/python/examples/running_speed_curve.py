"""How does running change the responses to one and the same image? One request, one image per speed.

python running_speed_curve.py [MOUSE] [URL]
"""

from __future__ import annotations

import sys

import numpy as np
from v1t_client import Client, V1TError

SPEEDS = np.linspace(0, 30, 7)  # cm/s


def main(mouse: str = "A", url: str = "http://127.0.0.1:3000") -> None:
    with Client(url) as client:
        channels, height, width = client.mouse(mouse).image_shape
        columns = 127.5 + 127.5 * np.sin(2 * np.pi * np.arange(width) / 32)  # a grating, grey levels
        image = np.broadcast_to(columns, (len(SPEEDS), channels, height, width))  # (B, C, H, W)
        prediction = client.predict(mouse, image.astype(np.uint8), running_speed=SPEEDS)
    still = prediction.responses[0].mean()
    for speed, responses in zip(SPEEDS, prediction.responses, strict=True):
        print(f"{speed:5.1f} cm/s  mean response {responses.mean():.4f}  {responses.mean() / still:6.1%} of standing")
    for line in prediction.assumed:
        print(f"assumed: {line}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except V1TError as error:
        sys.exit(f"running_speed_curve: {error}")
