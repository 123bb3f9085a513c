"""A cancel is heard in the middle of a batch, and nothing of the watching stays behind."""

import threading

import pytest
import torch
from torch import nn

from MedSAM3Core.errors import Cancelled
from MedSAM3Core.inference.interrupt import interruptible
from MedSAM3Core.progress import CancelToken


class Stack(nn.Module):
    """Three layers, of which the second raises a flag, one of them held by two lists."""

    def __init__(self, flag):
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), Flagging(flag), nn.Identity()])
        self.again = nn.ModuleList([self.layers[0]])
        self.seen = []
        for number, layer in enumerate(self.layers):
            layer.register_forward_hook(lambda *_, number=number: self.seen.append(number))

    def forward(self, values):
        for layer in self.layers:
            values = layer(values)
        return values


class Flagging(nn.Module):
    def __init__(self, flag):
        super().__init__()
        self.flag = flag

    def forward(self, values):
        self.flag()
        return values


def test_the_layer_after_the_cancel_is_not_computed():
    token = CancelToken()
    network = Stack(token.cancel)
    with pytest.raises(Cancelled), interruptible(network, token):
        network(torch.zeros(8))
    assert network.seen == [0, 1]
    network(torch.zeros(8))
    assert network.seen == [0, 1, 0, 1, 2], "outside the block nobody looks at the token"


def test_without_a_token_nothing_is_watched():
    network = Stack(lambda: None)
    with interruptible(network, None):
        assert not any(layer._forward_pre_hooks for layer in network.layers)


def test_each_layer_is_watched_once_and_let_go():
    network = Stack(lambda: None)
    with interruptible(network, CancelToken()):
        assert [len(layer._forward_pre_hooks) for layer in network.layers] == [1, 1, 1]
    assert not any(layer._forward_pre_hooks for layer in network.layers)


def test_another_threads_run_of_the_same_network_goes_on():
    token = CancelToken()
    network = Stack(lambda: None)
    token.cancel()
    with interruptible(network, token):
        thread = threading.Thread(target=network, args=(torch.zeros(8),))
        thread.start()
        thread.join()
    assert network.seen == [0, 1, 2]
