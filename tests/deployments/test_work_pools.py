"""Templates of work pools, manifests, compose file and Dockerfile: held against the libraries that will read them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker.types
import jsonschema
import kubernetes_asyncio.client as kubernetes
import pytest
import yaml

from tests.support import ROOT

DEPLOYMENTS = ROOT / "deployments"
POOLS = sorted(path.name for path in (DEPLOYMENTS / "work-pools").iterdir())
KEYS = ("ANONYMIZER_KEY", "ANONYMIZER_SIGNING_KEY")
SECRET = re.compile(r"[0-9a-fA-F]{32}|AGE-SECRET-KEY|PRIVATE KEY")


def worker_of(name: str) -> Any:
    """The worker that reads this template."""
    from prefect.workers.process import ProcessWorker
    from prefect_docker.worker import DockerWorker
    from prefect_kubernetes.worker import KubernetesWorker

    kinds = {"process": ProcessWorker, "docker": DockerWorker, "kubernetes": KubernetesWorker}
    return kinds[name.removesuffix(".json").partition("-")[0]]


def template_of(name: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((DEPLOYMENTS / "work-pools" / name).read_text())
    return template


def rendered(name: str, **values: Any) -> Any:
    """The settings of a job, as the worker makes them of the template for a flow run."""
    from prefect.client.schemas.objects import FlowRun

    kind = worker_of(name).job_configuration
    job = asyncio.run(kind.from_template_and_values(template_of(name), values))
    job.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="shards-0-9"))
    return job


@pytest.mark.usefixtures("prefect_home")
@pytest.mark.parametrize("name", POOLS)
def test_a_template_has_all_that_prefects_own_has_and_its_defaults_are_valid(name: str) -> None:
    own, ours = worker_of(name).get_default_base_job_template(), template_of(name)
    assert ours["job_configuration"].keys() == own["job_configuration"].keys()
    assert ours["variables"]["properties"].keys() >= own["variables"]["properties"].keys()
    properties = ours["variables"]["properties"]
    defaults = {key: value["default"] for key, value in properties.items() if value.get("default") is not None}
    jsonschema.validate(defaults, ours["variables"])
    asked = set(re.findall(r"{{ (\w+) }}", json.dumps(ours["job_configuration"])))
    assert asked == properties.keys()  # each variable is used, and none is asked for that there is not


@pytest.mark.usefixtures("prefect_home")
@pytest.mark.parametrize("name", POOLS)
def test_no_template_holds_a_key_and_no_job_sends_telemetry(name: str) -> None:
    job = rendered(name)
    env = job.env if isinstance(job.env, dict) else {item["name"]: item.get("value") for item in job.env}
    assert env["PREFECT_RESULTS_PERSIST_BY_DEFAULT"] == "false"
    assert env["DO_NOT_TRACK"] == "1"
    assert env["PYTHONSAFEPATH"] == "1"  # a working directory holds data
    assert not set(env) & set(KEYS)
    assert not SECRET.search((DEPLOYMENTS / "work-pools" / name).read_text())


@pytest.mark.usefixtures("prefect_home")
@pytest.mark.parametrize(("name", "gpus", "keys"), [("docker-cpu.json", 0, KEYS), ("docker-gpu.json", 1, KEYS[:1])])
def test_a_container_gets_its_gpu_and_reads_its_keys_from_files(name: str, gpus: int, keys: tuple[str, ...]) -> None:
    job = rendered(name)
    assert job.command == "with-keys prefect flow-run execute"
    mounted = [volume.split(":") for volume in job.volumes]
    assert {inside for _, inside, *_ in mounted} == {"/srv/anonymizer", *(f"/run/secrets/{key}" for key in keys)}
    assert all(mode == ["ro"] for _, inside, *mode in mounted if "secrets" in inside)
    host = docker.types.HostConfig(version="1.43", **job.container_create_kwargs)  # as docker-py makes it
    assert sum(request["Count"] for request in host.get("DeviceRequests", [])) == gpus
    assert host["CapDrop"] == ["ALL"]
    assert not job.privileged


def unknown(kind: str, data: Any, path: str = "") -> Iterator[str]:
    """Fields that an object of Kubernetes' API does not have."""
    if data is None or kind in ("str", "int", "bool", "float", "object", "datetime"):
        return
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        for i, item in enumerate(data):
            yield from unknown(inner[1], item, f"{path}[{i}]")
    elif inner := re.fullmatch(r"dict\(\w+, (.+)\)|dict\[\w+, (.+)\]", kind):
        for key, item in data.items():
            yield from unknown(inner[1] or inner[2], item, f"{path}.{key}")
    else:
        model = getattr(kubernetes, kind)
        names = {there: here for here, there in model.attribute_map.items()}
        for key, value in data.items():
            if key not in names:
                yield f"{path}.{key}"
            else:
                yield from unknown(model.openapi_types[names[key]], value, f"{path}.{key}")


