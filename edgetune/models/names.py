"""Names of backbones that code without torch has to know."""

from __future__ import annotations

LITE_BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
DEFAULT_BACKBONE = LITE_BACKBONES[0]
