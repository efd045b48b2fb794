"""A flow run of a pinned worker: one of the program's own flows, by its name, whatever its deployment asks to be run.

Prefect's own engine would load what the deployment names, after steps that can run any program.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from anonymizer.errors import ConfigError

FLOWS = {  # name -> module and function
    "release": "flows.release:release",
    "audit": "flows.audit:audit",
    "calibrate": "flows.calibrate:calibrate",
    "anonymize-shards": "flows.shards:anonymize_shards",
}


def load_flow(flow_run: FlowRun) -> Flow[..., Any]:
    """Return the program's flow of this name. Raises ConfigError for any other."""
    with get_client(sync_client=True) as client:
        name = client.read_flow(flow_run.flow_id).name
    if name not in FLOWS:
        raise ConfigError(f"flow: is none that a pinned worker runs ({', '.join(FLOWS)}): run it by hand")
    module, _, function = FLOWS[name].partition(":")
    flow: Flow[..., Any] = getattr(import_module(module), function)
    return flow


def main() -> None:
    """Run the flow run that the environment names, as ``prefect.engine`` does."""
    from prefect._internal.control_listener import configure_from_env
    from prefect.engine import handle_engine_signals
    from prefect.flow_engine import load_flow_run, run_flow

    flow_run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    configure_from_env()
    with handle_engine_signals(flow_run_id):
        flow_run = load_flow_run(flow_run_id)
        try:
            flow = load_flow(flow_run)
        except ConfigError as error:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run_id, Failed(message=f"ConfigError: {error}"), force=True)
            return
        run_flow(flow, flow_run=flow_run)


if __name__ == "__main__":
    main()