def test_the_check_of_manifests_finds_what_is_not_there() -> None:
    pod = {"spec": {"containers": [{"name": "a", "resource": {}, "securityContext": {"capabilities": {"drpo": []}}}]}}
    assert list(unknown("V1Pod", pod)) == [
        ".spec.containers[0].resource", ".spec.containers[0].securityContext.capabilities.drpo",
    ]  # fmt: skip


@pytest.mark.usefixtures("prefect_home")
@pytest.mark.parametrize(
    ("name", "gpus", "keys"), [("kubernetes-cpu.json", None, KEYS), ("kubernetes-gpu.json", 1, KEYS[:1])]
)
def test_a_job_asks_for_its_gpu_runs_without_privileges_and_takes_keys_from_secrets(
    name: str, gpus: int | None, keys: tuple[str, ...]
) -> None:
    job = rendered(name, node_selector={"pool": "a100"})
    assert list(unknown("V1Job", job.job_manifest)) == []
    pod = job.job_manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    from_secrets = {item["name"]: item["valueFrom"]["secretKeyRef"] for item in container["env"] if "valueFrom" in item}
    assert set(from_secrets) == set(keys)
    assert {item["name"] for item in container["env"]} > {"PREFECT__FLOW_RUN_ID", *keys}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / name).read_text()))


KINDS = {
    "Role": "V1Role", "RoleBinding": "V1RoleBinding", "ServiceAccount": "V1ServiceAccount",
    "Deployment": "V1Deployment", "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "NetworkPolicy": "V1NetworkPolicy",
}  # fmt: skip


@pytest.mark.parametrize(("name", "workers"), [("workers.yaml", 2), ("job-workers.yaml", 2), ("network.yaml", 0)])
def test_manifests_have_fields_that_kubernetes_knows(name: str, workers: int) -> None:
    found = manifests(name)
    assert [item["kind"] for item in found].count("Deployment") == workers
    for item in found:
        assert list(unknown(KINDS[item["kind"]], item)) == [], item["kind"]


def test_workers_on_kubernetes_are_pinned_may_do_nothing_there_and_one_has_the_publishers_key() -> None:
    found = manifests("workers.yaml")
    assert {item["kind"] for item in found} == {"PersistentVolumeClaim", "Deployment"}  # no role
    secrets = {}
    for item in found[1:]:
        pod = item["spec"]["template"]["spec"]
        assert not pod["automountServiceAccountToken"] and pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["args"][:2] == ["anonymizer", "worker"]
        env = {one["name"]: one.get("value") for one in container["env"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts[env["ANONYMIZER_POLICY"]]["readOnly"]
        secrets[container["args"][2]] = {one["name"] for one in container["env"] if "valueFrom" in one}
    assert secrets == {
        "anonymizer-cpu": {*KEYS, "PREFECT_API_AUTH_STRING"},
        "anonymizer-gpu": {"ANONYMIZER_KEY", "PREFECT_API_AUTH_STRING"},
    }


def test_nobody_reaches_a_worker_and_only_workers_the_server() -> None:
    policies = {item["metadata"]["name"]: item for item in manifests("network.yaml")}
    assert {item["spec"]["policyTypes"][0] for item in policies.values()} == {"Ingress"}
    closed = policies["nobody-reaches-a-worker"]
    assert closed["metadata"]["namespace"] == "anonymizer"
    assert closed["spec"]["podSelector"] == {} and "ingress" not in closed["spec"]
    inside = policies["prefect-within-its-namespace"]["spec"]
    assert inside["podSelector"] == {} and inside["ingress"] == [{"from": [{"podSelector": {}}]}]
    ((rule,),) = (policies["workers-reach-the-server"]["spec"]["ingress"],)
    (peer,) = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "anonymizer"}
    assert [port["port"] for port in rule["ports"]] == [4200]


def test_workers_that_make_jobs_watch_no_namespace_but_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_kubernetes.settings import KubernetesSettings

    found = manifests("job-workers.yaml")
    assert not [item for item in found if item["kind"].startswith("Cluster")]  # a Role reaches no further
    for item in found:
        if item["kind"] == "Deployment":
            (container,) = item["spec"]["template"]["spec"]["containers"]
            for one in container["env"]:
                if "value" in one:
                    monkeypatch.setenv(one["name"], one["value"])
            settings = KubernetesSettings()
            assert settings.observer.namespaces == {"anonymizer"}
            (login,) = [one for one in container["env"] if one["name"] == "PREFECT_API_AUTH_STRING"]
            secret = login["valueFrom"]["secretKeyRef"]
            worker = settings.worker  # puts a reference into its jobs, not the password
            assert secret == {"name": worker.api_auth_string_secret_name, "key": worker.api_auth_string_secret_key}
            monkeypatch.undo()
    for name in ("kubernetes-cpu.json", "kubernetes-gpu.json"):
        assert template_of(name)["variables"]["properties"]["namespace"]["default"] == "anonymizer"


def secrets_of(service: dict[str, Any]) -> set[str]:
    """Names under which a service of the compose file finds secrets."""
    return {one if isinstance(one, str) else one["target"] for one in service.get("secrets", ())}


def test_only_workers_are_given_keys_and_only_the_controller_the_publishers() -> None:
    compose = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
    has = {name: secrets_of(one) & set(KEYS) for name, one in compose["services"].items()}
    assert has == {
        "postgres": set(), "server": set(), "deploy": set(), "cpu-worker": set(KEYS), "gpu-worker": {"ANONYMIZER_KEY"},
    }  # fmt: skip
    assert not SECRET.search((DEPLOYMENTS / "compose.yaml").read_text())
    assert set(compose["secrets"]) == {*KEYS, "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_PASSWORD"}
    assert compose["services"]["server"]["ports"] == ["127.0.0.1:4200:4200"]


def test_the_server_asks_for_a_password_and_every_client_has_it() -> None:
    services = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in secrets_of(services["server"])
    clients = {name for name, one in services.items() if "PREFECT_API_URL" in one.get("environment", {})}
    assert clients == {"deploy", "cpu-worker", "gpu-worker"}
    for name in (*clients, "server"):
        assert services[name]["command"][0] == "with-keys"
        assert name == "server" or "PREFECT_API_AUTH_STRING" in secrets_of(services[name])


def test_workers_of_the_compose_file_are_pinned_and_meet_the_server_only() -> None:
    services = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]
    for name in ("cpu-worker", "gpu-worker"):
        place = services[name]["environment"]["ANONYMIZER_POLICY"]
        assert services[name]["command"][1:3] == ["anonymizer", "worker"]
        assert [volume for volume in services[name]["volumes"] if volume.endswith(f":{place}:ro")]
    networks = {name: set(one["networks"]) for name, one in services.items()}
    assert not networks["cpu-worker"] & networks["gpu-worker"]
    for name in ("cpu-worker", "gpu-worker", "deploy"):
        assert len(networks[name] & networks["server"]) == 1 and not networks[name] & networks["postgres"]


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_secret_that_cannot_be_read_starts_nothing(tmp_path: Path, is_readable: bool) -> None:
    script = (DEPLOYMENTS / "with-keys").read_text().replace("/run/secrets", str(tmp_path))
    secret = tmp_path / "PREFECT_SERVER_API_AUTH_STRING"
    secret.write_text("anonymizer:password") if is_readable else secret.mkdir()
    command = ["sh", "-c", script, "with-keys", "sh", "-c", 'echo "$PREFECT_SERVER_API_AUTH_STRING"']
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0, done.stdout) == (is_readable, "anonymizer:password\n" * is_readable)


