"""Tags of flow runs."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run


def tag_run(tags: Iterable[str]) -> None:
    """Give this flow run these tags too, whoever started it: a decorator can do that for tasks only."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=sorted({*flow_run.tags, *tags}))
