"""The verdict on a result: ok, doubtful or failed, with reasons in numbers. Thresholds: ``benchmarks/verdict.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from daskreg.engine.drift import DRIFT
from daskreg.engine.evidence import TOO_STRETCHED, UNSURE, Evidence
from daskreg.engine.filling import NO_FILLING, Filling
from daskreg.html import Printable
from daskreg.transforms.jacobian import EXTREME

Status = Literal["ok", "doubtful", "failed"]
RANKS: tuple[Status, ...] = ("ok", "doubtful", "failed")
# Shares of the image that match best where they are: of the poses tuned on, wrong ones had at most 0.35, right ones at least 0.41
FAILED, DOUBTFUL = 0.34, 0.38
CHANCE = 0.45  # share that correlates no better than chance: right ones had at most 0.4
RIVAL = 0.95  # times what speaks for the result
EDGE_RIVAL = 0.9  # times the agreement of edges in the best other pose
DRIFT_GAIN = 0.045  # of agreement: an EPI at the right place gains less where smoothed edges are 1.5 voxels beside a T1's
# times the mutual information by the affine map alone: the least that displacements kept which did no harm was 0.944, of an
# image and itself with other noise; of 18 that a similarity for one contrast made of images in two five kept 0.84 to 0.92
KEPT_INFORMATION = 0.92
STANDS_OUT = 1.1  # times the similarity of the best other pose
MINIMUM_WINDOWS = 12  # independent windows: with fewer a share of them says little
MINIMUM_OVERLAP = 0.2  # of the smaller image
DOUBTFUL_STRETCH = 1.5  # right ones of tissue and heads had at most 1.3; an affine map that lost its way 1.65
FOLDED = 0.5  # per cent of the voxels
EXTREME_SHARE = 2.0  # per cent of the voxels: of those that did no harm images not in zeros had at most 1.6
# parts of both that are lost: right results lost at most 0.01 and 0.06, or 0.12 and 0.01, where they were started right
WORSE = {"ncc": 0.02, "mi": 0.05}
# what is often behind a wrong pose of images that do belong together; see docs/howto/wrong.md
CAUSES = "if the images do show the same, look at their voxel sizes, units and axes ('daskreg info' of both)"
STARTED = (
    ", and at whether the initial transform maps points of the fixed to points of the moving image, in the unit that it states"
)
SMALL_MASK = 0.1  # share of an image that a mask leaves, below which it may lie elsewhere, or be in another unit
UNSEARCHED = ", or begin with a search of all rotations (--preset rigid)"
ENDED = {"overlap": "under half of its voxels were left", "no overlap": "the images hardly overlapped"}


@dataclass(frozen=True, repr=False)
class Verdict(Printable):
    """What a registration came to.

    status: "ok", "doubtful" or "failed";  reasons: sentences without an end, the weightiest first, one at least, and last what
    to look at where the pose may be wrong;
    evidence: the numbers behind them, as ``Evidence`` has them;  matched: a compressed map of where the images match, see
    ``MatchMap``, empty where there is none
    """

    status: Status
    reasons: tuple[str, ...]
    evidence: Mapping[str, Any]
    matched: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """For the log."""
        return f"verdict: {self.text()}"

    def lines(self) -> list[str]:
        """See ``line``."""
        return [self.line()]

    def text(self) -> str:
        """Status and reasons."""
        return f"{self.status}: {'; '.join(self.reasons)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> Verdict | None:
        """From provenance; None where a run of an earlier version has none."""
        if not record:
            return None
        return cls(record["status"], tuple(record["reasons"]), record["evidence"], record.get("matched", {}))


@dataclass(frozen=True)
class _Reason:
    status: Status
    text: str


def judge(
    evidence: Evidence,
    levels: Sequence[Mapping[str, Any]],
    jacobian: Mapping[str, float] | None = None,
    measures: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
    *,
    started: bool = False,
    masks: Mapping[str, float] | None = None,
) -> Verdict:
    """The worst of all reasons decides.

    levels: reports of the levels, as provenance has them;  jacobian: see ``measure.folding``, of a displacement;  measures: see
    ``measure.likeness``, before and after, where no mask leaves voxels out, and not compared where a search left filling out;
    started: whether there was an initial transform;  masks: shares of the images that masks leave, by role
    """
    match, drift, shape = [*_match(evidence)], [*_drift(evidence)], [*_shape(evidence, jacobian or {})]
    support, small = [*_support(evidence)], _small_masks(masks or {})
    left_out = Filling.of_details([level.get("detail", {}) for level in levels])
    worse = [] if measures is None or left_out != NO_FILLING else [*_worsening(*measures)]
    found = [*support, *match, *drift, *shape, *worse, *_information(evidence), *_endings(evidence, levels)]
    status: Status = max((r.status for r in found), key=RANKS.index, default="ok")
    if evidence.windows < MINIMUM_WINDOWS and all(r.status != "failed" for r in shape):
        status = "doubtful"  # and no more: too little was compared to call it failed, but for a map that no images undergo
    reasons = [r.text for s in reversed(RANKS) for r in found if r.status == s]
    if match or drift or worse:
        searched = any(level["stage"] == "search" for level in levels)
        also = STARTED * started + (f", and at {small}" if small else "")
        reasons.append(CAUSES + also + ("" if searched else UNSEARCHED))
    elif support and small:
        reasons.append(f"look at {small}: does it lie where it should, in the unit of its image?")
    return Verdict(status, tuple(reasons) or (_fine(evidence),), evidence.as_dict())


def _fine(e: Evidence) -> str:
    return (
        f"{_percent(e.in_place)} of the image matches best where it is, {_percent(e.chance)} no better than chance; similarity "
        f"{e.similarity:.3f} against {e.random:.3f} of random poses{_edges(e)}"
    )


def _edges(e: Evidence) -> str:
    return f"; edges agree by {e.edges:.3f} against {e.edge_rival:.3f} in another pose" if e.edges else ""


def _support(e: Evidence) -> Iterator[_Reason]:
    """Whether there is enough to judge."""
    if e.windows < MINIMUM_WINDOWS:
        yield _Reason(
            "doubtful",
            f"too little to judge: the part with texture that both images cover has room for {int(e.windows)} independent "
            f"windows, and {MINIMUM_WINDOWS} are needed",
        )
    if e.overlap < MINIMUM_OVERLAP:
        yield _Reason("doubtful", f"the images share {_percent(e.overlap)} of the smaller one")


def _small_masks(masks: Mapping[str, float]) -> str:
    """Those that leave little, and how much; empty without one."""
    return " and ".join(
        f"the {role} mask, which leaves {100 * n:.2g} % of its image" for role, n in masks.items() if n < SMALL_MASK
    )


def _match(e: Evidence) -> Iterator[_Reason]:
    """Whether the images are more alike here than elsewhere."""
    clear = e.edges_are_clear and _stands_out(e)
    if e.pose < DOUBTFUL and not clear:
        rough = f", by the affine map or a smoothed displacement ({_percent(e.in_place)} by all of it)"
        whole = rough if e.in_place >= DOUBTFUL else ""
        status: Status = "failed" if _no_better_than_others(e) or (e.pose < FAILED and not _stands_out(e)) else "doubtful"
        yield _Reason(status, f"only {_percent(e.pose)} of the image matches best where it is{whole}")
    elif e.in_place < DOUBTFUL and not clear:
        yield _Reason("doubtful", f"after the deformation only {_percent(e.in_place)} of the image matches best where it is")
    if e.pose_chance > CHANCE or (e.pose < DOUBTFUL and e.pose_chance > CHANCE / 2 and not clear):
        yield _Reason("doubtful", f"{_percent(e.pose_chance)} of the image correlates no better than chance")
    yield from _rivals(e)


def _rivals(e: Evidence) -> Iterator[_Reason]:
    """Whether another pose is as good."""
    if _no_better_than_others(e):
        yield _Reason("doubtful", f"another pose is as good ({e.best_random:.3f} against {e.pose_similarity:.3f})")
    elif e.rival > RIVAL:
        yield _Reason("doubtful", f"another pose, refined, is {e.rival:.2f} times as good")
    if e.edge_rival and e.edges < EDGE_RIVAL * e.edge_rival:
        yield _Reason("doubtful", f"edges agree better in another pose ({e.edge_rival:.3f} against {e.edges:.3f})")


def _drift(e: Evidence) -> Iterator[_Reason]:
    """Whether a pose nearby is better."""
    if e.drift > DRIFT and e.drifted_edges - e.drift_edges > DRIFT_GAIN:
        yield _Reason(
            "doubtful",
            f"edges agree better {e.drift:.1f} voxels of a coarse level away ({e.drifted_edges:.3f} against {e.drift_edges:.3f})",
        )


def _no_better_than_others(e: Evidence) -> bool:
    return e.pose_similarity <= e.best_random


def _stands_out(e: Evidence) -> bool:
    """Whether it is more alike than all other poses, if not in detail: two modalities have edges beside each other's."""
    return e.pose_similarity > STANDS_OUT * e.best_random and e.pose_chance < CHANCE