def test_nothing_is_deployed_again_unless_asked_for() -> None:
    services = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]
    asked = services.pop("deploy")
    assert asked["profiles"] and "deploy --all" in asked["command"][-1]
    assert not [name for name, one in services.items() if "profiles" in one or "deploy" in one.get("depends_on", {})]
    # It reads the files beside compose.yaml, in place of those of the image.
    assert asked["volumes"] == [".:/opt/anonymizer/deployments:ro"] and asked["working_dir"] == "/opt/anonymizer"
    named = re.findall(r"deployments/\S+\.(?:json|yaml)", asked["command"][-1])
    assert len(named) == 2 and all((DEPLOYMENTS.parent / one).is_file() for one in named)


def test_the_image_can_compile_a_network_and_what_it_caches_outlives_its_containers() -> None:
    final = (DEPLOYMENTS / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    (packages,) = re.findall(r"apt-get install --yes --no-install-recommends (.+?) \\\n", final)
    assert {"g++", "python3-dev"} <= set(packages.split())
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", final)
    services = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]
    places = {services[name]["volumes"][0].rpartition(":")[2] for name in ("cpu-worker", "gpu-worker")}
    for name in POOLS:
        properties = template_of(name)["variables"]["properties"]
        assert "XDG_CACHE_HOME" not in properties["env"]["default"]
        if name.startswith("docker"):
            places.add(properties["volumes"]["default"][0].rpartition(":")[2])
        elif name.startswith("kubernetes"):
            pod = template_of(name)["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
            volumes = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
            mounts = pod["containers"][0]["volumeMounts"]
            places |= {mount["mountPath"] for mount in mounts if mount["name"] in volumes}
    assert places == {str(Path(cache).parent)}


def test_the_image_works_in_no_folder_that_holds_data() -> None:
    final = (DEPLOYMENTS / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^WORKDIR (\S+)", final, re.MULTILINE) == ["/opt/anonymizer"]
    assert "PYTHONSAFEPATH=1" in final


def test_the_image_runs_without_privileges_and_contains_only_named_files() -> None:
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    copied = {
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }
    named = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines()
    assert named[1] == "*"
    allowed = {line[1:] for line in named if line.startswith("!")}
    assert {word.partition("/")[0] for word in copied if not word.startswith("--")} == allowed
    assert not [line for line in lines if re.search(r"(ARG|ENV) .*(KEY|SECRET|PASSWORD|TOKEN)", line)]
