"""Random variation of training samples, as packed bits and as events: the same sample, epoch and seed, the same variation."""

from tbnn.data.augment.events import augment_events
from tbnn.data.augment.spec import Augment
from tbnn.data.augment.streams import sample_rng
from tbnn.data.augment.words import Augmented, augment_words, is_mixed, partner_of

__all__ = ["Augment", "Augmented", "augment_events", "augment_words", "is_mixed", "partner_of", "sample_rng"]
