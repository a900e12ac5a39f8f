"""Whole attention layers of a model, projections included, computed by an attention-server.

The weights are sent once, and kept once: a tenant's layers of equal weights share their memory. From
then on rows of embeddings go in and rows of embeddings come out.
"""

import contextlib
import hashlib
import uuid

from attention.v1 import layer_service_pb2 as pb
from attention.v1 import layer_service_pb2_grpc, tensor_pb2
from remote_attention import from_tensor, to_tensor

CHUNK_BYTES = 1 << 20


class RemoteLayers:
    """The attention layers of one model; `layers` are the server's descriptions of them."""

    def __init__(self, stub, layers):
        self._stub = stub
        self.layers = layers

    # [attend]
    def attend(self, layer, x, lengths):
        """y [sum(lengths), width] of x [sum(lengths), width], the rows of all texts one after another.

        One call for all texts: each token attends to all of its own text, and nothing is padded.
        """
        request = pb.ForwardRequest(
            layer_id=self.layers[layer].layer_id, x=to_tensor(x), x_lens=lengths
        )
        return from_tensor(self._stub.Forward(request).output)
    # [end]


@contextlib.contextmanager
def uploaded(channel, model):
    """Uploads the model's layers; the `with` block gets RemoteLayers. They are deleted at its end, also
    when it fails, or one of the uploads does."""
    prefix = f"example/{uuid.uuid4()}"  # other programs may use the same model
    stub = layer_service_pb2_grpc.LayerServiceStub(channel)
    with contextlib.ExitStack() as stack:
        layers = []
        for index in range(model.num_layers):
            layer_id = f"{prefix}/{index}"
            # Before the upload, whose answer may be lost; deleting what is not there is no error.
            stack.callback(stub.DeleteLayer, pb.DeleteLayerRequest(layer_id=layer_id))
            layers.append(stub.CreateLayer(_upload(layer_id, model, index)).layer)
        yield RemoteLayers(stub, layers)


@contextlib.contextmanager
def preloaded(channel, model, prefix):
    """RemoteLayers of PREFIX.0, PREFIX.1 and so on, which the server has from its start."""
    stub = layer_service_pb2_grpc.LayerServiceStub(channel)
    layers = []
    for index in range(model.num_layers):
        request = pb.GetLayerRequest(layer_id=f"{prefix}.{index}")
        layers.append(stub.GetLayer(request).layer)
        if layers[-1].sha256 != _sha256(_tensors(model, index)):
            raise ValueError(f"{request.layer_id} has other weights than the model")
    yield RemoteLayers(stub, layers)


def _tensors(model, index):
    """{number: float32 array} of a layer, in the order of the numbers: weights, then biases."""
    weights = model.layer_weights(index)
    return {
        pb.LayerTensorName.Value(f"LAYER_TENSOR_NAME_{kind}_{name.upper()}"): weights[name][part]
        for part, kind in enumerate("WB")
        for name in "qkvo"
    }


def _sha256(tensors):
    return hashlib.sha256(b"".join(to_tensor(array).data for array in tensors.values())).digest()


def _upload(layer_id, model, index):
    """The messages of CreateLayer: the layer, then each tensor in chunks."""
    tensors = _tensors(model, index)
    config = pb.LayerConfig(
        dtype=tensor_pb2.DTYPE_FLOAT32,
        model_dim=model.width,
        num_q_heads=model.num_heads,
        head_dim_qk=model.width // model.num_heads,
    )  # not causal, no rotary embedding: MiniLM adds positions to its tokens
    layer = pb.NewLayer(layer_id=layer_id, config=config, sha256=_sha256(tensors))
    yield pb.CreateLayerRequest(layer=layer)
    for name, array in tensors.items():
        header = to_tensor(array)
        data, header.data = header.data, b""
        yield pb.CreateLayerRequest(tensor=pb.LayerTensor(name=name, tensor=header))
        for begin in range(0, len(data), CHUNK_BYTES):
            yield pb.CreateLayerRequest(chunk=data[begin : begin + CHUNK_BYTES])
