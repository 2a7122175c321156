"""The manifest of the example: the API's schemas take it, and its commands, probes and variables do their work."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scraping import get

MANIFEST = Path(__file__).parents[2] / "examples" / "kubernetes" / "sidecar.yaml"
# What the test puts in the place of paths and ports of a pod.
HERE = {"tcp://127.0.0.1:5555": "tcp://127.0.0.1:*", "0.0.0.0:9464": "127.0.0.1:0"}
POD = {"metadata.name": "decode-7f", "metadata.namespace": "serving", "spec.nodeName": "gpu-7"}
WORK = """
from kvxfer import StatsPublisher
from kvxfer.integrations.ranks import rank_labels
with StatsPublisher("NixlConnector", labels=rank_labels(), linger=20.0) as publisher:
    publisher.stats.record_transfer(0.001, 0.0001, 1024, 2)
"""

pytestmark = pytest.mark.extra


@pytest.fixture
def manifest() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(MANIFEST.read_text())


@pytest.fixture
def collector(manifest: Any, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """What the sidecar's container runs; where it collects and where it serves."""
    container = pod(manifest)["initContainers"][0]
    arguments = " ".join(container["args"])
    for old, new in {**HERE, "/var/lib/kvxfer": str(tmp_path)}.items():
        assert old in arguments
        arguments = arguments.replace(old, new)
    assert container["command"][0] == "kvxfer"
    command = [sys.executable, "-m", *container["command"], *arguments.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "serving at" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield told(r"collecting at (\S+),", said), told(r"serving at (\S+)", said)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def pod(manifest: Any) -> Any:
    return manifest["spec"]["template"]["spec"]


def told(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    assert found, said
    return found[1]


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_the_schemas_of_kubernetes_take_the_manifest_and_refuse_one_with_a_slip(version: str, manifest: Any) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(manifest, version, strict=True)
    slip = copy.deepcopy(manifest)
    slip["spec"]["template"]["spec"]["initContainers"][0]["readynessProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(slip, version, strict=True)


def test_no_container_is_root_may_become_it_or_writes_to_its_image(manifest: Any) -> None:
    assert pod(manifest)["securityContext"]["runAsNonRoot"] is True
    for container in (*pod(manifest)["initContainers"], *pod(manifest)["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_worker_with_the_manifests_variables_is_counted_by_the_manifests_collector(
    manifest: Any, collector: tuple[str, str]
) -> None:
    endpoint, url = collector
    (worker,) = pod(manifest)["containers"]
    variables = {
        each["name"]: each["value"] if "value" in each else POD[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in worker["env"]
    }
    assert variables.pop("KVXFER_ENDPOINT") == "tcp://127.0.0.1:5555"
    environment = {**os.environ, **variables, "KVXFER_ENDPOINT": endpoint}
    subprocess.run([sys.executable, "-c", WORK], check=True, timeout=60, env=environment)
    sidecar = pod(manifest)["initContainers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert sidecar[probe]["httpGet"]["port"] == sidecar["ports"][0]["name"]
        get(url + sidecar[probe]["httpGet"]["path"])
    annotations = manifest["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(sidecar["ports"][0]["containerPort"])
    series = get(url + annotations["prometheus.io/path"]).decode()
    assert 'kvxfer_transfers_total{connector="NixlConnector",engine="decode",role="kv_consumer"} 1' in series
    (source,) = json.loads(get(f"{url}/api/v1/snapshot"))["sources"]
    place = {"pod": "decode-7f", "namespace": "serving", "node": "gpu-7"}
    assert source["labels"] == {"engine": "decode", "role": "kv_consumer", **place}
