"""The [defence] section of the configuration: what the cloud does against attackers besides its aggregation rule."""

from __future__ import annotations

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DefenceConfig(BaseModel):
    """Nothing of this is on unless it is set. A run's hash is that of a run without the section as long as none is."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    root_users: int = Field(
        200, ge=1, description="users drawn a round, whose clicks in the cloud make the root update that fltrust takes"
    )
    rollback_tolerance: float = Field(
        math.inf,
        ge=0,
        description="share of NDCG@10 on the cloud's own clicks that a round may cost; more and it is undone; inf: off",
    )
    rollback_users: int = Field(
        500, ge=1, description="users whose latest click in the cloud judges a round; the same ones in every round"
    )
    exposure_share: float = Field(
        math.inf,
        ge=0,
        description="share of the cloud's own users whose top 10 an item may be in, unless the base model shows it to"
        " more; what is above is taken off its bias in the patch that is served; inf: off",
    )
    exposure_growth: float = Field(
        1.0, ge=1, description="exposure_share: how many times the base model's exposure an item may have"
    )
    lift_quantile: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="no user gets more of the patch for an item than this share of the cloud's own users get less of;"
        " 0: off",
    )
    panel_users: int = Field(
        0,
        ge=0,
        description="users of known accounts, drawn by the seed, whose clicks the cloud sees at once; what too few of"
        " them click is not lifted; 0: off",
    )
    panel_file: str = Field(
        "", description="panel_users: a file with a user id of the log's source a line, in place of a draw"
    )
    panel_support: int = Field(
        6,
        ge=1,
        description="users of the panel who must have clicked an item after the cloud's part for it to be lifted",
    )
    panel_growth: float = Field(
        1.75,
        ge=0,
        description="times its share of the panel that an item may be in top 10s of the cloud's own users, unless the"
        " base model shows it to more; inf: no bound",
    )
    panel_log_alpha: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="chance that a random panel has clicked so little of any item in the cloud's log; whatever"
        " is rarer is bounded by its share of the panel, though the base model shows it to more; 0: off",
    )
    exposure_users: int = Field(
        500, ge=1, description="exposure_share, lift_quantile: users of the cloud's log who judge them"
    )
    exposure_moments: int = Field(3, ge=1, description="exposure_share, lift_quantile: moments of such a user's past")
    suspicion: bool = Field(False, description="keep a score per client, and draw no client whose score is too high")
    suspicion_half_life: float = Field(20, gt=0, description="rounds in which a score halves")
    suspicion_threshold: float = Field(
        4.0, gt=0, description="score from which a client is not drawn, until half of it is forgotten"
    )
    suspicion_far: float = Field(
        4.0,
        gt=0,
        description="robust z-score of an update's distance to the aggregate from which it counts as far away",
    )

    @model_validator(mode="after")
    def _a_panel_can_act(self) -> Self:
        """A setting that would do nothing, or let nothing be lifted, is refused."""
        if not self.panel_users and not self.panel_file:
            return self
        if not self.lift_quantile:
            raise ValueError("panel_users and panel_file bound lift: set lift_quantile, such as 0.95")
        if self.panel_users and self.panel_file:
            raise ValueError("panel_users draws the panel and panel_file names it: set one of them")
        if self.panel_users and self.panel_users < self.panel_support:
            raise ValueError(
                f"panel_support = {self.panel_support} of panel_users = {self.panel_users}: nothing could be lifted;"
                " raise panel_users"
            )
        return self

    def unused(self) -> set[str]:
        """Options that came later than the section and are not used: a run's hash leaves them out."""
        panel = {"panel_users", "panel_file", "panel_support", "panel_growth", "panel_log_alpha"}
        if self.panel_users or self.panel_file:
            return set()
        return panel if self.lift_quantile else {*panel, "lift_quantile"}
