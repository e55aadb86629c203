import difflib
import re
from pathlib import Path

import pytest
import yaml

from caption_ray.errors import UsageError
from caption_ray.serve.config_file import application_names, bundle_in, http_address, route_prefix, with_bundle

CAPTIONER = "{deployments: [{name: CaptionerReplica}]}"
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


INDENTED = """\
# kept
applications:
- name: captions
  route_prefix:   /captions
  deployments:
  - name: 'CaptionerReplica'
    user_config:
      max_batch_size:    4   # four
      bundle: "/models/old"   # why
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_other_character_stays_whatever_the_style(tmp_path: Path, newline: str) -> None:
    file, text = tmp_path / "serve.yaml", INDENTED.replace("\n", newline)
    file.write_bytes(text.encode())
    assert with_bundle(str(file), "/models/new") == text.replace('"/models/old"', "/models/new")
    assert with_bundle(str(file), "/my models/new") == text.replace('"/models/old"', '"/my models/new"')
    file.write_bytes(text.replace(f'      bundle: "/models/old"   # why{newline}', "").encode())
    added = f"      bundle: /models/new{newline}      max"
    assert with_bundle(str(file), "/models/new") == file.read_bytes().decode().replace("      max", added)


def test_one_of_several_applications_is_chosen_by_name(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"applications: [{{name: a, route_prefix: /a, {CAPTIONER[1:]}, {{name: b, {CAPTIONER[1:]}, {{}}]")
    assert application_names(str(file)) == {"a", "b", "default"}
    file.write_text(with_bundle(str(file), "/b", "b"))
    assert (bundle_in(str(file), "a"), bundle_in(str(file), "b")) == (None, "/b")
    assert (route_prefix(str(file), "a"), route_prefix(str(file), "b")) == ("/a", "")
    with pytest.raises(UsageError, match="no deployment named CaptionerReplica in an application 'c'"):
        bundle_in(str(file), "c")


def test_address_of_the_service(tmp_path: Path) -> None:
    assert http_address(str(CLONE)) == ("127.0.0.1", 8000)
    file = tmp_path / "serve.yaml"
    file.write_text("http_options: {host: 0.0.0.0, port: 9000}")
    assert http_address(str(file)) == ("0.0.0.0", 9000)
    file.write_text("http_options: {port: '9001'}")
    assert http_address(str(file)) == ("0.0.0.0", 9001)  # as HTTPOptionsSchema of Ray has it
    file.write_text("http_options: {port: 80x}")
    with pytest.raises(UsageError, match=r"http_options\.port: '80x': must be a number"):
        http_address(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- 1", "not a Serve config"),
        ("applications: []", "no deployment named CaptionerReplica; start from serve_config.yaml"),
        ("applications: [{deployments: [{name: CaptionerReplica}, {name: CaptionerReplica}]}]", "2 deployments named"),
        (
            f"applications: [{CAPTIONER}, {{name: b, {CAPTIONER[1:]}]",
            "of the applications default, b; name one .* by --a",
        ),
        ("applications: [x]", "`applications` must be a list of mappings, and is .'x'."),
        ("applications: {a: b}", "`applications` must be a list of mappings"),
        ("applications: [{deployments: [x]}]", "`deployments` must be a list of mappings"),
        (
            "applications: [{deployments: [{name: CaptionerReplica, user_config: s}]}]",
            "`user_config` must map names to",
        ),
        (
            "x: &x {max_batch_size: 4}\napplications: [{deployments: [{name: CaptionerReplica, user_config: *x}]}]",
            "without changing something else",
        ),
    ],
)
def test_file_that_is_no_config_of_the_service_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        with_bundle(str(file), "/b")
    with pytest.raises(UsageError, match="no such Serve config"):
        bundle_in(str(tmp_path / "absent.yaml"))


def test_what_the_clones_config_offers_in_comments_can_be_taken_out_of_them() -> None:
    lines = CLONE.read_text().splitlines()
    offered = [number for number, line in enumerate(lines) if re.match(r" +# \w+: ", line)]
    assert len(offered) == 4  # limits, require_api_keys, bundle, num_gpus
    for number in offered:
        taken = lines[number].replace("# ", "", 1)
        name, value = taken.split(" #")[0].strip().split(": ", 1)
        content = yaml.safe_load("\n".join([*lines[:number], taken, *lines[number + 1 :]]))
        (application,) = content["applications"]
        captioner = application["deployments"][1]
        places = (application["args"], captioner["user_config"], captioner["ray_actor_options"])
        assert yaml.safe_load(value) in [place.get(name) for place in places]
