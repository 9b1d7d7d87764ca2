"""Networks of the libraries that hospitals take theirs from, in their own sizes, with random weights.

    entry = family("timm").networks["timm:resnet50"]

Which of them are there depends on what is installed: `family(name).missing` says what is not.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn
from zoo import ZOO, Entry


@dataclass(frozen=True)
class Family:
    """Networks of one library by name; `missing` is the package that is not installed, or cannot be imported."""

    networks: dict[str, Entry]
    missing: str | None = None


def _entry(make: Callable[[], nn.Module], *shape: int, codes: bool = False) -> Entry:
    return Entry(lambda small: make(), lambda small: (shape,), codes=codes)


def _trained(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Return a network whose last layer is no longer the zeros that some libraries begin with."""
    network = make(*args, **kwargs)
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv2d) and not bool(part.weight.any()):
            nn.init.normal_(part.weight, std=0.02)
    return network


def _missing(package: str) -> str | None:
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch than its own raises the latter
        return f"{package}: {str(error).splitlines()[0]}"
    return None


_TIMM = """
botnet26t_256 cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224
convnext_atto convnextv2_atto davit_tiny deit_tiny_distilled_patch16_224
deit_tiny_patch16_224 densenet121 dla34 ecaresnet26t edgenext_xx_small
efficientformerv2_s0 efficientnet_b0 efficientvit_b0 eva02_small_patch14_224 fastvit_t8 fbnetc_100
gcresnet33ts gcvit_xxtiny ghostnet_100 halonet26t hardcorenas_a hrnet_w18_small
inception_next_tiny lambda_resnet26t lcnet_050 levit_128s maxvit_rmlp_pico_rw_256
maxvit_tiny_tf_224 mixer_s16_224 mixnet_s mnasnet_050 mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small
mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny pit_ti_224 poolformer_s12 pvt_v2_b0
regnety_004 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnet18 resnet50 resnetv2_50
rexnet_100 seresnet50 skresnet18 starnet_s1 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 tf_efficientnet_b0 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e
vgg11_bn vit_small_patch16_224 vit_tiny_patch16_224 xcit_nano_12_p16_224
""".split()  # noqa: SIM905


def timm_networks() -> dict[str, Entry]:
    import timm

    def shape(name: str) -> tuple[int, ...]:
        config = timm.get_pretrained_cfg(name)
        # Attention over blocks of a map needs maps that blocks fill.
        fixed = config is None or config.fixed_input_size or name in ("halonet26t", "botnet26t_256")
        return (3, *([224, 224] if config is None else config.input_size[1:] if fixed else [96, 96]))

    known = set(timm.list_models())
    return {
        f"timm:{name}": _entry(partial(_trained, timm.create_model, name, num_classes=5), *shape(name))
        for name in _TIMM
        if name in known
    }


_TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mobilenet_v2 mobilenet_v3_large regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t
swin_v2_t vgg11_bn vit_b_16 wide_resnet50_2
""".split()  # noqa: SIM905
_MAPS = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
_VIDEO = ("mc3_18", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")


def torchvision_networks() -> dict[str, Entry]:
    from torchvision.models import get_model

    def make(name: str, **how: Any) -> Callable[[], nn.Module]:
        return lambda: _trained(get_model, name, weights=None, num_classes=5, **how)

    sizes = {"inception_v3": 299, "maxvit_t": 224, "vit_b_16": 224}
    images = {name: _entry(make(name), 3, *[sizes.get(name, 128)] * 2) for name in _TORCHVISION}
    maps = {name: _entry(make(name, weights_backbone=None), 3, 128, 128) for name in _MAPS}
    video = {
        name: _entry(make(name), 3, *((16, 224, 224) if name in ("mvit_v2_s", "s3d") else (8, 64, 64)))
        for name in _VIDEO
    }
    return {f"torchvision:{name}": entry for name, entry in {**images, **maps, **video}.items()}


def smp_networks() -> dict[str, Entry]:
    import segmentation_models_pytorch as smp

    pairs = {
        "Unet": ("resnet34", "efficientnet-b0", "mobilenet_v2", "densenet121", "mit_b0", "se_resnext50_32x4d"),
        "UnetPlusPlus": ("resnet34",), "MAnet": ("resnet34",), "Linknet": ("resnet34",), "PSPNet": ("resnet34",),
        "FPN": ("resnet34", "efficientnet-b0", "mit_b0"), "PAN": ("resnet34",), "DeepLabV3": ("resnet34",),
        "DeepLabV3Plus": ("resnet34",), "UPerNet": ("resnet34",), "Segformer": ("resnet34", "mit_b0"),
        "DPT": ("tu-vit_base_patch16_224.augreg_in21k",),
    }  # fmt: skip
    heads: dict[str, dict[str, Any]] = {
        "sigmoid": {"activation": "sigmoid"}, "scse": {"decoder_attention_type": "scse"},
        "aux": {"aux_params": {"classes": 2}},
    }  # fmt: skip
    entries = {
        f"smp:{kind}-{encoder}": _entry(
            partial(getattr(smp, kind), encoder_name=encoder, encoder_weights=None, classes=3),
            3, *[224 if kind == "DPT" else 128] * 2,
        )
        for kind, encoders in pairs.items() if hasattr(smp, kind) for encoder in encoders
    }  # fmt: skip
    for name, how in heads.items():
        make = partial(smp.Unet, encoder_name="resnet34", encoder_weights=None, classes=3, **how)
        entries[f"smp:Unet-resnet34-{name}"] = _entry(make, 3, 128, 128)
    return entries


def transformers_networks() -> dict[str, Entry]:
    import transformers

    small = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    grids = {"image_size": 96, "patch_size": 16}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "ViT": ("ViTForImageClassification", {**small, **grids}),
        "DeiT": ("DeiTForImageClassification", {**small, **grids}),
        "Beit": ("BeitForImageClassification", {**small, **grids}),
        "Dinov2": ("Dinov2ForImageClassification", {**small, **grids}),
        "ConvNext": ("ConvNextForImageClassification", {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 2, 1]}),
        "ConvNextV2": ("ConvNextV2ForImageClassification", {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 2, 1]}),
        "ResNet": ("ResNetForImageClassification", {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]}),
        "Swin": (
            "SwinForImageClassification",
            {"image_size": 96, "window_size": 3, "embed_dim": 24, "depths": [1, 1, 2, 1]},
        ),
        "Swinv2": ("Swinv2ForImageClassification", {"image_size": 128, "embed_dim": 24, "depths": [1, 1, 2, 1]}),
        "Segformer": ("SegformerForSemanticSegmentation", {}),
    }

    def make(model: str, kind: str, how: dict[str, Any]) -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(num_labels=5, **how)
        return getattr(transformers, model)(config)

    entries = {
        f"transformers:{kind}": _entry(partial(make, model, kind, how), 3, *[how.get("image_size", 96)] * 2)
        for kind, (model, how) in kinds.items()
    }
    bert = {**small, "vocab_size": 50, "max_position_embeddings": 32}
    entries["transformers:Bert"] = _entry(partial(make, "BertForSequenceClassification", "Bert", bert), 12, codes=True)
    return entries


def nnunet_networks() -> dict[str, Entry]:
    from dynamic_network_architectures.architectures import unet

    def make(kind: str, dims: int, supervised: bool) -> nn.Module:
        stages = [16, 32, 64, 128]
        plain = kind == "PlainConvUNet"
        blocks = {"n_conv_per_stage": 2} if plain else {"n_blocks_per_stage": [1, 2, 2, 2]}
        return getattr(unet, kind)(
            input_channels=1, n_stages=4, features_per_stage=stages, conv_op=getattr(nn, f"Conv{dims}d"),
            kernel_sizes=3, strides=[1, 2, 2, 2], num_classes=3, n_conv_per_stage_decoder=[1, 1, 1], conv_bias=True,
            norm_op=getattr(nn, f"InstanceNorm{dims}d"), norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=supervised, **blocks,
        )  # fmt: skip

    kinds = [(kind, dims, False) for kind in ("PlainConvUNet", "ResidualEncoderUNet") for dims in (2, 3)]
    return {
        f"nnunet:{kind}-{dims}d{'-supervised' if supervised else ''}": _entry(
            partial(make, kind, dims, supervised), 1, *[(96, 48)[dims - 2]] * dims
        )
        for kind, dims, supervised in [*kinds, ("PlainConvUNet", 2, True), ("ResidualEncoderUNet", 3, True)]
    }


class Shown(nn.Module):
    """A TorchXRayVision classifier as `suture export` takes it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        from suture_stitching.sources import of_module

        self.network = of_module(network.eval()).module

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def xrv_networks() -> dict[str, Entry]:
    import torchxrayvision as xrv

    points = torch.linspace(0.1, 0.9, 18)
    points[3] = float("nan")
    plain = partial(xrv.models.DenseNet, num_classes=18)
    return {
        "torchxrayvision:DenseNet": _entry(lambda: Shown(plain()), 1, 224, 224),
        "torchxrayvision:DenseNet-points": _entry(lambda: Shown(plain(op_threshs=points)), 1, 224, 224),
    }


