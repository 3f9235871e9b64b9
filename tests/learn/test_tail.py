"""The fine-tuned tail against torchvision's whole network, trained in the plain way."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone import Weights
from pipeline.backbone.sources import obtain_weights
from pipeline.backbone.tails import tail_module
from pipeline.errors import ConfigError, WeightsError
from pipeline.learn.models import build_model
from pipeline.learn.models.tail import Tail
from pipeline.settings.model import ModelConfig
from pipeline.settings.weights import WeightsConfig

LENGTHS = torch.tensor([3, 1, 2])


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of a ResNet-18 whose BatchNorms have statistics: those of fresh ones would hide their use."""
    weights = obtain_weights(WeightsConfig(arch="resnet18", source="random:0"))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in weights.state.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
    return weights


def plain_network(weights: Weights) -> nn.Module:
    """Frozen but for layer4, whose BatchNorms keep their statistics."""
    import torchvision

    network = torchvision.models.resnet18(weights=None).eval().requires_grad_(False)
    network.load_state_dict(weights.state, strict=False)
    network.layer4.requires_grad_(True)
    return network


def cached_maps(network: nn.Module) -> Tensor:
    """layer3 (B, T, C, H, W) float32 of random frames."""
    frames = torch.rand(len(LENGTHS) * 3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    n = network
    maps = n.layer3(n.layer2(n.layer1(n.maxpool(n.relu(n.bn1(n.conv1(frames)))))))  # (B * T, C, H, W)
    return maps.unflatten(0, (len(LENGTHS), 3))


def test_gradients_from_cached_maps_equal_those_of_the_end_to_end_network(weights: Weights) -> None:
    network = plain_network(weights)
    maps = cached_maps(network)
    config = ModelConfig(hidden_size=6, projection=None, dropout=0.0, bidirectional=True)
    reference = build_model("recurrent", config, map_shapes=[(512, 2, 2)], num_outputs=4, seed=5).train()
    layers = tail_module("resnet18", after="layer3", until="layer4", state=weights.state)
    model = build_model(
        "recurrent", config, map_shapes=[(256, 4, 4)], num_outputs=4, tail=layers, seed=5
    ).train()

    deep = torch.stack([network.layer4(clip) for clip in maps])  # (B, T, 512, 2, 2)
    expected = reference(deep, LENGTHS)
    expected.square().sum().backward()
    outputs = model(maps, LENGTHS)
    outputs.square().sum().backward()

    torch.testing.assert_close(outputs, expected)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    prefix = "steps.tail.layers.0."
    for name, parameter in network.layer4.named_parameters():
        assert parameter.grad.abs().sum() > 0
        torch.testing.assert_close(gradients.pop(prefix + name), parameter.grad, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == dict(reference.named_parameters()).keys()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_batchnorm_keeps_its_statistics_while_the_model_trains(weights: Weights) -> None:
    model = nn.ModuleDict(
        {"tail": Tail(tail_module("resnet18", after="layer3", until="layer4", state=weights.state))}
    )
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    maps = cached_maps(plain_network(weights))
    expected = model.eval()["tail"](maps)
    torch.testing.assert_close(model.train()["tail"](maps), expected)
    assert any(name.endswith("running_mean") for name in before)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_padding_is_not_computed_and_comes_out_as_zeros(weights: Weights) -> None:
    tail = Tail(tail_module("resnet18", after="layer3", until="avgpool", state=weights.state))
    maps = cached_maps(plain_network(weights)).half()
    expected = tail(maps)
    assert expected.shape == (3, 3, 512, 1, 1)
    assert expected.dtype == torch.float32
    for clip, length in zip(maps, LENGTHS, strict=True):
        clip[length:] = torch.nan
    num_frames = []
    tail.layers.register_forward_pre_hook(lambda _, inputs: num_frames.append(len(inputs[0])))
    outputs = tail(maps, LENGTHS)
    assert num_frames == [6]
    for clip, reference, length in zip(outputs, expected, LENGTHS, strict=True):
        torch.testing.assert_close(clip[:length], reference[:length])
        assert not clip[length:].any()


def test_training_the_tail_leaves_the_weights_it_began_with(weights: Weights) -> None:
    name = "layer4.0.conv1.weight"
    before = weights.state[name].clone()
    tail = tail_module("resnet18", after="layer3", until="layer4", state=weights.state)
    with torch.no_grad():
        next(tail.parameters()).zero_()
    assert torch.equal(weights.state[name], before)


def test_a_tail_of_several_stages_of_a_vgg_equals_its_layers() -> None:
    import torchvision

    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True).eval()
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    tail = tail_module("vgg11_bn", after="block3", until="block5", state=state)
    maps = torch.rand(2, 256, 4, 4)
    torch.testing.assert_close(tail(maps), layers[15:](maps))


def test_an_impossible_tail_names_the_possible_ones(weights: Weights) -> None:
    expected = r"^The tail 'layer2' does not come after .* layer3 .* Available: layer4, avgpool\.$"
    with pytest.raises(ConfigError, match=expected):
        tail_module("resnet18", after="layer3", until="layer2")
    with pytest.raises(
        ConfigError, match=r"cached avgpool .* avgpool is the last tap: cache a shallower one\.$"
    ):
        tail_module("resnet18", after="avgpool", until="layer4")
    with pytest.raises(WeightsError, match="do not fit resnet34"):
        tail_module("resnet34", after="layer3", until="layer4", state=weights.state)
