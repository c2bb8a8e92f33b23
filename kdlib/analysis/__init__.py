"""What a student took over from its teacher: a module for each question.

- `attention`: do both look at the same place? `grad_cam`, `cam_similarity`, `closer_share`
- `attacks`: are both fooled by the same images? `fgsm`, `fooling_rate`, `successful_attacks`
- `agreement`: do both answer alike? `predictions`, `agreement`, `chance_agreement`,
  `prediction_entropy`, `consensus`, `permutation_test`
- `cka`: are their features alike? `linear_cka`, `minibatch_cka`, `cka_heatmap`,
  `network_cka`
- `boundaries`: do their borders between classes run alike? `plane_points`, `random_planes`,
  `map_overlap`, `boundary_overlap`
- `calibration`: is a network as sure as it is right? `expected_calibration_error`

The measurements of Ojha et al. 2023, "What Knowledge Gets Distilled in Knowledge Distillation?",
and the feature similarity and calibration of other chapters. Shares are percent. Every function
takes a model in any mode, evaluates it, and gives the mode back; no gradient stays behind. Bad
input raises ValueError or TypeError with the argument's name, and so does empty input.
"""

from kdlib.analysis.agreement import (
    Permutations,
    agreement,
    chance_agreement,
    consensus,
    permutation_test,
    prediction_entropy,
    predictions,
)
from kdlib.analysis.attacks import Attack, fgsm, fooling_rate, successful_attacks
from kdlib.analysis.attention import cam_similarity, closer_share, grad_cam
from kdlib.analysis.boundaries import (
    Plane,
    boundary_overlap,
    map_overlap,
    plane_points,
    random_planes,
)
from kdlib.analysis.calibration import expected_calibration_error
from kdlib.analysis.cka import cka_heatmap, linear_cka, minibatch_cka, network_cka

__all__ = [
    "Attack",
    "Permutations",
    "Plane",
    "agreement",
    "boundary_overlap",
    "cam_similarity",
    "chance_agreement",
    "cka_heatmap",
    "closer_share",
    "consensus",
    "expected_calibration_error",
    "fgsm",
    "fooling_rate",
    "grad_cam",
    "linear_cka",
    "map_overlap",
    "minibatch_cka",
    "network_cka",
    "permutation_test",
    "plane_points",
    "prediction_entropy",
    "predictions",
    "random_planes",
    "successful_attacks",
]
