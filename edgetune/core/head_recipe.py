"""What a head was fitted with: enough to fit it again on other features of the same images."""

from __future__ import annotations

from dataclasses import dataclass

LINEAR, SVM, MLP, SGD, ADAMW = "linear", "svm", "mlp", "sgd", "adamw"
HEAD_KINDS = (LINEAR, SVM, MLP, SGD, ADAMW)
UNWEIGHTED, BALANCED = "none", "balanced"
CLASS_WEIGHTS = (UNWEIGHTED, BALANCED)


@dataclass(frozen=True)
class TrainingRecipe:
    """A loop over batches. `hidden` is the width of an MLP's hidden layer, 0 without one; `dropout` goes before and
    behind it. The learning rate falls from `learning_rate` to 0 along a cosine over `epochs`.
    """

    optimizer: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    hidden: int = 0
    dropout: float = 0.0


@dataclass(frozen=True)
class HeadRecipe:
    """`l2` is for heads solved to convergence, `training` for heads trained in epochs. The fitted logits are divided
    by `temperature`.
    """

    kind: str
    l2: float = 0.0
    class_weights: str = UNWEIGHTED
    seed: int = 0
    temperature: float = 1.0
    training: TrainingRecipe | None = None
