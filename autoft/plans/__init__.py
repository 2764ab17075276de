"""Recipe, plugins and hardware become a plan, which a search then follows.

Nothing here imports torch: a plan is made, and explained, in well under a second.

Modules: :mod:`~autoft.plans.planner` resolves names and decides what is legal, with :mod:`~autoft.plans.models` to find base
models, :mod:`~autoft.plans.budgets` for limits, and :mod:`~autoft.plans.efforts` for what is searched where a recipe leaves it
open; :mod:`~autoft.plans.plan` is what comes out, and :mod:`~autoft.plans.targets` what strategies see of it.
"""
