"""Unit tests mirror modules: those of `src/zeropull/a/b.py` are `tests/unit/a/test_b.py`, or
`test_b_SUBJECT.py` beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "src/zeropull"
UNIT = ROOT / "tests/unit"

# Modules without unit tests of their own, and where their tests are; for a package, any module of
# it. The reason is the same each time: alone, such a module says little, and what it works with is
# the test.
TESTED_ELSEWHERE = {
    "errors.py": "tests/unit/imagecache",  # by all that raise
    "admin": "tests/unit/admin/test_server.py",
    "api": "tests/integration/api",
    "api/applicationautoscaling": "tests/integration/api",
    "api/cloudwatch": "tests/integration/api",
    "api/sagemaker": "tests/integration/api",
    "autoscaler": "tests/unit/autoscaler/test_combining_aws_policies.py",
    "awsprotocol/sigv4_claims.py": "tests/unit/awsprotocol/test_sigv4.py",
    "cli/main.py": "tests/integration/serve",
    "cli/state.py": "tests/integration/serve",
    "containerd": "tests/integration/containerd",
    "controlapi/messages.py": "tests/unit/controlapi/test_server.py",
    "daemons": "tests/acceptance",
    "delivery/certificates.py": "tests/unit/delivery/test_suppliers.py",
    "delivery/fuse_files.py": "tests/integration/delivery",
    "delivery/generations.py": "tests/integration/delivery",
    "delivery/group_holder.py": "tests/integration/delivery",
    "delivery/receiver.py": "tests/integration/delivery",
    "delivery/serving.py": "tests/unit/delivery/test_suppliers.py",
    "delivery/whole_transfer.py": "tests/integration/delivery",
    "erofs": "tests/integration/imagecache/test_layer_exactness.py",
    "gateway": "tests/integration/gateway",
    "inflating/worker.py": "tests/unit/inflating/test_process_and_thread.py",
    "layers/making_worker.py": "tests/unit/layers/test_making_process.py",
    "layers/pull.py": "tests/integration/imagecache",
    "linux": "tests/integration/linux",
    "metricstore": "tests/unit/metricstore/test_store.py",
    "modelstore": "tests/integration/modelstore",
    "nodeagent": "tests/integration/nodeagent",
    "nodeagent/containers": "tests/integration/nodeagent",
    "nodeagent/copies": "tests/integration/nodeagent",
    "nodeagent/images": "tests/integration/nodeagent",
    "oci": "tests/unit/registry",
    "placement": "tests/unit/placement",
    "providers": "tests/integration/providers",
    "providers/local": "tests/integration/providers",
    "reconcilers": "tests/unit/reconcilers/test_planning_endpoints.py",
    "reconcilers/components": "tests/unit/reconcilers/test_planning_components.py",
    "reconcilers/endpoints": "tests/unit/reconcilers/test_planning_endpoints.py",
    "reconcilers/imagecaches": "tests/unit/reconcilers/imagecaches",
    "reconcilers/publishing": "tests/unit/reconcilers/publishing",
    "registry": "tests/integration/registry",
    "resources": "tests/unit/statestore",  # vocabulary, by all that store and plan with it
    "scaling": "tests/unit/scaling/test_controller.py",
    "snapshotter": "tests/integration/snapshotter",
    "statestore": "tests/unit/statestore/test_store.py",
}
# Folders that mirror no package, and files about several modules at once.
OF_NO_MODULE = {
    "docs": "what documents and contracts say",
    "fixtures": "tests/fixtures",
    "packaging": "packaging/ and the lock file",
    "scripts": "scripts/",
    "containerd/test_generated.py": "the generated package",
    "providers/test_local_plans.py": "the plans of several modules of providers/local",
}


def modules() -> set[Path]:
    found = (path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
    return {path for path in found if path.name != "__init__.py" and "_generated" not in path.parts}


def written_tests() -> set[Path]:
    return {path.relative_to(UNIT) for path in UNIT.rglob("test_*.py")}


def is_of(test: Path, module: Path) -> bool:
    name = test.stem.removeprefix("test_")
    return test.parent == module.parent and (name + "_").startswith(module.stem + "_")


def test_every_test_file_is_named_for_a_module() -> None:
    known = modules()
    strangers = {
        str(test)
        for test in written_tests()
        if not any(is_of(test, module) for module in known)
        and str(test) not in OF_NO_MODULE
        and str(test.parent) not in OF_NO_MODULE
    }
    assert strangers == set()


def test_every_module_has_tests_of_its_name_or_its_package_says_where_they_are() -> None:
    written = written_tests()
    without = {
        str(module)
        for module in modules()
        if not any(is_of(test, module) for test in written)
        and TESTED_ELSEWHERE.keys().isdisjoint((str(module), str(module.parent)))
    }
    assert without == set()


@pytest.mark.parametrize("name", TESTED_ELSEWHERE)
def test_what_has_no_tests_of_its_own_and_those_that_stand_for_it_exist(name: str) -> None:
    assert (SOURCE / name).exists()
    assert (ROOT / TESTED_ELSEWHERE[name]).exists()


def test_no_module_is_excused_that_has_tests_of_its_own() -> None:
    written = written_tests()
    excused = {Path(name) for name in TESTED_ELSEWHERE if name.endswith(".py")}
    assert {str(m) for m in excused if any(is_of(test, m) for test in written)} == set()


@pytest.mark.parametrize("name", OF_NO_MODULE)
def test_what_is_of_no_module_is_there(name: str) -> None:
    assert (UNIT / name).exists()
