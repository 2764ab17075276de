"""First contact: look at data, guess its task, and draft a recipe for it. Nothing here imports torch."""

from autoft.drafts.draft import Draft, Question, draft_recipe

__all__ = ["Draft", "Question", "draft_recipe"]
