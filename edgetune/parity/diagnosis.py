"""What one thing would explain a difference: said only where it explains nearly all of it, and never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgetune.core.files import sha256_of_bytes
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import softmax
from edgetune.parity.metrics import sqnr_db
from edgetune.parity.recipes import Images, Recipe, RecipeBook, describe_change, moved, recipe_of, variants

Logits = npt.NDArray[np.float32]
Answer = Callable[[Images], Logits]

# An explanation takes the difference 20 dB down, to below 20 dB of what varies between images.
_MIN_GAIN_DB, _MIN_DB = 20.0, 20.0
# Exactly the same; float32's rounding; and so near that a search has nothing left to find.
_EXACT_DB, _ROUNDING_DB, _NOTHING_LEFT_DB = 150.0, 100.0, 60.0
# Of two explanations, the simpler one unless the other is better by this.
_BETTER_DB = 6.0
# Each row says one thing less than it has logits: a softmax does not see what they share. With fewer values in all, one
# of many hypotheses fits by chance; a recipe that was searched for has to fit images that it was not chosen by.
_MIN_VALUES, _MIN_CHECK_VALUES = 8, 4
_MOST_ROWS = 2048
_MOST_IMAGES = 8
_MOST_CHANGES = 3
# A moved crop is moved on where it is nearly as good as the best change.
_NEARLY_DB = 10.0
_NAMED = 4

_Exact = npt.NDArray[np.float64]
_Hypothesis = tuple[str, _Exact, _Exact]


def explain_outputs(reference: Logits, candidate: Logits) -> str:
    """What was done to the reference's logits `(N, K)` to make the candidate's; empty where nothing explains it."""
    if reference.shape != candidate.shape or _values(reference) < _MIN_VALUES:
        return ""
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return ""
    theirs, ours = reference.astype(np.float64), candidate.astype(np.float64)
    ignored = _input_ignored(theirs, ours)
    if ignored:
        return ignored
    before = _closeness(theirs, ours)
    if before >= _ROUNDING_DB:
        return ""
    found = [(_closeness(made, given), text) for text, made, given in _output_hypotheses(theirs, ours)]
    return _best(before, found)


def _output_hypotheses(reference: _Exact, candidate: _Exact) -> Iterator[_Hypothesis]:
    """Words, and what the hypothesis makes of the reference beside what the candidate has; the simplest first."""
    yield "the sign is turned", -reference, candidate
    yield "a softmax is applied already", softmax(reference), candidate
    yield "a sigmoid is applied already", np.exp(-np.logaddexp(0.0, -reference)), candidate
    log_sum = np.log(np.exp(reference - reference.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    yield "a log-softmax is applied already", reference - reference.max(axis=1, keepdims=True) - log_sum, candidate
    yield "the rows are one late", reference[:-1], candidate[1:]
    yield "the rows are one early", reference[1:], candidate[:-1]
    yield from _permutations(reference, candidate)
    yield from _factors(reference, candidate)
    yield from _constant_columns(reference, candidate)
    offsets = (candidate - reference).mean(axis=0)
    yield "each output is off by a constant of its own, as with another bias", reference + offsets, candidate


def _input_ignored(reference: _Exact, candidate: _Exact) -> str:
    spread, theirs = float(np.ptp(candidate, axis=0).max()), float(np.ptp(reference, axis=0).max())
    if theirs > 0.0 and spread <= 1e-6 * max(theirs, float(np.abs(candidate).max())):
        return "all rows are the same: the input is ignored"
    return ""


def _permutations(reference: _Exact, candidate: _Exact) -> Iterator[_Hypothesis]:
    columns = _matching(reference.T, candidate.T)
    if columns is not None:
        moves = [f"{theirs} is the candidate's {ours}" for theirs, ours in enumerate(columns) if theirs != ours]
        more = f" and {len(moves) - _NAMED} more" if len(moves) > _NAMED else ""
        yield f"the outputs are permuted: {', '.join(moves[:_NAMED])}{more}", reference, candidate[:, columns]
    if len(reference) <= _MOST_ROWS:
        rows = _matching(reference, candidate)
        if rows is not None:
            yield "the rows are in another order", reference, candidate[rows]


def _matching(reference: _Exact, candidate: _Exact) -> npt.NDArray[np.int64] | None:
    """For each of the reference's rows the nearest of the candidate's, where that is a permutation and moves some."""
    if len(reference) > _MOST_ROWS:
        return None
    distances = np.sum(candidate**2, axis=1)[None, :] - 2.0 * reference @ candidate.T
    order = distances.argmin(axis=1)
    identity = np.arange(len(order))
    is_other = not np.array_equal(order, identity) and np.array_equal(np.sort(order), identity)
    return order if is_other else None


def _factors(reference: _Exact, candidate: _Exact) -> Iterator[_Hypothesis]:
    """A factor, or an offset, or both, by least squares over all logits."""
    offset = float((candidate - reference).mean())
    yield f"all logits are off by {offset:.4g}", reference + offset, candidate
    power = float(np.sum(reference**2))
    if power > 0.0:
        factor = float(np.sum(reference * candidate)) / power
        yield f"all logits are multiplied by {factor:.4g}", reference * factor, candidate
    variance = float(np.sum((reference - reference.mean()) ** 2))
    if variance > 0.0:
        slope = float(np.sum((reference - reference.mean()) * candidate)) / variance
        shift = float(candidate.mean()) - slope * float(reference.mean())
        yield f"all logits are multiplied by {slope:.4g} and off by {shift:.4g}", slope * reference + shift, candidate


def _constant_columns(reference: _Exact, candidate: _Exact) -> Iterator[_Hypothesis]:
    stuck = (np.ptp(candidate, axis=0) == 0.0) & (np.ptp(reference, axis=0) > 0.0)
    if stuck.any() and not stuck.all():
        names = ", ".join(map(str, np.flatnonzero(stuck)[:_NAMED]))
        more = f" and {int(stuck.sum()) - _NAMED} more" if stuck.sum() > _NAMED else ""
        yield f"the outputs {names}{more} are constant", reference[:, ~stuck], candidate[:, ~stuck]


def explain_inputs(answer: Answer, images: Images, reference: Logits) -> str:
    """What was done to the pixels: `answer` gives the candidate's logits `(N, K)` for uint8 images `(N, H, W, 3)`.

    A hypothesis holds where the candidate gives the reference's logits once its pixels are changed.
    """
    if _values(reference) < _MIN_VALUES or not np.isfinite(reference).all():
        return ""
    exact = reference.astype(np.float64)
    before = _answer_closeness(exact, answer(images))
    if before >= _NOTHING_LEFT_DB:
        return ""
    changed = ((text, pixels) for text, pixels in _pixel_hypotheses(images) if not np.array_equal(pixels, images))
    found = [(_answer_closeness(exact, answer(np.ascontiguousarray(pixels))), text) for text, pixels in changed]
    return _best(before, found)


def _pixel_hypotheses(images: Images) -> Iterator[tuple[str, Images]]:
    count, height, width, _ = images.shape
    yield "red and blue are swapped", images[..., ::-1]
    yield "the image is inverted", 255 - images
    yield "the image is mirrored left to right", images[:, :, ::-1]
    yield "the image is upside down", images[:, ::-1]
    yield "the image is turned by 180 degrees", images[:, ::-1, ::-1]
    if height == width:
        yield "rows and columns are swapped", images.swapaxes(1, 2)
        yield "the image is turned by 90 degrees", np.rot90(images, 1, (1, 2))
        yield "the image is turned by 270 degrees", np.rot90(images, 3, (1, 2))
    planes = images.transpose(0, 3, 1, 2).reshape(count, height, width, 3)
    yield "pixels are read as planes, by a reshape in place of a transpose", planes
    yield "planes are read as pixels", images.reshape(count, 3, height, width).transpose(0, 2, 3, 1)
    for axis, name in ((1, "down"), (2, "right")):
        for step in (-1, 1):
            yield f"the image is moved by {-step} px {name}", np.roll(images, step, axis)


def explain_preprocessing(
    files: Sequence[bytes], spec: PreprocessSpec, answer_reference: Answer, candidate_logits: Logits
) -> str:
    """What preprocessing would make the reference give the candidate's logits `(N, K)` for the same files.

    Up to three changes at once are found on some of the files, and believed where they hold on others: it takes 4
    files of 5 classes, and 12 of 2; of more than 16 the first are taken.

    Raises:
        ImageError: a file cannot be decoded.
    """
    if candidate_logits.ndim != 2 or len(files) < 2 or not np.isfinite(candidate_logits).all():
        return ""
    chosen_by = min(_MOST_IMAGES, max(len(files) // 2, -(-_MIN_VALUES // max(1, candidate_logits.shape[1] - 1))))
    parts = (slice(chosen_by), slice(chosen_by, 2 * _MOST_IMAGES))
    if any(
        _values(candidate_logits[part]) < least
        for part, least in zip(parts, (_MIN_VALUES, _MIN_CHECK_VALUES), strict=True)
    ):
        return ""
    search, check = (
        _Search(RecipeBook(files[part]), answer_reference, candidate_logits[part].astype(np.float64)) for part in parts
    )
    usual = recipe_of(spec)
    best = search.best_from(usual)
    if best == usual:
        return ""
    return _best(check.closeness(usual), [(check.closeness(best), describe_change(usual, best))])


class _Search:
    """How close the reference comes to the candidate by each recipe; the same pixels are answered once."""

    def __init__(self, book: RecipeBook, answer: Answer, candidate: _Exact) -> None:
        self._book, self._answer, self._candidate = book, answer, candidate
        self._known: dict[Recipe, float] = {}
        self._answers: dict[str, float] = {}

    def closeness(self, recipe: Recipe) -> float:
        if recipe not in self._known:
            images = np.ascontiguousarray(self._book.images(recipe))
            digest = sha256_of_bytes(images.tobytes())
            if digest not in self._answers:
                self._answers[digest] = _answer_closeness(self._candidate, self._answer(images))
            self._known[recipe] = self._answers[digest]
        return self._known[recipe]

    def best_from(self, usual: Recipe) -> Recipe:
        """The recipe that is closest, changed in one thing after the other as long as that explains much."""
        best = usual
        for _ in range(_MOST_CHANGES):
            if self.closeness(best) >= _NOTHING_LEFT_DB:
                break
            tried = self._best_change(best)
            if self.closeness(tried) < self.closeness(best) + _BETTER_DB:
                break
            best = tried
        return best

    def _best_change(self, recipe: Recipe) -> Recipe:
        found = sorted(variants(recipe), key=self.closeness, reverse=True)
        crop = next(each for each in found if each.offset != recipe.offset)
        if self.closeness(crop) < self.closeness(found[0]) - _NEARLY_DB:
            return found[0]
        return max((found[0], self._climb(crop)), key=self.closeness)

    def _climb(self, recipe: Recipe) -> Recipe:
        """A moved crop, moved on in ever smaller steps as long as that comes closer."""
        for step in (8, 4, 2, 1):
            nearer = max(moved(recipe, step), key=self.closeness)
            while self.closeness(nearer) > self.closeness(recipe):
                recipe = nearer
                nearer = max(moved(recipe, step), key=self.closeness)
        return recipe


def _values(logits: npt.NDArray[np.float32]) -> int:
    """How many values speak for or against a hypothesis."""
    return len(logits) * (logits.shape[1] - 1) if logits.ndim == 2 else 0


def _answer_closeness(target: _Exact, answer: Logits) -> float:
    if answer.shape != target.shape or not np.isfinite(answer).all():
        return -_EXACT_DB
    return _closeness(answer.astype(np.float64), target)


def _closeness(first: _Exact, second: _Exact) -> float:
    """DB of what varies between the rows of `second` over the difference; what all rows share explains nothing."""
    signal = float(np.sum((second - second.mean(axis=0)) ** 2))
    found = sqnr_db(signal, float(np.sum((second - first) ** 2)))
    return _EXACT_DB if found is None else min(max(found, -_EXACT_DB), _EXACT_DB)


def _best(before: float, found: Sequence[tuple[float, str]]) -> str:
    """The first explanation that is nearly as good as the best one, if that is good enough."""
    closest = max((closeness for closeness, _ in found), default=-_EXACT_DB)
    if closest < _MIN_DB or closest - before < _MIN_GAIN_DB:
        return ""
    after, text = next(each for each in found if each[0] >= min(closest, _EXACT_DB) - _BETTER_DB)
    return f"{text} would explain it: {before:.1f} dB -> {_told(after)}"


def _told(closeness: float) -> str:
    return "no difference" if closeness >= _EXACT_DB else f"{closeness:.1f} dB"