def monai_networks() -> dict[str, Entry]:
    class Features(nn.Module):
        """A small backbone that gives a vector for each patch."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 32, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x)

    def mil(mode: str) -> Callable[[], nn.Module]:
        return lambda: nets.MILModel(3, mode, pretrained=False, backbone=Features(), backbone_num_features=32)

    entries = {
        "densenet169-3d": _entry(partial(nets.DenseNet169, 3, 1, 3), 1, 64, 64, 64),
        "resnet18-3d": _entry(partial(nets.resnet18, spatial_dims=3, n_input_channels=1, num_classes=3), 1, 48, 48, 48),
        "resnet50-2d": _entry(partial(nets.resnet50, spatial_dims=2, n_input_channels=3, num_classes=3), 3, 128, 128),
        "seresnext50": _entry(partial(nets.SEResNext50, spatial_dims=2, in_channels=3, num_classes=3), 3, 128, 128),
        "efficientnet-b0-3d": _entry(
            partial(
                nets.EfficientNetBN, "efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=1, num_classes=3
            ),
            1, 64, 64, 64,
        ),
        "dynunet-3d": _entry(
            partial(nets.DynUNet, 3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(16, 32, 64)), 1, 48, 48, 48
        ),
        "segresnetds2-3d": _entry(partial(nets.SegResNetDS2, 3, 8, 1, 2, blocks_down=(1, 1)), 1, 32, 32, 32),
        "segresnetvae": _entry(
            partial(nets.SegResNetVAE, (32, 32, 32), in_channels=1, out_channels=2, init_filters=8), 1, 32, 32, 32
        ),
        "unetr-3d": _entry(
            partial(nets.UNETR, 1, 3, (48, 48, 48), 8, 96, 192, 6), 1, 48, 48, 48
        ),
        "vnet-3d": _entry(partial(nets.VNet, 3, 1, 2), 1, 32, 32, 32),
        "daf3d": _entry(partial(nets.DAF3D, 1, 2), 1, 32, 32, 32),
        "vit-3d": _entry(
            partial(nets.ViT, 1, (48, 48, 48), (16, 16, 16), 96, 192, 3, 4, classification=True, num_classes=3),
            1, 48, 48, 48,
        ),
        "vitautoenc": _entry(
            partial(nets.ViTAutoEnc, 1, (32, 32), (4, 4), hidden_size=96, mlp_dim=192, num_heads=4, spatial_dims=2),
            1, 32, 32,
        ),
        "fullyconnected": _entry(partial(nets.FullyConnectedNet, 17, 3, (64, 64)), 17),
        "regressor": _entry(partial(nets.Regressor, (1, 64, 64), (1,), (8, 16, 32), (2, 2, 2)), 1, 64, 64),
        "classifier": _entry(partial(nets.Classifier, (1, 64, 64), 3, (8, 16, 32), (2, 2, 2)), 1, 64, 64),
        "discriminator": _entry(partial(nets.Discriminator, (1, 64, 64), (8, 16, 32), (2, 2, 2)), 1, 64, 64),
        "quicknat": _entry(partial(nets.Quicknat, 2, 1, 16), 1, 64, 64),
        "hovernet": _entry(partial(nets.HoVerNet, "fast", 3, 5), 3, 256, 256),
        "senet154": _entry(partial(nets.SENet154, spatial_dims=2, in_channels=3, num_classes=3), 3, 96, 96),
        "milmodel-att": _entry(mil("att"), 4, 3, 64, 64),
        "milmodel-att-trans": _entry(mil("att_trans"), 4, 3, 64, 64),
        "resunet-attention": _entry(partial(nets.AttentionUnet, 3, 1, 2, (8, 16, 32), (2, 2)), 1, 32, 32, 32),
        "voxelmorph": _entry(partial(nets.VoxelMorphUNet, 3, 2, 16, [16, 32, 32, 32, 32, 32], (16, 16)), 2, 32, 32, 32),
        "localnet": _entry(partial(nets.LocalNet, 3, 2, 8, (0, 3)), 2, 32, 32, 32),
        "generator": _entry(partial(nets.Generator, (17,), (8, 4, 4), (8, 1), (2, 2)), 17),
    }  # fmt: skip
    return {f"monai:{name}": entry for name, entry in entries.items()}


#: The library of each family, and what makes its networks.
FAMILIES: dict[str, tuple[str, Callable[[], dict[str, Entry]]]] = {
    "plain": ("torch", lambda: dict(ZOO)),
    "monai": ("monai", monai_networks),
    "nnunet": ("dynamic_network_architectures", nnunet_networks),
    "timm": ("timm", timm_networks),
    "torchvision": ("torchvision", torchvision_networks),
    "smp": ("segmentation_models_pytorch", smp_networks),
    "torchxrayvision": ("torchxrayvision", xrv_networks),
    "transformers": ("transformers", transformers_networks),
}


@cache
def family(name: str) -> Family:
    """Return the networks of a family, which imports its library."""
    package, networks = FAMILIES[name]
    missing = _missing(package)
    return Family({} if missing else networks(), missing)


def matching(patterns: Sequence[str]) -> dict[str, Entry]:
    """Return the networks whose names match one of the patterns; only libraries that may have such are imported."""
    beginnings = [pattern.partition(":")[0] if ":" in pattern else "plain" for pattern in patterns if pattern != "*"]
    named = [name for name in FAMILIES if "*" in patterns or any(fnmatch.fnmatch(name, own) for own in beginnings)]
    return {
        name: entry
        for own in named
        for name, entry in family(own).networks.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }
