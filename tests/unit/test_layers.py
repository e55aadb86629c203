"""Who may import whom, read from the source; and what importing the package does, seen in clean processes."""

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BASE = ("config", "errors", "lineage", "lock", "logs", "presets", "progress", "special_ids", "storage")
TEMPLATES, TEXT = ("templates",), ("text.*",)
DATA_FILES = ("data.captions", "data.caption_formats", "data.splits", "data.synthetic")
DATA_TABLES = (
    "data.images",
    "data.picture_format",
    "data.picture_layout",
    "data.picture_limits",
    "data.shards",
    "data.output_folder",
    "data.feature_manifest",
    "data.staging",
)
BATCHES = ("data.batches",)
BATCH_PLAN = ("data.batch_plan",)
MODEL = ("model.*",)
TENSORS = ("device", "weights")
METRICS = ("evaluation.metrics", "evaluation.comparison")
PURE = (*BASE, *TEXT, *DATA_FILES, *DATA_TABLES, *BATCHES, *TENSORS, *MODEL, *METRICS)
SHARED_PARTS = ("train.agreement", "train.neighbours", "train.shared_weights", "train.optimizer")
STEP_PARTS = (*SHARED_PARTS, "train.averaging", "train.gradients", "train.graphed")
STEPS = (*STEP_PARTS, "train.steps", "train.state", "train.schedule", "train.resources", "train.setup")
RUN_RECORDS = ("train.run_folder", "train.stopping")
RUN_PARTS = (*RUN_RECORDS, "train.dev", "train.board", "train.encoder_source", "train.meter")
CAPTION = ("caption",)
CAPTIONING = (*CAPTION, "bundle", "inference", "attention_figure")
TRAINING = (*PURE, *STEPS, *RUN_PARTS, *CAPTIONING)
TABLE_ADAPTERS = ("cluster", "data.prepare", "data.pipeline", "data.tables")
DATA_ADAPTERS = (*BATCH_PLAN, *TABLE_ADAPTERS, "data.feature_cache")
EVALUATION_ADAPTERS = ("evaluation.evaluate", "evaluation.pictures")
TRAIN_ADAPTERS = ("train.failure_log", "train.inputs", "train.loop", "train.trainer")
TUNE_REPORT = ("tune.charts", "tune.command", "tune.report", "tune.table")
TUNE = (*TUNE_REPORT, "tune.packing", "tune.records", "tune.search", "tune.space")
TUNE_ADAPTERS = ("tune.adapters", "tune.outcome", "tune.request", "tune.sweep", "tune.trial")
SERVE_CONTRACT = ("serve.schemas", "serve.backend", "serve.places")
SERVE_APP = (
    *("serve.access_log", "serve.app", "serve.errors", "serve.examples", "serve.lingering", "serve.metrics"),
    *("serve.middleware", "serve.model_lookup", "serve.openapi", "serve.pages", "serve.pictures", "serve.reading"),
    *("serve.retrying", "serve.service", "serve.streaming"),
)
SERVE_CONFIG = ("serve.config_file", "serve.rollout")
SERVE_COMPUTE = ("serve.batching", "serve.compute", "serve.engine")
COMPUTED_WITH = ("data.images", *CAPTIONING, *SERVE_CONTRACT)
SERVE_PURE = (*SERVE_CONTRACT, *SERVE_APP, *SERVE_COMPUTE)
SERVE_INGRESS = ("serve.handle", "serve.ingress", "serve.ray_metrics", "serve.replica_log")
SERVE_ADAPTERS = (*SERVE_INGRESS, "serve.autoscaling", "serve.captioner", "serve.deployment", "serve.siblings")


@dataclass(frozen=True, slots=True)
class Layer:
    """Modules, by pattern, and what they may import: modules of the package, and libraries."""

    modules: tuple[str, ...]
    ours: tuple[str, ...]
    libraries: tuple[str, ...]


TORCH = ("numpy", "torch")
ARROW = ("pyarrow", *TORCH)
LAYERS = (
    # 0, the base
    Layer(BASE, BASE, ("pydantic", "typing_extensions", "pyarrow")),
    # 1, pure parts
    Layer(TEXT, (*BASE, *TEXT), ("pydantic",)),
    Layer(DATA_FILES, (*BASE, *DATA_FILES), ("numpy", "PIL")),
    # Without torch: Ray loads these in every process that a picture goes through.
    Layer(DATA_TABLES, (*BASE, *DATA_TABLES), ("numpy", "pyarrow", "PIL", "pydantic", "typing_extensions")),
    Layer(BATCHES, BASE, TORCH),
    Layer(TENSORS, BASE, ("torch", "safetensors")),
    Layer(MODEL, (*BASE, *MODEL, "device"), (*TORCH, "torchvision")),
    Layer(METRICS, (*BASE, *METRICS), ("numpy", "nltk", "pycocoevalcap", "pydantic")),
    Layer(TEMPLATES, (), ("jinja2",)),
    Layer(("evaluation.report",), (*BASE, *TEMPLATES, *METRICS), ()),
    Layer(BATCH_PLAN, (*BASE, *TEXT, *DATA_TABLES, *BATCHES), ARROW),
    # 2, engines and captioning; all without Ray
    Layer(("bundle",), PURE, (*TORCH, "pydantic", "safetensors")),
    Layer(STEPS, (*PURE, *STEPS), (*TORCH, "pydantic")),
    Layer(("attention_figure",), BASE, ("numpy", "PIL")),
    Layer(CAPTION, (), ("numpy",)),
    Layer(("inference",), (*PURE, *CAPTION, "bundle"), (*TORCH, "PIL")),
    Layer(RUN_PARTS, TRAINING, (*ARROW, "PIL", "pydantic", "safetensors", "tensorboard")),
    Layer(SERVE_CONTRACT, (*BASE, *CAPTION, *SERVE_CONTRACT), ("numpy", "pydantic")),
    Layer(
        SERVE_APP,
        (*BASE, *TEMPLATES, "data.images", *CAPTION, *SERVE_CONTRACT, *SERVE_APP),
        ("numpy", "prometheus_client", "pydantic", "python_multipart", "starlette"),
    ),
    Layer(SERVE_COMPUTE, (*BASE, *COMPUTED_WITH, *SERVE_COMPUTE), (*TORCH, "PIL", "pydantic")),
    Layer(SERVE_CONFIG, (*BASE, "serve.middleware", *SERVE_CONFIG), ("ruamel",)),
    Layer(TUNE, (*BASE, *TEMPLATES, "train.resources", *TUNE), ("numpy", "optuna", "pydantic", "typing_extensions")),
    Layer(("serve.head_timeout",), (), ("h11", "uvicorn")),
    Layer(("serve.local",), (*BASE, "entry", *CAPTIONING, *SERVE_PURE, "serve.head_timeout"), ("pydantic", "uvicorn")),
    Layer(("serve.example_pictures",), (*BASE, *DATA_FILES), ("numpy", "PIL")),
    # 3, Ray adapters
    Layer(("cluster",), BASE, ("ray",)),
    Layer(
        ("data.prepare", "data.pipeline", "data.tables"),
        (*BASE, *TEXT, *DATA_FILES, *DATA_TABLES, *TABLE_ADAPTERS),
        ("numpy", "pyarrow", "ray", "PIL", "pydantic"),
    ),
    Layer(("data.feature_cache",), (*BASE, *DATA_TABLES, *BATCHES, *TENSORS, *TABLE_ADAPTERS), (*ARROW, "ray", "PIL")),
    Layer(
        TRAIN_ADAPTERS,
        (*TRAINING, *DATA_ADAPTERS, *TRAIN_ADAPTERS),
        (*ARROW, "ray", "pydantic"),
    ),
    Layer(
        EVALUATION_ADAPTERS,
        (*PURE, "evaluation.report", *CAPTIONING, *DATA_ADAPTERS, *EVALUATION_ADAPTERS),
        (*ARROW, "ray", "PIL", "pydantic"),
    ),
    Layer(
        SERVE_ADAPTERS,
        (*PURE, *CAPTIONING, *SERVE_PURE, *SERVE_ADAPTERS, "cluster"),
        (*TORCH, "ray", "grpc", "pydantic", "starlette"),
    ),
    Layer(
        TUNE_ADAPTERS,
        (*BASE, "bundle", "cluster", "data.pipeline", *STEPS, *RUN_PARTS, *TRAIN_ADAPTERS, *TUNE, *TUNE_ADAPTERS),
        ("ray",),
    ),
    Layer(
        ("promotion",),
        (*PURE, *CAPTIONING, "cluster", *EVALUATION_ADAPTERS, "serve.deployment", *SERVE_CONFIG),
        ("ray",),
    ),
    # 4, entry
    Layer(("entry",), BASE, ("pydantic", "tyro")),
    Layer(("jobs.*",), ("*",), ("pydantic", "tyro")),
)


