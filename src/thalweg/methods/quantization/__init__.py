"""Quantization: a trained model in few bits a weight."""

from __future__ import annotations

from pathlib import Path

from thalweg.methods import lazy_objects

__getattr__, __dir__ = lazy_objects(__name__, Path(__file__).with_name("cards.toml"))
