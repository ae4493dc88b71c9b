"""Configuration of what a device does against evasion and triggers by itself. Off unless set."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ScreeningConfig(BaseModel):
    """Of local subgraphs, in training and when recommending: ``fedquilt/graphs/screening.py``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    similarity: float = Field(
        -1.0,
        ge=-1,
        le=1,
        description="edges between items whose base vectors have a smaller cosine are dropped; -1 = none",
    )
    support: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a user's other clicks that a click must resemble by so much to be a node; 0 = all are",
    )
    degree: int = Field(0, ge=0, description="edges that a node keeps, the heaviest; 0 = all")

    @model_validator(mode="after")
    def _support_needs_a_similarity(self) -> Self:
        if self.support and self.similarity == -1:
            raise ValueError("support counts clicks that resemble a click: set screening.similarity above -1 as well")
        return self

    @property
    def is_on(self) -> bool:
        return self.similarity > -1 or self.degree > 0


class VoteConfig(BaseModel):
    """Of lists that groups of a user's clicks vote on: ``client/vote.py``, ``fedquilt/certificate.py``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: int = Field(
        0, ge=0, le=64, description="S, groups that a user's clicks are hashed into; each votes; 0 = no vote"
    )
    ballot: int = Field(20, ge=1, description="M, items that a group votes for")
    key: int = Field(0, description="of the hash from items to groups; any key is certified, a secret one is harder")
