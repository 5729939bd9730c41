"""Who takes part in simulated transactions: providers and patients, as their REST service knows them."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

CITIES: Final = {
    "Jakarta": 28, "Surabaya": 11, "Bandung": 10, "Bekasi": 8, "Medan": 8, "Tangerang": 7,
    "Depok": 6, "Semarang": 5, "Makassar": 4, "Palembang": 4, "Yogyakarta": 4, "Denpasar": 3,
    "Balikpapan": 1, "Manado": 1,
}  # fmt: skip
TIERS: Final = {"gold": 15, "silver": 35, "bronze": 50}
KINDS: Final = {"pharmacy": 250, "doctor": 170, "hospital": 70, "insurer": 10}
AGE_GROUPS: Final = {"0-17": 18, "18-29": 27, "30-44": 31, "45-59": 16, "60+": 8}
PATIENTS: Final = 20_000
INSURED_SHARE: Final = 0.45


@dataclass(frozen=True, slots=True)
class Provider:
    """Who serves patients; ``kind`` is pharmacy, doctor, hospital or insurer."""

    id: str
    name: str
    city: str
    tier: str
    kind: str


@dataclass(frozen=True, slots=True)
class Patient:
    """Who is served."""

    id: str
    age_group: str
    city: str
    insured: bool


@dataclass(frozen=True, slots=True)
class Directory:
    """What the REST service knows and the events don't say, by id."""

    providers: Mapping[str, Provider]
    patients: Mapping[str, Patient]

    def tables(self) -> dict[str, dict[str, dict[str, Any]]]:
        """As JSON objects: ``{"providers": {id: object}, "patients": {id: object}}``."""
        return {
            "providers": {key: asdict(row) for key, row in self.providers.items()},
            "patients": {key: asdict(row) for key, row in self.patients.items()},
        }


@cache
def directory(seed: int) -> Directory:
    """The 500 providers and 20,000 patients of that seed.

    >>> directory(1).patients["PAT-0000001"].city in CITIES
    True
    """
    rng = random.Random(f"directory {seed}")
    providers: dict[str, Provider] = {}
    patients: dict[str, Patient] = {}
    for kind, size in KINDS.items():
        # Insurers sit in the capital; the others are where the people are.
        homes = ["Jakarta"] * size if kind == "insurer" else _drawn(rng, CITIES, size)
        for city, tier in zip(homes, _drawn(rng, TIERS, size), strict=True):
            key = f"PRV-{len(providers) + 1:05d}"
            name = f"{kind.capitalize()} {city} {len(providers) + 1}"
            providers[key] = Provider(key, name, city, tier, kind)
    for n, (age, city) in enumerate(
        zip(_drawn(rng, AGE_GROUPS, PATIENTS), _drawn(rng, CITIES, PATIENTS), strict=True), 1
    ):
        key = f"PAT-{n:07d}"
        patients[key] = Patient(key, age, city, rng.random() < INSURED_SHARE)
    return Directory(providers, patients)


def _drawn(rng: random.Random, weights: Mapping[str, int], k: int) -> list[str]:
    return rng.choices(list(weights), list(weights.values()), k=k)
