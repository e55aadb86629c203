"""Scoring a bundle on captioned pictures, decoded over the cluster by Ray Data."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from caption_ray import storage
from caption_ray.bundle import load_bundle
from caption_ray.cluster import connect
from caption_ray.config import CaptionRules, DecodeOptions
from caption_ray.data.captions import Problem, read_source, summarise_problems
from caption_ray.data.images import open_picture
from caption_ray.data.prepare import inspect_pictures
from caption_ray.data.shards import load_manifest
from caption_ray.data.splits import SPLITS, assign_splits, read_split_lists
from caption_ray.errors import BadInputError, DatasetError, UsageError
from caption_ray.evaluation.metrics import CaptionScores, score_captions, score_each
from caption_ray.evaluation.report import ReportRow, render_report, select_rows
from caption_ray.inference import Captioner
from caption_ray.progress import Progress
from caption_ray.text.tokenizer import tokenize

logger = logging.getLogger(__name__)
