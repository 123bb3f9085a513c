"""The separable pooling against torchvision's definition, written out sample by sample."""

import math

import numpy as np
import pytest
import torch
from transformers.models.sam3.configuration_sam3 import Sam3GeometryEncoderConfig
from transformers.models.sam3.modeling_sam3 import Sam3GeometryEncoder

from MedSAM3Core.models.roi_align import BoxPoolingGeometryEncoder, roi_align, use_own_box_pooling


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """One sample as torchvision's kernel takes it."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = int(y), int(x)
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = float(y0)
    else:
        y1 = y0 + 1
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = float(x0)
    else:
        x1 = x0 + 1
    fy, fx = y - y0, x - x0
    return (
        (1 - fy) * (1 - fx) * plane[y0, x0]
        + (1 - fy) * fx * plane[y0, x1]
        + fy * (1 - fx) * plane[y1, x0]
        + fy * fx * plane[y1, x1]
    )


def literal_roi_align(features: np.ndarray, box: list[float], bins: int) -> np.ndarray:
    """(channels, bins, bins) of one image (channels, height, width) and one xyxy box."""
    x0, y0, x1, y1 = box
    bin_w, bin_h = max(x1 - x0, 1.0) / bins, max(y1 - y0, 1.0) / bins
    grid_w, grid_h = math.ceil(bin_w), math.ceil(bin_h)
    pooled = np.zeros((len(features), bins, bins))
    for channel, plane in enumerate(features):
        for row in range(bins):
            for column in range(bins):
                total = 0.0
                for iy in range(grid_h):
                    y = y0 + row * bin_h + (iy + 0.5) * bin_h / grid_h
                    for ix in range(grid_w):
                        x = x0 + column * bin_w + (ix + 0.5) * bin_w / grid_w
                        total += bilinear(plane, y, x)
                pooled[channel, row, column] = total / max(grid_h * grid_w, 1)
    return pooled


BOXES = {
    "inside": [3.2, 4.1, 12.9, 9.6],
    "one cell": [5.0, 5.0, 5.0, 5.0],
    "smaller than a cell": [5.3, 6.1, 5.9, 6.4],
    "whole map": [0.0, 0.0, 17.0, 13.0],
    "over the left and top edge": [-4.3, -2.2, 6.0, 7.5],
    "over the right and bottom edge": [11.0, 8.5, 24.7, 19.3],
    "wholly outside": [30.0, 40.0, 35.0, 48.0],
    "larger than the map": [-10.0, -11.0, 40.0, 30.0],
    "fewer samples across than down": [2.0, 0.5, 5.0, 12.8],
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("bins", [3, 7])
def test_equals_the_definition(name, bins):
    features = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    boxes = torch.tensor([[BOXES["inside"], BOXES[name]], [BOXES[name], BOXES["whole map"]]])
    ours = roi_align(features, boxes, bins)
    assert ours.shape == (2, 2, 3, bins, bins)
    for image in range(2):
        for index in range(2):
            wanted = literal_roi_align(features[image].numpy(), boxes[image, index].tolist(), bins)
            np.testing.assert_allclose(ours[image, index].numpy(), wanted, atol=2e-5)


def test_a_box_is_pooled_the_same_beside_a_larger_one():
    """The number of samples belongs to the box, not to the batch."""
    features = torch.randn(1, 4, 20, 20, generator=torch.Generator().manual_seed(5))
    small, large = [2.0, 2.0, 9.0, 9.0], [-1.0, 0.0, 25.0, 19.0]
    alone = roi_align(features, torch.tensor([[small]]), 7)
    beside = roi_align(features, torch.tensor([[large, small]]), 7)
    torch.testing.assert_close(alone[0, 0], beside[0, 1])


def test_gradient_reaches_the_features():
    features = torch.randn(1, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[1.0, -1.0, 6.0, 10.0]]])
    assert torch.autograd.gradcheck(lambda f: roi_align(f, boxes, 3), features)


def test_bfloat16_is_pooled_in_float32():
    features = torch.randn(1, 8, 18, 18, generator=torch.Generator().manual_seed(7))
    boxes = torch.tensor([[[3.1, 2.7, 11.3, 15.9]]])
    exact = roi_align(features.bfloat16().float(), boxes, 7)
    half = roi_align(features.bfloat16(), boxes.bfloat16().float(), 7)
    assert half.dtype == torch.bfloat16
    # Only the result is rounded (8 bits), not the positions of the samples.
    shifted = roi_align(features.bfloat16().float(), boxes.bfloat16().float(), 7)
    torch.testing.assert_close(half.float(), shifted, rtol=2**-8, atol=1e-6)
    assert not torch.equal(exact, shifted)


def test_autocast_does_not_coarsen_it():
    features, boxes = torch.randn(1, 8, 18, 18), torch.tensor([[[3.1, 2.7, 11.3, 15.9]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = roi_align(features, boxes, 7)
    torch.testing.assert_close(inside, roi_align(features, boxes, 7))


def geometry_encoder() -> Sam3GeometryEncoder:
    config = Sam3GeometryEncoderConfig(
        hidden_size=32, num_layers=1, num_attention_heads=2, intermediate_size=48, roi_size=3
    )
    config._attn_implementation = "eager"
    return Sam3GeometryEncoder(config).eval()


def test_transformers_geometry_encoder_runs_with_it():
    """Also equal to what its own code computes when it is lent our operation under torchvision's name."""
    encoder = geometry_encoder()
    torch.manual_seed(1)
    features = torch.randn(2, 32, 8, 8)
    boxes = torch.tensor(
        [
            [[0.5, 0.4, 0.3, 0.2], [0.2, 0.9, 0.3, 0.43]],
            [[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5]],
        ]
    )
    arguments = {
        "box_embeddings": boxes,
        "box_mask": torch.tensor([[True, True], [True, False]]),
        "box_labels": torch.tensor([[1, 0], [1, 0]]),
        "img_feats": (features,),
        "img_pos_embeds": (torch.randn(2, 32, 8, 8),),
    }
    calls = []

    class TorchvisionDouble:
        """Doubles the one function of torchvision that transformers calls, by the literal definition."""

        class ops:  # noqa: N801 - torchvision's name
            @staticmethod
            def roi_align(maps, boxes_per_image, size):
                calls.append(size)
                rows = [
                    literal_roi_align(m.detach().numpy(), box.tolist(), size)
                    for m, image_boxes in zip(maps, boxes_per_image, strict=True)
                    for box in image_boxes
                ]
                return torch.from_numpy(np.stack(rows)).float()

    import transformers.models.sam3.modeling_sam3 as module

    before = getattr(module, "torchvision", None)
    module.torchvision = TorchvisionDouble
    try:
        wanted = encoder(**arguments).last_hidden_state
    finally:
        module.torchvision = before
    assert calls == [3]
    use_own_box_pooling(encoder)
    torch.testing.assert_close(encoder(**arguments).last_hidden_state, wanted, atol=2e-5, rtol=1e-4)


def test_replacing_twice_and_parameters_stay():
    encoder = geometry_encoder()
    before = {name: id(value) for name, value in encoder.named_parameters()}
    holder = torch.nn.ModuleList([encoder])
    assert use_own_box_pooling(use_own_box_pooling(holder)) is holder
    assert type(encoder) is BoxPoolingGeometryEncoder
    assert {name: id(value) for name, value in encoder.named_parameters()} == before
