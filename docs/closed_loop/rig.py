"""A closed loop with a simulated mouse: in each blank, the twin chooses the next of 64 images.

    python docs/closed_loop/zeromq_bridge.py &
    python docs/closed_loop/rig.py --mouse SIM1 --size 36 64 --neuron 48 --turns 1000 > turns.csv

In each turn, the mouse has just seen an image. Within the blank, 300 ms, the rig asks the twin for one neuron's responses to
64 new images, at the pupil size and running speed that it has just measured, and chooses the one with the strongest.
Where no answer comes in time, the first of them is shown: the experiment goes on, and the table says so. The server may be
restarted meanwhile. The turns follow each other without the pauses of a rig. For a real mouse, replace `Mouse`.
"""

import argparse
import csv
import json
import sys
import time

import numpy as np
import zmq


class Mouse:
    """A simulated mouse: one Poisson neuron with a Gabor receptive field, which running makes more active."""

    def __init__(self, size, rng):
        y, x = np.mgrid[: size[0], : size[1]] - np.array(size)[:, None, None] / 2
        self.field = np.exp(-(x**2 + y**2) / 50) * np.cos(x / 2)
        self.rng = rng

    def measure(self):
        """Pupil dilation in px, and running speed in cm/s, in the blank."""
        return {"pupil_dilation": self.rng.normal(40, 4), "running_speed": self.rng.exponential(5)}

    def show(self, image, running_speed):
        """Spikes in the 500 ms that the image is shown; a rig would wait for them here."""
        drive = (self.field * (image[0] - 113.0)).sum() / 500
        return self.rng.poisson(np.log1p(np.exp(drive)) * (1 + running_speed / 20))


class Twin:
    """The bridge's client. A reply that comes too late is dropped, and never taken for that to the next request."""

    def __init__(self, address):
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.setsockopt(zmq.REQ_RELAXED, 1)  # ask again although no answer came
        self.socket.setsockopt(zmq.REQ_CORRELATE, 1)  # and take only the answer to that
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def responses(self, images, seconds, **fields):
        """(B, n) responses, or None, and why. Asks again after an error, as long as there is time."""
        due, problem = time.perf_counter() + seconds, "no answer in time"
        while (left := due - time.perf_counter()) > 0:
            fields |= {"shape": images.shape, "dtype": "uint8", "timeout": left}
            self.socket.send_multipart([json.dumps(fields).encode(), images.tobytes()])
            if not self.socket.poll(1000 * max(0.0, due - time.perf_counter())):
                break
            head, *rest = self.socket.recv_multipart()
            head = json.loads(head)
            if "error" not in head:
                return np.frombuffer(rest[0], "<f4").reshape(head["shape"]), ""
            problem = f"{head['error']['code']}: {head['error']['message']}"
            time.sleep(0.01)
        return None, problem


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bridge", default="tcp://127.0.0.1:5555")
    parser.add_argument("--mouse", required=True, help="of the twin")
    parser.add_argument("--neuron", type=int, required=True, help="id of the neuron whose response is to be strong")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="of the images")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--blank", type=float, default=0.3, help="seconds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    mouse, twin, took, chosen = Mouse(options.size, rng), Twin(options.bridge), [], 0
    table = csv.writer(sys.stdout)
    table.writerow(["turn", "image", "predicted", "spikes", "ms", "problem"])
    for turn in range(options.turns):
        images = rng.integers(0, 256, (options.candidates, 1, *options.size), dtype=np.uint8)
        state = mouse.measure()
        start = time.perf_counter()
        responses, problem = twin.responses(
            images, options.blank, mouse=options.mouse, neuron_ids=[options.neuron], **state
        )
        ms = 1000 * (time.perf_counter() - start)
        image = 0 if responses is None else int(responses[:, 0].argmax())
        chosen += responses is not None
        took.append(ms)
        predicted = "" if responses is None else float(responses[image, 0])
        spikes = mouse.show(images[image], state["running_speed"])
        table.writerow([turn, image, predicted, spikes, f"{ms:.1f}", problem])
        sys.stdout.flush()
    p50, p99 = np.quantile(took, (0.5, 0.99))
    print(
        f"{chosen} of {options.turns} images chosen; {p50:.1f} ms, p99 {p99:.1f}, worst {max(took):.1f}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
