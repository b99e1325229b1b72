"""Frozen pretrained encoders: presets, their weights, and the encoder itself."""

from dlsr.encoders.presets import ENCODERS, EncoderSpec, PackageWeights, encoder_spec

__all__ = ["ENCODERS", "EncoderSpec", "PackageWeights", "encoder_spec"]
