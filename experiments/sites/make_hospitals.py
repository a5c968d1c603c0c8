"""Write the three hospitals of ``hospitals.toml``: one table each, as such tables are.

``python experiments/sites/make_hospitals.py`` writes the same files each time. The patients of the
hospitals differ in age and illness, and the files in what programs make of them: Berlin's separates
columns by semicolons and writes decimals with a comma, Lodz's begins with a byte order mark and quotes
its words, Porto's has gaps where nothing was measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).parent / "hospitals"
WARDS = ("cardiology", "emergency", "surgery")


def patients(
    rng: np.random.Generator, count: int, age: float, wards: tuple[float, ...]
) -> pd.DataFrame:
    """Patients of a hospital whose mean age and shares of wards are its own."""
    ages = np.clip(rng.normal(age, 14, count), 18, 95).round()
    pressure = (100 + 0.5 * ages + rng.normal(0, 12, count)).round(1)
    bmi = np.clip(rng.normal(26, 4, count), 16, 45).round(1)
    ward = rng.choice(WARDS, count, p=wards)
    risk = 0.06 * (ages - 60) + 0.05 * (pressure - 130) + 0.1 * (bmi - 26)
    risk += 1.0 * (ward == "cardiology") + rng.normal(0, 0.7, count)
    return pd.DataFrame(
        {
            "age": ages.astype(int),
            "pressure": pressure,
            "bmi": bmi,
            "ward": ward,
            "readmitted": np.where(risk > 0, "yes", "no"),
        }
    )


def main() -> None:
    """Write the files."""
    rng = np.random.default_rng(0)
    FOLDER.mkdir(exist_ok=True)
    berlin = patients(rng, 160, 68, (0.5, 0.3, 0.2))
    berlin.to_csv(FOLDER / "berlin.csv", sep=";", decimal=",", index=False, lineterminator="\n")
    lodz = patients(rng, 120, 54, (0.2, 0.6, 0.2))
    lodz.to_csv(
        FOLDER / "lodz.csv", encoding="utf-8-sig", quoting=2, index=False, lineterminator="\n"
    )
    porto = patients(rng, 90, 61, (0.2, 0.2, 0.6))
    porto.loc[rng.random(90) < 0.1, "bmi"] = np.nan
    porto.loc[rng.random(90) < 0.05, "ward"] = np.nan
    porto.to_csv(FOLDER / "porto.csv", na_rep="", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
