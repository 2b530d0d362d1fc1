"""Published settings of the methods that align two encoders, as parameters of our aligners.

Three rules hold for all of them, since what is published is for millions of pairs:

- **Batches** stay as published; an aligner clamps them to the number of pairs.
- **Steps** are kept rather than epochs: ``max_epochs`` is the published number of steps divided by
  the batches of an epoch, and at most 500, the most epochs that any of them ran (FuseMix). LiT,
  which trains a whole tower, gets at most 30. Give `n_pairs` for it; without, all pairs are taken
  to fit into one batch.
- **Early stopping** is on, with a patience of 50 looks at held-out pairs (ShareLock's; here
  epochs), whether published or not: on few pairs the last epoch is seldom the best.

`recipe_notes` says where each number comes from, and what else was changed.
"""

from ._make import list_recipes, make_aligner, recipe, recipe_notes

__all__ = ["list_recipes", "make_aligner", "recipe", "recipe_notes"]