def module_name(path: Path) -> str:
    """Return `data.images` for caption_ray/data/images.py, `jobs.train` for jobs/train.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "caption_ray" else parts)


FILES = {
    module_name(path): path
    for folder in ("caption_ray", "jobs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
}


def imports_of(source: str) -> Iterator[str]:
    """Yield the full names of the modules that a source imports anywhere, functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner.removeprefix("caption_ray.") in FILES else module


def layer_of(module: str) -> Layer:
    (layer,) = [layer for layer in LAYERS if any(fnmatchcase(module, pattern) for pattern in layer.modules)]
    return layer


def violations(module: str, source: str) -> list[str]:
    """Return the imports of a module that its layer does not allow."""
    layer, wrong = layer_of(module), []
    for name in imports_of(source):
        library = name.partition(".")[0]
        if library == "caption_ray":
            inner = name.removeprefix("caption_ray").removeprefix(".")
            allowed = not inner or any(fnmatchcase(inner, pattern) for pattern in layer.ours)
        else:
            allowed = library in sys.stdlib_module_names or library in layer.libraries
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("module", sorted(FILES))
def test_module_imports_only_what_its_layer_allows(module: str) -> None:
    assert violations(module, FILES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("model.decoder", "import ray", ["ray"]),
        ("model.decoder", "def f():\n    import ray.data", ["ray.data"]),
        ("model.decoder", "from caption_ray.text.vocabulary import PAD", ["caption_ray.text.vocabulary"]),
        ("model.decoder", "from caption_ray.data import images", ["caption_ray.data.images"]),
        ("data.pipeline", "from caption_ray.model.encoder import Encoder", ["caption_ray.model.encoder"]),
        ("train.steps", "import ray.train", ["ray.train"]),
        ("serve.app", "from caption_ray.train.steps import Stepper", ["caption_ray.train.steps"]),
        ("jobs.train", "from jobs.tune import main", ["jobs.tune"]),
        ("config", "import torch", ["torch"]),
        ("data.pipeline", "from caption_ray.data import batches", ["caption_ray.data.batches"]),
        ("train.loop", "import ray.train, json\nfrom caption_ray import storage", []),
    ],
)
def test_table_refuses_what_it_must(module: str, source: str, wrong: list[str]) -> None:
    assert violations(module, source) == wrong


def run_python(code: str, folder: Path) -> dict[str, list[str]]:
    """Run code in a clean interpreter, with an empty folder as its home, scratch and working folder."""
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


PROBE = """
import importlib, json, logging, sys
for name in {modules!r}:
    importlib.import_module(name)
loggers = [logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.startswith("caption_ray")]
print(json.dumps({{
    "loaded": sorted({{"ray", "torch", "tyro", "starlette"}} & set(sys.modules)),
    "handlers": [logger.name for logger in [*loggers, logging.root] if logger.handlers],
}}))
"""


def test_importing_the_base_loads_neither_ray_nor_torch(tmp_path: Path) -> None:
    modules = ["caption_ray", *(f"caption_ray.{name}" for name in BASE)]
    assert run_python(PROBE.format(modules=modules), tmp_path) == {"loaded": [], "handlers": []}
    assert list(tmp_path.iterdir()) == []


def test_what_ray_loads_wherever_pictures_go_through_loads_no_torch(tmp_path: Path) -> None:
    modules = [f"caption_ray.{name}" for name in (*DATA_TABLES, *TABLE_ADAPTERS, *SERVE_CONTRACT, *SERVE_INGRESS)]
    assert run_python(PROBE.format(modules=modules), tmp_path)["loaded"] == ["ray", "starlette"]


def test_importing_modules_without_ray_loads_no_ray_and_leaves_no_trace(tmp_path: Path) -> None:
    modules = [f"caption_ray.{name}" for name in FILES if "ray" not in layer_of(name).libraries and "jobs" not in name]
    assert "caption_ray.train.steps" in modules
    answer = run_python(PROBE.format(modules=modules), tmp_path)
    assert "torch" in answer["loaded"]
    assert "ray" not in answer["loaded"]
    assert answer["handlers"] == []
    assert list(tmp_path.iterdir()) == []


def test_logging_is_configured_when_asked_and_only_once() -> None:
    from caption_ray.logs import configure_logging

    logger = logging.getLogger("caption_ray")
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        configure_logging()
        configure_logging()
        assert len(logger.handlers) == 1
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def test_no_file_is_longer_than_300_lines() -> None:
    folders = ("caption_ray", "jobs", "tests", "benchmarks", "slurm", "gcp")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".c", ".h")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert len(lengths) > 40


def test_library_prints_nothing() -> None:
    printing = [
        f"{module}:{node.lineno}"
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []
