"""What is varied in a training sample, and by how much: the settings, checked."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Augment:
    """Random variations of a recording, all off by default; ``Augment()`` is false. In the order in which they are made:

    Attributes:
        drop: each bit (event) is erased with this probability (EventDrop, random drop).
        drop_time: one stretch of up to this share of the duration is erased, its length uniform (EventDrop, drop by
            time).
        drop_area: a rectangle of up to this share of the area, uniform, is erased in all frames (EventDrop, drop by
            area; Cutout).
        crop: a window smaller than the frame by up to this many pixels along each axis stays where it is, the rest is
            erased.
        time_jitter: each bit moves by its own number of frames, uniform in ±time_jitter.
        time_shift: the whole recording moves by a number of frames, uniform in ±time_shift.
        flip: left and right change places with probability 1/2.
        shift: the whole recording moves by numbers of pixels (dy, dx), each uniform in ±shift (NDA, rolling, but what
            leaves does not come back in on the other side).
        polarity_flip: with probability 1/2 channels 2i and 2i + 1 change places: ON and OFF, within each bit plane.
        cut_mix: with this probability a box in space and time comes from another sample, varied by itself. The box has
            a volume share uniform in (0, 1) (CutMix with λ ~ Beta(1, 1), its sides in proportion to the frame's and
            to the duration). The label is mixed by the share of set bits (events) that come from each: a box of
            sparse events can be large and hold nothing, so that EventMix counts events where CutMix counts pixels.

    What leaves the frame or the recording is lost. An axis of a single pixel or frame is not cropped, and nothing moves
    along it.

    Sources: EventDrop (Gu, Sng, Hu, Yu: IJCAI 2021); NDA (Li, Kim, Park, Geller, Panda: Neuromorphic data augmentation,
    ECCV 2022); CutMix (Yun et al.: ICCV 2019); EventMix (Shen, Zhao, Zeng: Information Sciences 644, 2023).

    Raises:
        ValueError: a setting of another type or out of range.

    >>> bool(Augment()), Augment(shift=2, flip=True)
    (False, Augment(shift=2, flip=True))
    """

    shift: int = 0
    flip: bool = False
    crop: int = 0
    time_shift: int = 0
    time_jitter: int = 0
    drop: float = 0
    drop_time: float = 0
    drop_area: float = 0
    polarity_flip: bool = False
    cut_mix: float = 0

    def __post_init__(self) -> None:
        for key in ("shift", "crop", "time_shift", "time_jitter"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{key}: expected a whole number of 0 or more, got {value!r}")
        for key in ("flip", "polarity_flip"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key}: expected True or False, got {getattr(self, key)!r}")
        for key in ("drop", "drop_time", "drop_area", "cut_mix"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{key}: expected a number, got {value!r}")
            if not (0 <= value < 1 or (key == "cut_mix" and value == 1)):
                limit = "[0, 1]" if key == "cut_mix" else "[0, 1), as 1 leaves nothing"
                raise ValueError(f"{key}: expected a value in {limit}, got {value}")

    def check(self, sensor: tuple[int, int, int], steps: int | None = None) -> None:
        """Raise ``ValueError`` unless the settings suit frames of shape (C, H, W), ``steps`` of them where that is known.

        A shift or crop by a whole frame and an odd number of channels to swap are refused.
        """
        channels, height, width = sensor
        if self.polarity_flip and channels % 2:
            raise ValueError(f"polarity_flip: expected channels in pairs OFF, ON, got {channels}")
        for key, sizes in (
            ("shift", (height, width)),
            ("crop", (height, width)),
            ("time_shift", () if steps is None else (steps,)),
        ):
            smallest = min((size for size in sizes if size > 1), default=None)
            if smallest is not None and getattr(self, key) >= smallest:
                unit = "frames" if key == "time_shift" else "pixels"
                raise ValueError(f"{key}: expected less than {smallest} {unit}, got {getattr(self, key)}")

    def __bool__(self) -> bool:
        """Whether anything is varied."""
        return any(getattr(self, f.name) for f in dataclasses.fields(self))

    def __repr__(self) -> str:
        """The settings that are on."""
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return f"Augment({', '.join(f'{name}={value!r}' for name, value in fields if value)})"
