"""ONNX Runtime's GroupQueryAttention and MultiHeadAttention: models of one node, bound to our memory."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def version():
    return onnxruntime.__version__


def _tensor_type(array):
    if array.dtype == np.int32:
        return TensorProto.INT32
    return _TYPES[array.dtype.name]


def _model(operator, inputs, outputs, **attributes):
    """`inputs` and `outputs` are pairs of name and array; without an array the input is left out."""
    def values(pairs):
        return [helper.make_tensor_value_info(name, _tensor_type(array), array.shape)
                for name, array in pairs if array is not None]

    node = helper.make_node(
        operator, [name if array is not None else "" for name, array in inputs],
        [name for name, _ in outputs], domain="com.microsoft", **attributes)
    graph = helper.make_graph([node], operator, values(inputs), values(outputs))
    return helper.make_model(
        graph, ir_version=10,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])


class _OneNode:
    def __init__(self, case, threads):
        self.dtype = case.dtype
        self._shape = case.shape
        self._out = np.zeros(self._packed(case.q).shape, case.q.dtype)
        steps = [self._arrays(case, copy) for copy in range(case.copies)]
        model = _model(self._operator, *steps[0], **self._attributes(case))
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._steps = steps  # the bindings point into these arrays
        self._bindings = [self._bind(*step) for step in steps]
        self._next = 0

    @staticmethod
    def _packed(rows):
        """[batch, tokens, heads * dim]"""
        return np.ascontiguousarray(rows.reshape(*rows.shape[:2], -1))

    def _bind(self, inputs, outputs):
        binding = self._session.io_binding()
        for pairs, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, array in pairs:
                if array is not None:
                    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def run(self):
        self._session.run_with_iobinding(self._bindings[self._next])
        self._next = (self._next + 1) % len(self._bindings)

    def output(self):
        return self._out.reshape(self._shape.batch_size, self._shape.q_len,
                                 self._shape.num_q_heads, self._shape.head_dim)

    def close(self):
        self._session = self._bindings = self._steps = self._out = None


class GroupQueryAttention(_OneNode):
    """The cache is past and present in one buffer: a step writes its token and reads the rest."""

    column = "ORT GQA"
    _operator = "GroupQueryAttention"

    def __init__(self, case, threads):
        self.form = "past = present"
        super().__init__(case, threads)

    @staticmethod
    def _attributes(case):
        attributes = {"num_heads": case.shape.num_q_heads, "kv_num_heads": case.shape.num_kv_heads}
        if case.has_window:
            attributes["local_window_size"] = case.shape.window_left + 1
        if not case.shape.is_causal:
            attributes["causal"] = 0
        return attributes

    def _arrays(self, case, copy):
        shape = case.shape
        new = slice(shape.kv_len - shape.q_len, None)
        k, v = (rows[copy] for rows in case.cold())
        inputs = [("query", self._packed(case.q)), ("key", self._packed(case.k[:, new])),
                  ("value", self._packed(case.v[:, new])), ("past_key", k), ("past_value", v),
                  ("seqlens_k", np.full(shape.batch_size, shape.kv_len - 1, np.int32)),
                  ("total_sequence_length", np.array([shape.kv_len], np.int32))]
        return inputs, [("output", self._out), ("present_key", k), ("present_value", v)]


class MultiHeadAttention(_OneNode):
    """No mask: for what every query sees whole, with as many KV heads as query heads."""

    column = "ORT MHA"
    _operator = "MultiHeadAttention"

    def __init__(self, case, threads):
        self.form = "keys by head" if case.is_decode else "packed"
        super().__init__(case, threads)

    @staticmethod
    def can_compute(case):
        return case.group == 1 and not case.is_masked

    @staticmethod
    def _attributes(case):
        return {"num_heads": case.shape.num_q_heads}

    def _arrays(self, case, copy):
        k, v = ((rows[copy] for rows in case.cold()) if case.is_decode else
                (self._packed(case.k), self._packed(case.v)))
        inputs = [("query", self._packed(case.q)), ("key", k), ("value", v)]
        return inputs, [("output", self._out)]
