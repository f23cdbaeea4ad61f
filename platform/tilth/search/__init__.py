"""Search: the values of a recipe's fields that score best, each trial a part of the recipe with other values."""
