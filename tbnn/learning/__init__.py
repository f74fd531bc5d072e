"""How weights change: rules of one protocol, from back-propagation through time to local plasticity."""

from tbnn.learning.bptt import Bptt
from tbnn.learning.config import LearningConfig, rule_of
from tbnn.learning.decolle import Decolle
from tbnn.learning.eprop import Eprop
from tbnn.learning.equilibrium import EquilibriumNetwork, EquilibriumPropagation
from tbnn.learning.feedback import DirectFeedbackAlignment, FeedbackAlignment
from tbnn.learning.match import match_scale
from tbnn.learning.ostl import Ostl
from tbnn.learning.ottt import Ottt
from tbnn.learning.plasticity import Stdp
from tbnn.learning.reward import RewardEprop
from tbnn.learning.ridge import RunningRidge
from tbnn.learning.rtrl import Rtrl
from tbnn.learning.rule import Outcome, Rule, RuleState

__all__ = [
    "Bptt",
    "Decolle",
    "DirectFeedbackAlignment",
    "Eprop",
    "EquilibriumNetwork",
    "EquilibriumPropagation",
    "FeedbackAlignment",
    "LearningConfig",
    "Ostl",
    "Ottt",
    "Outcome",
    "RewardEprop",
    "Rtrl",
    "Rule",
    "RuleState",
    "RunningRidge",
    "Stdp",
    "match_scale",
    "rule_of",
]
