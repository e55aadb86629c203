import difflib
from pathlib import Path

import pytest
import yaml

from caption_ray.errors import UsageError
from caption_ray.serve.config_file import bundle_in, http_address, with_bundle

CLONE = Path(__file__).parents[3] / "serve_config.yaml"


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_only_the_bundle_changes_in_the_clones_own_config(tmp_path: Path) -> None:
    """Comments, blank lines, quotes and order are as they were."""
    assert bundle_in(str(CLONE)) is None
    first = with_bundle(str(CLONE), "/models/first")
    assert changed_lines(CLONE.read_text(), first) == ["+           bundle: /models/first"]
    file = tmp_path / "serve.yaml"
    file.write_text(first)
    assert bundle_in(str(file)) == "/models/first"
    second = with_bundle(str(file), "gs://bucket/second")
    assert changed_lines(first, second) == [
        "-           bundle: /models/first",
        "+           bundle: gs://bucket/second",
    ]
    before, after = (
        yaml.safe_load(text)["applications"][0]["deployments"][1]["user_config"] for text in (CLONE.read_text(), second)
    )
    assert after == {**before, "bundle": "gs://bucket/second"}


@pytest.mark.parametrize("settings", ["", "user_config:", "user_config: {}", "user_config: {max_batch_size: 4}"])
def test_config_without_settings_gets_them(tmp_path: Path, settings: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"applications:\n- name: x\n  deployments:\n  - name: CaptionerReplica # one\n    {settings}\n")
    text = with_bundle(str(file), "/b")
    assert yaml.safe_load(text)["applications"][0]["deployments"][0]["user_config"]["bundle"] == "/b"
    assert "# one" in text


def test_bundle_of_args_counts_where_user_config_names_none(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("applications: [{args: {bundle: /a}, deployments: [{name: CaptionerReplica}]}]")
    assert bundle_in(str(file)) == "/a"
    file.write_text(with_bundle(str(file), "/b"))
    assert bundle_in(str(file)) == "/b"


def test_address_of_the_service(tmp_path: Path) -> None:
    assert http_address(str(CLONE)) == ("127.0.0.1", 8000)
    file = tmp_path / "serve.yaml"
    file.write_text("http_options: {host: 0.0.0.0, port: 9000}")
    assert http_address(str(file)) == ("0.0.0.0", 9000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- 1", "not a Serve config"),
        ("applications: []", "0 deployments named CaptionerReplica"),
        ("applications: [{deployments: [{name: CaptionerReplica}, {name: CaptionerReplica}]}]", "2 deployments named"),
    ],
)
def test_file_that_is_no_config_of_the_service_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        with_bundle(str(file), "/b")
    with pytest.raises(UsageError, match="no such Serve config"):
        bundle_in(str(tmp_path / "absent.yaml"))
