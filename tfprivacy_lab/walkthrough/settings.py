"""What a walkthrough does: its recipe, sizes and budget, whole or small."""

from __future__ import annotations

import dataclasses

from tfprivacy_lab import provenance
from tfprivacy_lab.experiments import claims
from tfprivacy_lab.experiments.recipes import RECIPES, Pretraining, Recipe


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a walkthrough does; a folder holds the run of one setting.

    Attributes:
        seed: Of split, sampling and noise; None for secret noise from the operating system.
        fast: Whether it is the small run.
        recipe: The recipe, its sizes included.
        epsilon: Budget ε.
        delta: Budget δ.
        train_limit: Private examples to use, or None for all.
        test_limit: Test examples to use, or None for all.
        compared: Pretraining tasks to show side by side, each with its epochs on ``compared_images`` public
            images. The autoencoder learns more slowly and gets more.
    """

    seed: int | None
    fast: bool
    recipe: Recipe
    epsilon: float = 3.0
    delta: float = 1e-5
    dataset: str = "mnist"
    train_limit: int | None = None
    test_limit: int | None = None
    compared: tuple[tuple[str, int], ...] = (
        ("autoencoder", 8),
        ("contrastive", 3),
        ("supervised", 3),
        ("supervised+contrastive", 3),
    )
    compared_images: int = 10_000

    @property
    def split_seed(self) -> int:
        """Decides which private examples are held out; public, as the audit needs it."""
        return claims.public_seed(self.seed)

    def described(self) -> dict:
        """What decides a result, the software's versions included; JSON-ready."""
        recipe = dataclasses.asdict(self.recipe)
        for prose in ("summary", "tuning"):
            del recipe[prose]
        return {**dataclasses.asdict(self), "recipe": recipe, "versions": provenance.versions()}


def settings_for(*, fast: bool = False, seed: int | None = 0) -> Settings:
    """The full walkthrough, or the small one: real MNIST, real noise, real encryption, fewer examples."""
    recipe = RECIPES["finetune"].with_public_seed(claims.public_seed(seed))
    if not fast:
        return Settings(seed, fast, recipe)
    plan = dataclasses.replace(recipe.plan, batch_size=512, epochs=4)
    pretraining = Pretraining(recipe.pretraining.task, images=4_000, epochs=2, seed=recipe.pretraining.seed)
    small = dataclasses.replace(recipe, plan=plan, pretraining=pretraining, validation=1_000)
    return Settings(seed, fast, small, train_limit=8_000, test_limit=1_000, compared_images=768)