def _shape(e: Evidence, jacobian: Mapping[str, float]) -> Iterator[_Reason]:
    """Whether the map is one that images undergo."""
    folded, extreme = (jacobian.get(name, 0.0) for name in ("folded_percent", "extreme_percent"))
    if e.stretch > DOUBTFUL_STRETCH:
        status: Status = "failed" if e.stretch > TOO_STRETCHED else "doubtful"
        yield _Reason(status, f"the affine map changes lengths by a factor of {e.stretch:.1f}; check the voxel sizes and units")
    if folded > FOLDED:
        yield _Reason("doubtful", f"{folded:.2g} % of the voxels are folded")
    if extreme > EXTREME_SHARE:
        yield _Reason(
            "doubtful",
            f"{extreme:.2g} % of the voxels shrink or grow by more than a factor of {EXTREME:g}; smooth more, compare "
            "two contrasts by mutual information (--preset multimodal), or leave filling out (--background auto)",
        )


def _information(e: Evidence) -> Iterator[_Reason]:
    """Whether the displacement has made the images less alike by a measure that holds for any contrast."""
    if e.information < KEPT_INFORMATION * e.affine_information:
        yield _Reason(
            "doubtful",
            f"the displacement lowers the mutual information from {e.affine_information:.3f} to {e.information:.3f}; where "
            "contrasts differ, compare by that (--preset multimodal)",
        )


def losses(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Parts that correlation, of either sign, and mutual information have lost; negative where they have gained."""
    return {name: 1 - abs(after[name]) / abs(before[name]) if before[name] else -1.0 for name in WORSE}


def _worsening(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[_Reason]:
    """Whether the images were more alike at the start, on not much less of them: a small overlap is alike by chance."""
    lost = losses(before, after)
    if before["overlap"] >= after["overlap"] / 2 and all(lost[name] > most for name, most in WORSE.items()):
        ncc, mi = (f"{before[name]:.3f} to {after[name]:.3f}" for name in WORSE)
        yield _Reason(
            "doubtful", f"the images were more alike at the start: correlation from {ncc}, mutual information from {mi}"
        )


def _endings(e: Evidence, levels: Sequence[Mapping[str, Any]]) -> Iterator[_Reason]:
    """Levels that had to end, unless what came of it leaves no doubt."""
    for level in levels if e.pose < UNSURE[1] else ():
        if (why := ENDED.get(str(level["stopped"]))) is not None:
            yield _Reason("doubtful", f"the stage {level['stage']} ended at scale {level['scale']} because {why}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
