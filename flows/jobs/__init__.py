"""The work of each flow, without Prefect."""
