"""The twin of the demo service without FG: tensors by position, scores out.

Its four inputs have the types and shapes of the vendor page's sample call: three
ids per item, ten vectors of 768 that an item is compared with, the item's own
vector, and one more id.
"""

import numpy as np
import torch
from torch import Tensor, nn

from procserver.wire.pb import torch_predict_pb2 as torch_pb

WIDTH = 768
ROWS = 300
STEPS = 10
IDS = 1000
SAMPLE = "bypass.pb"


class Twin(nn.Module):
    """Scores items from ids and vectors that the client prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(IDS, 16)
        self.scene = nn.Embedding(IDS, 16)
        self.narrow = nn.Linear(WIDTH, 32)
        self.head = nn.Sequential(
            nn.Linear(3 * 16 + 16 + 2 * 32, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(
        self, ids: Tensor, history: Tensor, content: Tensor, scene: Tensor
    ) -> Tensor:
        """One float32 score in 0..1 per row.

        :param ids: int64 [rows, 3], any values
        :param history: float32 [rows, steps, 768]
        :param content: float32 [rows, 768]
        :param scene: int64 [rows], any values
        """
        weights = torch.bmm(history, content.unsqueeze(2)) / 768.0**0.5
        weights = torch.softmax(weights, dim=1)
        seen = torch.bmm(weights.transpose(1, 2), history).squeeze(1)
        known = self.ids(torch.remainder(ids, 1000)).flatten(1)
        place = self.scene(torch.remainder(scene, 1000))
        parts = [known, place, self.narrow(seen), self.narrow(content)]
        return torch.sigmoid(self.head(torch.cat(parts, dim=1))).squeeze(1)


def script_twin(seed: int) -> torch.jit.ScriptModule:
    torch.manual_seed(seed)
    scripted: torch.jit.ScriptModule = torch.jit.script(Twin().eval())
    return scripted


def sample_request(seed: int) -> bytes:
    """Bytes of a PredictRequest of 10 MB with random content."""
    rng = np.random.default_rng(seed)
    message = torch_pb.PredictRequest()
    for array in (
        rng.integers(0, IDS, (ROWS, 3)),
        rng.normal(size=(ROWS, STEPS, WIDTH)).astype(np.float32),
        rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        rng.integers(0, IDS, ROWS),
    ):
        tensor = message.inputs.add()
        tensor.array_shape.dim.extend(array.shape)
        if array.dtype == np.float32:
            tensor.dtype = torch_pb.DT_FLOAT
            tensor.float_val.extend(array.ravel().tolist())
        else:
            tensor.dtype = torch_pb.DT_INT64
            tensor.int64_val.extend(array.ravel().tolist())
    body: bytes = message.SerializeToString()
    return body
